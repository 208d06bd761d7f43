"""The LightningModule and the Trainer: learning rates, losses and metrics against closed forms."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from qexp.method.fine_tuning import FineTuningModule
from qexp.model.trainer import make_trainer
from qexp.model.training_module import TrainingModule
from qexp.places import CONF
from qexp.types import UserError
from tests import configured

RECIPES = sorted(p.stem for p in (CONF / "recipe").glob("[!_]*.yaml"))
EPOCHS, BATCHES = 5, 3


def recipe_config(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"recipe={name}", f"recipe.epochs={EPOCHS}", *overrides]).recipe


def small(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, classes))


def classifier(recipe: DictConfig, network: nn.Module | None = None, classes: int = 3) -> TrainingModule:
    r = instantiate(recipe)
    network = network or small(classes)
    return TrainingModule(
        network, classes, r.optimizer, r.scheduler, r.scheduler_per_step, r.label_smoothing, r.channels_last, 0, [], 0
    )


def loader(images: int = 4 * BATCHES, classes: int = 3) -> DataLoader:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(images, 1, 8, 8), torch.arange(images) % classes), batch_size=4)


class Rates(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(module: TrainingModule, *callbacks: Callback, precision: str = "32-true", epochs: int = EPOCHS) -> None:
    options: dict[str, Any] = {
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about loaders that this project does not use
        make_trainer("cpu", precision, callbacks=list(callbacks), **options).fit(module, loader(), loader(7))


def between(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


def one_cycle(step: int, recipe: DictConfig) -> float:
    """Smith and Topin's cycle with cosines, after PyTorch's documentation."""
    top, options = recipe.optimizer.lr, recipe.scheduler
    first, total = top / options.div_factor, EPOCHS * BATCHES
    peak = options.pct_start * total - 1
    if step <= peak:
        return between(first, top, step / peak)
    return between(top, first / options.final_div_factor, (step - peak) / (total - 1 - peak))


def multi_step(step: int, recipe: DictConfig) -> float:
    passed = sum(step // BATCHES >= milestone for milestone in recipe.scheduler.milestones)
    return recipe.optimizer.lr * recipe.scheduler.gamma**passed


def triangle(step: int, recipe: DictConfig) -> float:
    total, options = EPOCHS * BATCHES, recipe.scheduler
    points = [0, options.rise * total, total], [options.first, 1, options.last]
    return recipe.optimizer.lr * float(np.interp(step, *points))


FORMS = {"OneCycleLR": one_cycle, "MultiStepLR": multi_step, "triangular": triangle}


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates_of_every_recipe(name: str) -> None:
    recipe = recipe_config(name)
    if recipe.scheduler and "milestones" in recipe.scheduler:
        recipe.scheduler.milestones = [1, 3]  # within these few epochs
    rates = Rates()
    fit(classifier(recipe), rates)
    form = (
        FORMS[recipe.scheduler._target_.rpartition(".")[2]]
        if recipe.scheduler
        else lambda step, recipe: recipe.optimizer.lr
    )
    np.testing.assert_allclose(rates.rates, [form(step, recipe) for step in range(EPOCHS * BATCHES)], rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "length"), [("prune", None), ("prune_channels", None), ("cluster", None), ("prune", 20)]
)
def test_the_rate_of_fine_tuning_falls_to_zero_in_its_steps_or_as_it_is_told(method: str, length: int | None) -> None:
    told = [f"+method.recipe.scheduler.T_max={length}"] if length else []
    recipe = instantiate(configured.composed(f"method={method}", *told).method.recipe)
    rates = Rates()
    fit(FineTuningModule(small(), small(), 3, recipe), rates)
    steps = length or EPOCHS * BATCHES
    expected = [between(recipe.optimizer.lr, 0.0, step / steps) for step in range(EPOCHS * BATCHES)]
    np.testing.assert_allclose(rates.rates, expected, rtol=1e-6)


class Values(Callback):
    """Keeps the parameters at the end of each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append({name: p.detach().clone() for name, p in pl_module.network.named_parameters()})


def with_frozen(frozen: list[str], since: Any) -> TrainingModule:
    r = instantiate(recipe_config("one_cycle"))
    return TrainingModule(small(), 3, r.optimizer, r.scheduler, r.scheduler_per_step, 0.0, False, 0, frozen, since)


@pytest.mark.parametrize("since", [0, 2])
def test_frozen_parameters_are_trained_until_their_epoch(since: int) -> None:
    """Decay and momentum would go on changing them if the optimizer saw them."""
    values, module = Values(), with_frozen(["0.*", "4.bias"], since)
    values.seen.append({name: p.detach().clone() for name, p in module.network.named_parameters()})
    fit(module, values)
    for name in values.seen[0]:
        still = [torch.equal(one[name], other[name]) for one, other in itertools.pairwise(values.seen)]
        frozen = name in ("0.weight", "0.bias", "4.bias")
        assert still == [frozen and epoch >= since for epoch in range(EPOCHS)], name


@pytest.mark.parametrize(
    ("frozen", "since", "message"),
    [
        (["0.*", "5.*"], 1, r"recipe.frozen: no parameter has a name like 5.\*. .*Known: 0.bias, 0.weight, "),
        (["0.*"], -1, r"recipe.frozen_from is -1; give an epoch, counted from 0"),
        (["0.*"], "late", r"recipe.frozen_from is 'late'; give an epoch"),
    ],
)
def test_what_cannot_be_frozen(frozen: list[str], since: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_frozen(frozen, since)


def test_wrong_optimizer_arguments() -> None:
    with pytest.raises(
        UserError, match="No optimizer or scheduler of this recipe for 15 steps: Invalid learning rate: -1"
    ):
        fit(classifier(recipe_config("resnet34_cifar100", "recipe.optimizer.lr=-1")))


def test_divergence_is_an_error() -> None:
    with pytest.raises(UserError, match="diverged: its loss is nan after epoch 1. Lower recipe.optimizer.lr"):
        module = classifier(recipe_config("resnet34_cifar100"))
        nn.init.constant_(module.network[4].weight, math.nan)  # type: ignore[index,arg-type]
        fit(module)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    module = classifier(recipe_config("one_cycle", f"recipe.label_smoothing={smoothing}"), nn.Flatten(), classes=4)
    monkeypatch.setattr(module, "log", lambda *a, **k: None)
    monkeypatch.setattr(module, "log_dict", lambda *a, **k: None)
    logits, labels = torch.randn(6, 4, 1, 1), torch.tensor([0, 1, 2, 3, 0, 1])
    log_p = logits.flatten(1).log_softmax(1)
    expected = -(1 - smoothing) * log_p[range(6), labels].mean() - smoothing * log_p.mean()
    torch.testing.assert_close(module.training_step((logits, labels), 0), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_loss_and_accuracy_of_mixed_images(monkeypatch: pytest.MonkeyPatch, smoothing: float, share: float) -> None:
    """Methods that fine-tune share this module, with a teacher that is shown the same images."""
    changed = {"label_smoothing": smoothing, "distillation": share, "temperature": 2}
    recipe = instantiate(configured.composed("method=prune").method.recipe, **changed)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    module, logged = FineTuningModule(nn.Flatten(), teacher, 4, recipe), dict[str, Tensor]()
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    x, shares = torch.randn(6, 4, 1, 1), torch.rand(6, 4).softmax(1)
    found = module.training_step((x, shares), 0).detach().double()
    logits = x.flatten(1).double()
    target = (1 - smoothing) * shares.double() + smoothing / 4
    wanted = -(target * logits.log_softmax(1)).sum(1).mean()
    p = (teacher(x).detach().double() / 2).softmax(1)
    distance = 4 * (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(found, (1 - share) * wanted + share * distance, rtol=1e-5, atol=1e-6)
    right = (logits.argmax(1) == shares.argmax(1)).double().mean()
    assert float(logged["train_top1"]) == pytest.approx(float(right)) and float(logged["train_top5"]) == 1


class Seen(nn.Module):
    """Logits from one linear layer; remembers what it was given and computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result = self.linear(x.mean((2, 3)))
        self.dtype, self.channels_last = result.dtype, x.is_contiguous(memory_format=torch.channels_last)
        return result


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(channels_last: bool) -> None:
    network = Seen()
    module = classifier(recipe_config("one_cycle", f"recipe.channels_last={channels_last}"), network)
    x = torch.randn(2, 3, 4, 4)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        module(given)
        assert network.channels_last is channels_last


def test_bf16_autocast() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 3, 1), Seen())
    fit(classifier(recipe_config("one_cycle"), network), precision="bf16-mixed", epochs=1)
    assert network[2].dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("classes", [3, 10])
def test_metrics_against_numpy(classes: int) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(37, classes)).astype(np.float32), rng.integers(classes, size=37)
    data = DataLoader(TensorDataset(torch.from_numpy(logits)[..., None, None], torch.from_numpy(labels)), batch_size=10)
    trainer = make_trainer("cpu", "32-true", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trainer.test(classifier(recipe_config("one_cycle"), nn.Flatten(), classes), data, verbose=False)[0]
    check(found, "test", logits, labels)


@pytest.mark.parametrize("classes", [3, 10])
def test_metrics_of_training_against_numpy(classes: int) -> None:
    """Over an epoch in which nothing is learned. Its last batch is smaller than the others."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(37, classes)).astype(np.float32), rng.integers(classes, size=37)
    data = DataLoader(TensorDataset(torch.from_numpy(logits)[..., None, None], torch.from_numpy(labels)), batch_size=10)
    network = nn.Sequential(nn.Flatten(), nn.Linear(classes, classes, bias=False))
    nn.init.eye_(network[1].weight)  # type: ignore[arg-type]
    options: dict[str, Any] = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = make_trainer("cpu", "32-true", enable_progress_bar=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        constant = recipe_config("resnet34_cifar100", "recipe.optimizer.lr=1e-12")
        trainer.fit(classifier(constant, network, classes), data)
    check({name: float(value) for name, value in trainer.callback_metrics.items()}, "train", logits, labels)


def check(found: Mapping[str, float], part: str, logits: np.ndarray, labels: np.ndarray) -> None:
    order = np.argsort(-logits, axis=1)
    assert found[f"{part}_top1"] == pytest.approx(np.mean(order[:, 0] == labels))
    assert found[f"{part}_top5"] == pytest.approx(np.mean((order[:, :5] == labels[:, None]).any(1)))
    log_sum = np.log(np.exp(logits.astype(float)).sum(1))
    assert found[f"{part}_loss"] == pytest.approx(np.mean(log_sum - logits[range(37), labels]), rel=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu() -> None:
    with pytest.raises(UserError, match="PyTorch sees no GPU here. Use trainer=cpu"):
        make_trainer("gpu", "auto")


def test_options_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="trainer's options do not fit this machine: .*int3"):
        make_trainer("cpu", "int3")


def test_failed_checkpoint_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = make_trainer("cpu", "32-true", logger=False).strategy.checkpoint_io
    checkpoints.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def full_disk(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="Cannot write .*last.ckpt.*No space left on device"):
        checkpoints.save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt") == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
