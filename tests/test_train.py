"""train.py as a user runs it: output, errors, seeds, an exact resume after a kill, two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import train
from qexp.data.opening import open_data
from qexp.jobs.artifact_factory import trained_network
from qexp.jobs.train import train_baseline
from qexp.model.airbench import whitening
from qexp.model.base import build_network, load_weights
from qexp.model.baseline import Baseline
from qexp.model.training_module import TrainingModule
from qexp.places import CONF
from qexp.types import UserError
from tests.tiers import more

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
NET = """
import os, pathlib, time
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, num_classes)
        )
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        if self.training and str(self.steps) == os.environ.get("HANG_AT_STEP"):
            pathlib.Path("hanging").touch()
            time.sleep(600)
        return self.body(x)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with noisy images of three grey levels below `toy`, and a network of the user's own in `own.py`."""
    place, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 11)):
        for label in range(3):
            folder = place / "toy" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(90 + 40 * label, 80, (32, 32)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (place / "own.py").write_text(NET)
    return place


DATA = ["data=folder", "data.root=toy", "data.channels=1", "recipe.batch_size=16", "trainer.precision=32-true"]


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    return place


def config_of(*overrides: str) -> DictConfig:
    given = [*DATA, "trainer=cpu", "tracking=none", "model=lenet5", "recipe.epochs=1", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", given)


def trained(*overrides: str) -> Baseline:
    config = config_of(*overrides)
    return train_baseline(config, open_data(config), anew=config.force)


def same_weights(one: Baseline, other: Baseline) -> bool:
    a, b = load_file(one.weights), load_file(other.weights)
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def top1(baseline: Baseline, part: str) -> float:
    """Of the baseline's weights, image by image, without Lightning."""
    data = open_data(config_of())
    network = build_network(DictConfig(baseline.model))
    load_weights(network, load_file(baseline.weights), "")
    data.normalise_like(baseline.data)
    source = "train" if part == "val" else "test"
    labels = data.splits[source].labels
    indices = data.validation_indices if part == "val" else np.arange(len(labels))
    images: Tensor = data.normalise(torch.tensor(data.pixels(source, indices)))
    with torch.no_grad():
        return float((network.eval()(images).argmax(1).numpy() == labels[indices]).mean())


def test_seeds(here: Path) -> None:
    first, again, other = trained("outputs=s1"), trained("outputs=s2"), trained("outputs=s1", "seed=1")
    assert same_weights(first, again) and not same_weights(first, other)
    assert first.seed == 0 and other.folder != first.folder
    assert first.folder.name == again.folder.name
    assert first.metrics["test_top1"] == pytest.approx(top1(first, "test"))
    assert first.metrics["val_top1"] == pytest.approx(top1(first, "val"))


def test_finished_baseline_is_returned_unless_forced(here: Path) -> None:
    first = trained("outputs=finished")
    written = first.weights.stat().st_mtime_ns
    assert trained("outputs=finished") == first and first.weights.stat().st_mtime_ns == written
    forced = trained("outputs=finished", "force=true")
    assert forced.weights.stat().st_mtime_ns != written and same_weights(first, forced)
    assert {p.name for p in first.folder.iterdir()} == {"manifest.json", "model.safetensors"}


def test_interrupted_between_training_and_manifest(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    reference = trained("outputs=whole", "recipe.epochs=2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Baseline, "write", killed)
        trained("outputs=late", "recipe.epochs=2")
    resumed = trained("outputs=late", "recipe.epochs=2")
    assert same_weights(reference, resumed) and resumed.metrics == reference.metrics


@pytest.mark.parametrize("recipe", ["one_cycle", *more("multi_step")])
def test_resume_within_an_epoch(here: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    """Every recipe's optimizer and scheduler come back as they were; the network has dropout and batch norm."""
    options = ["model=custom", "model._target_=own.Net", "recipe.epochs=4", f"recipe={recipe}"]
    options += ["recipe.scheduler.milestones=[1,3]"] if recipe == "multi_step" else []
    reference = trained(f"outputs={recipe}1", *options)
    step = TrainingModule.training_step

    def killed(module: Any, batch: Any, index: int) -> Tensor:
        if (module.current_epoch, index) == (2, 3):
            raise KeyboardInterrupt
        return step(module, batch, index)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(TrainingModule, "training_step", killed)
        trained(f"outputs={recipe}2", *options)
    assert same_weights(reference, trained(f"outputs={recipe}2", *options))


def test_resume_after_epochs_that_were_not_the_best(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["outputs=constant", "recipe.epochs=4", "recipe.optimizer.lr=1e-12"]  # the first epoch stays the best
    step, seen = TrainingModule.training_step, []

    def watched(module: Any, batch: Any, index: int) -> Tensor:
        seen.append(module.current_epoch)
        if len(seen) == 18:  # in the last of 4 epochs of 5 steps
            raise KeyboardInterrupt
        return step(module, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trained(*options)
    trained(*options)
    assert seen[:18] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 3 and seen[18:] == [3] * 5


def test_the_best_epoch_is_kept_or_the_last(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network counts its steps. It gets worse and worse, so that its first epoch is the best."""
    own = ["model=custom", "model._target_=own.Net", "recipe.epochs=3"]
    step = TrainingModule.on_train_epoch_end

    def worse(module: Any) -> None:
        module.trainer.callback_metrics["val_top1"] = torch.tensor(0.9 - 0.1 * module.current_epoch)
        step(module)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_end", worse)
    for keep, epoch, top1 in (("best", 1, 0.9), ("last", 3, 0.7)):
        kept = trained(f"outputs={keep}", *own, f"recipe.keep={keep}")
        assert int(load_file(kept.weights)["body.1.num_batches_tracked"]) == 5 * epoch
        assert kept.metrics["val_top1"] == pytest.approx(top1)


def test_layers_start_from_training_images(here: Path) -> None:
    made = trained("outputs=whitened", "model=airbench", "model.widths=[8,8,8]", "recipe.optimizer.lr=1e-12")
    data = open_data(config_of())
    images = data.normalise(torch.from_numpy(data.pixels("train", data.train_indices)))
    filters = whitening(images, 2, 0.0005)[0].float()
    torch.testing.assert_close(load_file(made.weights)["whitening.weight"][:4], filters, rtol=1e-3, atol=1e-4)


def test_fine_tuning_of_pretrained_weights(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "test_resnet.r160_in1k.safetensors"
    file.parent.mkdir(parents=True)
    save_file(weights := timm.create_model("test_resnet").state_dict(), file)
    asked = ["outputs=tuned", "model=timm", "model.name=test_resnet"]
    still = ["model.pretrained=true", "recipe.optimizer.lr=1e-12"]
    tuned = trained(*asked, *still)
    own = load_file(tuned.weights)
    kept = [name for name in own if name.startswith("layer") and own[name].ndim == 4]
    assert len(kept) > 5 and all(torch.allclose(own[name], weights[name], atol=1e-6) for name in kept)
    given = trained(*asked, *still, f"init={tuned.folder}")
    assert not given.model["pretrained"] and given.folder != tuned.folder, "other weights take their place"

    file.unlink()  # what was trained from it does not need it any more
    for asks in (["checkpoint=auto"], [f"checkpoint={tuned.folder}", "model.pretrained=true"]):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("compress", [*DATA, *asked, *asks])
        network, source, _ = trained_network(config, open_data(config))
        newest = tuned if asks[0] != "checkpoint=auto" else given
        assert source["weights"] == newest.weights_digest
        assert torch.equal(network.state_dict()["fc.weight"], load_file(newest.weights)["fc.weight"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["recipe.epochs=0"], "recipe.epochs is 0"),
        (["recipe.keep=first"], "recipe.keep=first: .*Known: best, last"),
        (["model.num_classes=10"], r"gives \(2, 10\) .* toy has 3 classes"),
        (["outputs=own.py", "data.cache_dir=cache"], "Cannot write to own.py.*outputs=FOLDER"),
        (["outputs=diverged", "recipe.optimizer.lr=1e30"], "diverged: its loss is .* after epoch 1"),
    ],
)
def test_refused(here: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        trained(*overrides)


def test_pretend_data_is_refused(here: Path) -> None:
    config = config_of()
    config.data = config_with("data=random").data
    with pytest.raises(UserError, match="pretend images"):
        train_baseline(config, open_data(config), anew=config.force)


def config_with(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=vgg91"], "error: There is no model=vgg91: did you mean 'vgg19'"),
        (["model=lenet5,vgg91", "-m"], "error: There is no model=vgg91: did you mean 'vgg19'"),
        (["data=cifar"], "error: There is no data=cifar: did you mean 'cifar10"),
        (["recipe=onecycle"], "error: There is no recipe=onecycle: did you mean 'one_cycle'"),
        (["recipe.epoch=3"], "error: There is no recipe.epoch: did you mean 'epochs'"),
        ([], "error: No model was chosen. Give model=NAME"),
        (["model=torchvision"], "error: The model lacks name. Give model.name=VALUE"),
        (["model._target_=own.Nett"], "error: model._target_=own.Nett: own has no 'Nett': did you mean 'Net'"),
    ],
)
def test_errors_of_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *DATA, "tracking=none", f"hydra.run.dir={here}/run", *overrides])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    message = str(stopped.value.code)
    assert message.startswith(expected) and "_vgg" not in message and "_common" not in message
    assert "Traceback" not in capsys.readouterr().err


def test_a_sweep_goes_on_after_an_error(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*DATA, "tracking=none", "trainer=cpu", "recipe.epochs=1", "outputs=sweep", "hydra.sweep.dir=sweep"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *given, "model=lenet5", "model.image_size=16,32"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    out = capsys.readouterr()
    assert stopped.value.code == 1
    assert "error: lenet5 needs images of at least 32x32" in out.err
    assert "lenet5 on toy" in out.out and "Traceback" not in out.err


def start(place: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *DATA, "trainer=cpu", *overrides]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, cwd=place, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.thorough
def test_exact_resume_after_a_kill(place: Path) -> None:
    """SIGKILL in the middle of the third epoch; the undisturbed run's output is what a user sees, MLflow included."""
    own = ["model._target_=own.Net", "recipe.epochs=4"]
    victim = start(place, *own, "outputs=killed", "tracking=none", HANG_AT_STEP="13")  # of 5 per epoch
    undisturbed = start(place, *own, "outputs=undisturbed")
    while not (place / "hanging").exists():
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    resumed = start(place, *own, "outputs=killed", "tracking=none")
    (out, err), (again, problems) = undisturbed.communicate(), resumed.communicate()
    assert undisturbed.returncode == resumed.returncode == 0, err + problems

    lines = [line for line in out.splitlines() if line.strip()]
    assert lines[0].startswith(
        "own.Net on toy (81 + 9 + 33 images to train, validate, test): recipe one_cycle, 4 epochs, 1 x cpu 32-true"
    )
    assert [line.split()[:2] for line in lines[1:5]] == [["epoch", f"{i}/4"] for i in range(1, 5)]
    assert lines[5].startswith("val_top1 0.") and "undisturbed/baselines/own.Net-toy-seed0-" in lines[5]
    assert lines[6].startswith("Compress it: python compress.py data=folder data.root=toy") and len(lines) == 7
    assert not err.strip()
    epochs = [line for line in again.splitlines() if line.startswith("epoch")]
    assert "(going on)" in again and epochs[0].startswith("epoch 3/4")

    one, other = (Baseline.read(next((place / name / "baselines").iterdir())) for name in ("undisturbed", "killed"))
    assert same_weights(one, other) and one.metrics == other.metrics


@pytest.mark.thorough
def test_two_processes(place: Path) -> None:
    """Both see every image once where it counts; one of them writes, prints and logs."""
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    process = start(place, *ddp, "recipe.epochs=2", "recipe.batch_size=8", "model=lenet5", "force=true", "outputs=ddp")
    out, err = process.communicate()
    assert process.returncode == 0, err
    lines = [line for line in out.splitlines() if line.strip()]
    assert ["2 x cpu" in lines[0], *(line.split()[0] for line in lines[1:])] == [
        True,
        "epoch",
        "epoch",
        "val_top1",
        "Compress",
    ]
    folders = list((place / "ddp" / "baselines").iterdir())
    assert len(folders) == 1
    baseline = Baseline.read(folders[0])
    cwd = Path.cwd()
    os.chdir(place)
    try:
        assert baseline.metrics["test_top1"] == pytest.approx(top1(baseline, "test"))
        assert baseline.metrics["val_top1"] == pytest.approx(top1(baseline, "val"))
    finally:
        os.chdir(cwd)
    assert json.loads((folders[0] / "manifest.json").read_text())["seed"] == 0
    assert not list(folders[0].glob("*.ckpt"))
