"""Pruning by magnitude takes the smallest weights, which stay away while the others are trained.

The file is smaller for it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.nn.utils import prune as torch_prune

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.prune import weights as module
from qexp.method.prune.base import weights_of
from qexp.method.prune.masks import apply_masks, global_masks, gradual_sparsity, local_masks, two_of_four_mask
from qexp.types import UserError
from tests import configured
from tests.method.training import SOURCE, pruning


def zeros(network: nn.Module, first_last: bool = True) -> int:
    return sum(int((weight == 0).sum()) for weight in weights_of(network, first_last).values())


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in weights_of(network).values())


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_every_layer_loses_its_least_weights(network: nn.Module, share: float) -> None:
    weights = weights_of(network)
    masks = local_masks(weights, share)
    for name, weight in weights.items():
        values = np.sort(np.abs(weight.detach().numpy().astype(np.float64)).reshape(-1))
        gone = round(share * len(values))
        assert int((~masks[name]).sum()) == gone
        assert (masks[name].numpy() == (np.abs(weight.detach().numpy()) > values[gone - 1])).all()


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_global_pruning_has_one_threshold(network: nn.Module, share: float) -> None:
    weights = weights_of(network)
    values = np.sort(
        np.concatenate([np.abs(w.detach().numpy()).reshape(-1) for w in weights.values()]).astype(np.float64)
    )
    gone = round(share * len(values))
    masks = global_masks(weights, share)
    assert sum(int((~mask).sum()) for mask in masks.values()) == gone
    for name, weight in weights.items():
        assert (masks[name].numpy() == (np.abs(weight.detach().numpy()) > values[gone - 1])).all()


def test_masks_are_those_of_torch(network: nn.Module) -> None:
    locally, globally = copy.deepcopy(network), copy.deepcopy(network)
    layers = [(globally.get_submodule(name), "weight") for name in weights_of(network)]
    torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=0.6)
    for name in weights_of(network):
        torch_prune.l1_unstructured(locally.get_submodule(name), "weight", amount=0.6)
    for pruned, masks in (
        (locally, local_masks(weights_of(network), 0.6)),
        (globally, global_masks(weights_of(network), 0.6)),
    ):
        assert all(torch.equal(pruned.get_submodule(name).weight_mask.bool(), mask) for name, mask in masks.items())


@pytest.mark.parametrize("shape", [(6, 8, 3, 3), (10, 16), (4, 4, 1, 1)])
def test_two_of_every_four_input_channels_are_left(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = two_of_four_mask(weight)
    assert mask is not None and mask.shape == weight.shape
    last = weight.abs().movedim(1, -1).numpy().reshape(-1, 4)
    expected = np.zeros(last.shape, bool)
    for row, magnitudes in zip(expected, last, strict=True):
        row[sorted(range(4), key=lambda i: magnitudes[i])[2:]] = True
    assert (mask.movedim(1, -1).numpy().reshape(-1, 4) == expected).all()


def test_layers_without_fours_stay_dense(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    assert two_of_four_mask(torch.ones(8, 3, 3, 3)) is None
    result = pruning(pattern="2:4").transform(network, pretend_data, tmp_path)
    for name, weight in weights_of(result).items():
        assert int((weight == 0).sum()) == (0 if weight.shape[1] % 4 else weight.numel() // 2), name
    assert "2:4" in pruning(pattern="2:4").notes["pattern"]


def test_pruned_weights_are_positive_zeros() -> None:
    weights = {"layer": nn.Parameter(torch.tensor([-0.1, 0.1, -2.0, 3.0]))}
    apply_masks(weights, local_masks(weights, 0.5))
    assert weights["layer"].detach().numpy().view(np.uint32)[:2].tolist() == [0, 0]


def test_the_gradual_schedule_is_the_papers() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with s_i = 0 (Zhu & Gupta, 2017, eq. 1)."""
    for step, steps, final in ((0, 40, 0.8), (13, 40, 0.8), (40, 40, 0.6), (60, 40, 0.6)):
        expected = final + (0 - final) * (1 - min(step, steps) / steps) ** 3
        assert gradual_sparsity(final, step / steps) == pytest.approx(expected, abs=1e-12)


@pytest.mark.integration
@pytest.mark.parametrize(("scope", "first_last"), [("global", True), ("layer", True), ("global", False)])
def test_the_artifact_computes_what_the_masked_network_does(
    scope: str, first_last: bool, pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    method = pruning(scope=scope, first_last=first_last)
    artifact = make_artifact(method, network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    weights = weights_of(network, first_last)
    find = {"global": global_masks, "layer": local_masks}[scope]
    apply_masks(weights, find(weights, 0.6))
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        expected = torch.export.export(network, (x,)).module()(x).numpy()
    assert (configured.engine("eager").open(artifact.folder / artifact.graph, 1)(x.numpy()) == expected).all()
    assert artifact.coded and "computed dense" in artifact.notes["coded"]


@pytest.mark.integration
def test_sparsity_is_counted_in_the_file(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    for share in (0.3, 0.9):
        artifact = make_artifact(pruning(sparsity=share), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
        assert artifact.sparsity == pytest.approx(round(share * count(network)) / count(network), abs=1e-12)
        assert (artifact.folder / "sparsity.csv").read_text().startswith("layer,weights,zeros,share\nstem.0,216,")


@pytest.mark.integration
def test_the_file_shrinks_as_weights_do(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide, packed = configured.network("resnet8", blocks=[1, 1], widths=[32, 64]).eval(), []
    for share in (0.01, 0.6, 0.9):
        artifact = make_artifact(pruning(sparsity=share), wide, pretend_data, EngineSpec(), SOURCE, tmp_path)
        packed.append(artifact.packed_bytes)
    rest = 4 * sum(
        value.numel()
        for name, value in wide.state_dict().items()
        if name not in {f"{n}.weight" for n in weights_of(wide)}
    )
    values = 4 * count(wide)
    # Flags take h(0.6) = 0.971 and h(0.9) = 0.469 bits, values at most their 32; the rest is rounding, and what each
    # layer's code begins with.
    for size, least, share in ((packed[1], 0.971, 0.4), (packed[2], 0.469, 0.1)):
        assert size - rest < values * (least / 32 + share) * 1.02 + 100 * len(weights_of(wide))
    assert packed[0] - rest > 0.75 * values


@pytest.mark.integration
@pytest.mark.parametrize("schedule", ["one_shot", "gradual"])
def test_fine_tuning_keeps_zeros_and_changes_the_rest(
    schedule: str, pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watched(module.PruningModule):
        def after_step(self) -> None:
            super().after_step()
            seen.append(zeros(self.network))

    monkeypatch.setattr(module, "PruningModule", Watched)
    (tmp_path / "artifact").mkdir()
    method = pruning({"epochs": 3}, schedule=schedule, interval=1, ramp=0.6)
    result = method.transform(network, pretend_data, tmp_path / "artifact")
    wanted = round(0.6 * count(network))
    assert zeros(result) == wanted and seen[-1] == wanted and seen == sorted(seen)
    steps = len(seen)
    if schedule == "one_shot":
        assert seen[0] == wanted
        untouched = global_masks(weights_of(network), 0.6)
        assert all(torch.equal(weight != 0, untouched[name]) for name, weight in weights_of(result).items())
    else:
        expected = [
            round(count(network) * 0.6 * (1 - (1 - min(1, step / (0.6 * steps))) ** 3)) for step in range(1, steps + 1)
        ]
        assert np.abs(np.array(seen) - expected).max() <= 1
    assert all(
        not torch.equal(a, b) for a, b in zip(weights_of(result).values(), weights_of(network).values(), strict=True)
    )
    assert not list(tmp_path.glob(".training-*"))


def test_trained_weights_are_stored_in_the_usual_order(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "artifact").mkdir()
    result = pruning({"epochs": 1, "channels_last": True}).transform(network, pretend_data, tmp_path / "artifact")
    assert all(weight.is_contiguous() for weight in weights_of(result).values())


def test_an_epoch_that_is_not_pruned_enough_is_not_kept(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation falls from epoch to epoch here, so that the first would be the best."""
    monkeypatch.setattr(module.PruningModule, "_evaluate", lambda self, batch, part, metrics: None)
    monkeypatch.setattr(
        module.PruningModule,
        "on_validation_epoch_end",
        lambda self: self.log("val_top1", 1.0 - 0.1 * self.current_epoch),
    )
    (tmp_path / "artifact").mkdir()
    result = pruning({"epochs": 3}, schedule="gradual", interval=1, ramp=1.0).transform(
        network, pretend_data, tmp_path / "artifact"
    )
    assert zeros(result) == round(0.6 * count(network))


class Stop(Exception):
    pass


@pytest.mark.integration
def test_a_training_goes_on_with_its_zeros(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(place: str, stop_after: int | None) -> nn.Module:
        (tmp_path / place).mkdir(exist_ok=True)
        method = pruning({"epochs": 3}, schedule="gradual", interval=2, ramp=0.5)
        begin = Trainer.fit

        def stopping(trainer: Trainer, model: Any, *arguments: Any, **options: Any) -> None:
            end = model.on_train_epoch_start

            def start() -> None:
                if model.current_epoch == stop_after:
                    raise Stop
                end()

            model.on_train_epoch_start = start
            begin(trainer, model, *arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "fit", stopping)
            return method.transform(network, pretend_data, tmp_path / place)

    whole = run("whole", None)
    (tmp_path / "other").mkdir()
    with pytest.raises(Stop):
        run("other", 2)
    resumed = run("other", None)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0}, "between 0 and 1"),
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"scope": "globl"}, "did you mean 'global'"),
        ({"pattern": "1:4"}, "no pattern '1:4'"),
        ({"schedule": "cubic"}, "no schedule 'cubic'"),
        ({"schedule": "gradual"}, "needs recipe.epochs of at least 1"),
        ({"schedule": "gradual", "recipe": {"epochs": 1}, "pattern": "2:4"}, "no pattern"),
        ({"ramp": 0}, "ramp=0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pruning(**options)


def test_a_network_without_fours_cannot_have_the_pattern(pretend_data: RandomData, tmp_path: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).eval()
    with pytest.raises(UserError, match="multiple of 4"):
        pruning(pattern="2:4").transform(network, pretend_data, tmp_path)
    with pytest.raises(UserError, match="no module nn.Conv1d"):
        pruning(first_last=False).transform(network, pretend_data, tmp_path)
