"""Training with rounding in place: what is trained is what is converted, whatever interrupts it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.fx import GraphModule

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.graph import example_input
from qexp.method.quantize import qat as module
from qexp.method.quantize.fake_quantize import PackedWeight, WeightFakeQuantize, quantizers
from qexp.method.quantize.qat import QAT, QATModule
from qexp.method.quantize.qat_graph import ConvNorm, estimate_norms, learn_ranges, sizes, trainable
from qexp.types import UserError
from tests.method.training import SOURCE, TRAINER, qat
from tests.tiers import more

pytestmark = pytest.mark.integration


def test_it_trains_in_fp32_unless_told_otherwise_and_the_artifact_knows() -> None:
    auto, told = (qat({"trainer": {**TRAINER, "precision": precision}}) for precision in ("auto", "bf16-mixed"))
    assert auto.options["recipe"]["precision"] == "32-true" and told.options["recipe"]["precision"] == "bf16-mixed"


def prepared_and_trainable(method: QAT, network: nn.Module, data: RandomData) -> tuple[GraphModule, GraphModule]:
    prepared = method.calibrated(network, data, EngineSpec())
    return prepared, trainable(prepared, network, data)


def test_before_training_both_graphs_compute_the_same(pretend_data: RandomData, network: nn.Module) -> None:
    prepared, trained = prepared_and_trainable(qat(), network, pretend_data)
    x = pretend_data.calibration()[:]
    assert sum(isinstance(m, ConvNorm) for m in trained.modules()) == sum(
        isinstance(m, nn.BatchNorm2d) for m in network.modules()
    )
    with torch.no_grad():
        torch.testing.assert_close(trained.eval()(x), prepared(x)[0] if isinstance(prepared(x), tuple) else prepared(x))


def test_without_rounding_it_trains_as_the_network_does(pretend_data: RandomData, network: nn.Module) -> None:
    _, trained = prepared_and_trainable(qat(), network, pretend_data)
    for quantizer in quantizers(trained).values():
        quantizer.enabled = False
    x, twin = pretend_data.calibration()[:], copy.deepcopy(network).train()
    ours, expected = trained.train()(x), twin(x)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    mine = [m.norm for m in trained.modules() if isinstance(m, ConvNorm)]
    means = sorted(float(norm.running_mean.sum()) for norm in norms)  # type: ignore[union-attr]
    np.testing.assert_allclose(sorted(float(norm.running_mean.sum()) for norm in mine), means, rtol=1e-3, atol=1e-4)


def joined(trained: GraphModule) -> list[ConvNorm]:
    return [module for module in trained.modules() if isinstance(module, ConvNorm)]


def disturb(trained: GraphModule) -> None:
    """Batch norms as training may leave them, far from where they were."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in joined(trained):
            for tensor in (module.norm.running_var, module.norm.weight):
                tensor.mul_(torch.empty(tensor.shape).uniform_(0.5, 2, generator=generator))  # type: ignore[union-attr]
            module.norm.bias.add_(torch.empty(module.norm.bias.shape).uniform_(-0.3, 0.3, generator=generator))


@pytest.mark.parametrize(
    "options", [{}, {"group_size": 5}, {"weight_symmetric": False}], ids=["channels", "groups", "affine"]
)
def test_statistics_move_scales_and_no_integers(
    options: dict[str, Any], pretend_data: RandomData, network: nn.Module
) -> None:
    prepared, trained = prepared_and_trainable(qat(**options), network, pretend_data)
    learn_ranges(trained, "lsq", "lsq", sizes(trained, example_input(pretend_data, 1)))
    before = {
        name: PackedWeight.of(m.weight * m.factor().view(-1, 1, 1, 1), q).integers()
        for name, m, q in weight_quantizers(trained)
    }
    disturb(trained)
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        expected = trained.eval()(x)
        module.hand_over(trained, prepared)
        torch.testing.assert_close(prepared(x)[0] if isinstance(prepared(x), tuple) else prepared(x), expected)
    after = {name: PackedWeight.of(m.folded()[0], q).integers() for name, m, q in weight_quantizers(trained)}
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def weight_quantizers(trained: GraphModule) -> list[tuple[str, ConvNorm, WeightFakeQuantize]]:
    found = [(name, m, m.quantizer) for name, m in trained.named_modules() if isinstance(m, ConvNorm)]
    return [(name, m, quantizer) for name, m, quantizer in found if isinstance(quantizer, WeightFakeQuantize)]


def test_one_scale_for_all_channels_follows_the_statistics(pretend_data: RandomData, network: nn.Module) -> None:
    prepared, trained = prepared_and_trainable(qat(per_channel=False), network, pretend_data)
    disturb(trained)
    kept = [module.norm.running_var.clone() for module in joined(trained)]  # type: ignore[union-attr]
    estimate_norms(trained, pretend_data.calibration()[:], 16)
    assert all(torch.equal(m.norm.running_var, was) for m, was in zip(joined(trained), kept, strict=True))  # type: ignore[arg-type]
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        expected = trained(x)
        module.hand_over(trained, prepared)
        torch.testing.assert_close(prepared(x)[0] if isinstance(prepared(x), tuple) else prepared(x), expected)


def test_statistics_are_those_that_torch_finds_anew(pretend_data: RandomData, network: nn.Module) -> None:
    _, trained = prepared_and_trainable(qat(), network, pretend_data)
    for quantizer in quantizers(trained).values():
        quantizer.enabled = False
    x, twin = pretend_data.calibration()[:], copy.deepcopy(network)
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.optim.swa_utils.update_bn(x.split(16), twin)
    momenta = [m.norm.momentum for m in joined(trained)]
    estimate_norms(trained, x, 16)
    assert not any(m.training for m in trained.modules()) and momenta == [m.norm.momentum for m in joined(trained)] != [
        None
    ] * len(norms)
    for statistic in ("running_mean", "running_var"):
        found, expected = (
            [getattr(norm, statistic) for norm in each] for each in ([m.norm for m in joined(trained)], norms)
        )
        np.testing.assert_allclose(
            sorted(float(t.double().norm()) for t in found),
            sorted(float(t.double().norm()) for t in expected),
            rtol=1e-4,
        )


def test_a_factor_keeps_its_sign(pretend_data: RandomData, network: nn.Module) -> None:
    with torch.no_grad():
        next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).weight[:2] = torch.tensor([-0.5, 0.5])
    _, trained = prepared_and_trainable(qat(), network, pretend_data)
    first = joined(trained)[0]
    with torch.no_grad():
        first.norm.weight[:2] = torch.tensor([0.3, -0.3])
    first.keep_sign()
    assert (
        first.norm.weight[:2].tolist() == [0, 0]
        and first.factor()[0] < 0 < first.factor()[1]
        and bool((first.rescaled() > 0).all())
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        *more(
            {"weights": "moving_average", "activations": "moving_average"},
            {"activations": "pact"},
            {"recipe": {"distillation": 0.5}},
            {"freeze_norms": 0.5},
        ),
    ],
)
def test_what_was_trained_is_what_is_converted(
    options: dict[str, Any],
    pretend_data: RandomData,
    network: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, seen = pretend_data.calibration()[:], {}
    hand_over = module.hand_over

    def remember(trained: GraphModule, prepared: GraphModule) -> None:
        with torch.no_grad():
            seen["logits"] = trained.eval()(x)
        seen["scales"] = {name: q.scale.detach().clone() for name, q in quantizers(trained).items()}
        hand_over(trained, prepared)

    monkeypatch.setattr(module, "hand_over", remember)
    artifact = make_artifact(qat(**options), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    answer = torch.export.load(artifact.folder / artifact.graph).module()(x)
    error = (answer - seen["logits"]).abs().max() / seen["logits"].abs().max()
    assert error < 0.01 and artifact.simulated
    assert not list(tmp_path.glob(".training-*")), "checkpoints are gone when they are of no use"
    before = quantizers(qat(**options).calibrated(network, pretend_data, EngineSpec()))
    moved = [not torch.equal(seen["scales"][name], before[name].scale) for name in before if name in seen["scales"]]
    assert moved and np.mean(moved) > 0.5, "scales learn"


def test_the_gradient_factor_is_that_of_the_paper(pretend_data: RandomData, network: nn.Module) -> None:
    _, trained = prepared_and_trainable(qat(), network, pretend_data)
    learn_ranges(trained, "lsq", "lsq", sizes(trained, example_input(pretend_data, 1)))
    stem = trained.get_submodule("stem_0_with_norm.quantizer")
    assert isinstance(stem, WeightFakeQuantize)
    assert stem.gradient_factor == pytest.approx(1 / (8 * 3 * 9 * 127) ** 0.5)
    image = next(q for name, q in quantizers(trained).items() if name == "activation_post_process_0")
    assert image.gradient_factor == pytest.approx(1 / (3 * 16 * 16 * 255) ** 0.5)


def test_weight_decay_spares_scales(pretend_data: RandomData, network: nn.Module) -> None:
    method = qat()
    _, trained = prepared_and_trainable(method, network, pretend_data)
    learn_ranges(trained, "lsq", "lsq", sizes(trained, example_input(pretend_data, 1)))
    student = QATModule(
        trained, network, 10, method.recipe, freeze_norms=1.0, images=pretend_data.calibration()[:], batch=64
    )
    others, scales = student.parameter_groups()
    assert scales["weight_decay"] == 0 and len(scales["params"]) == len(quantizers(trained))
    counted = [id(p) for group in (others, scales) for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in trained.parameters())


@pytest.mark.thorough
def test_out_of_memory_halves_the_steps_and_goes_on(
    pretend_data: RandomData,
    network: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit, tried = Trainer.fit, []

    def too_large(self: Trainer, model: Any, data: Any, **options: Any) -> None:
        tried.append((data.batch_size, self.accumulate_grad_batches))
        if len(tried) < 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
            )
        fit(self, model, data, **options)

    monkeypatch.setattr(Trainer, "fit", too_large)
    make_artifact(qat({"epochs": 1}), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert tried == [(16, 1), (8, 2), (4, 4)], "the effective batch stays"
    assert "out of memory: going on with each step in 4 batches of 4 images" in capsys.readouterr().out


def test_another_error_is_not_taken_for_it(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Trainer, "fit", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        make_artifact(qat(), network, pretend_data, EngineSpec(), SOURCE, tmp_path)


@pytest.mark.thorough
def test_a_killed_training_goes_on(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make_artifact(qat(), network, pretend_data, EngineSpec(), SOURCE, tmp_path / "undisturbed")
    validate, epochs = QATModule.on_train_epoch_start, []

    def killed(self: QATModule) -> None:
        epochs.append(self.current_epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        validate(self)

    monkeypatch.setattr(QATModule, "on_train_epoch_start", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_artifact(qat(), network, pretend_data, EngineSpec(), SOURCE, tmp_path / "killed")
    resumed = make_artifact(qat(), network, pretend_data, EngineSpec(), SOURCE, tmp_path / "killed")
    assert epochs == [0, 1, 1], "the first epoch is not trained again"
    x = pretend_data.calibration()[:]
    answers = [torch.export.load(a.folder / a.graph).module()(x) for a in (undisturbed, resumed)]
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "lsqq"}, "did you mean 'lsq'"),
        ({"weights": "pact"}, "activations are clipped"),
        ({"recipe": {"distillation": 2}}, "distillation=2"),
        ({"recipe": {"temperature": 0}}, "temperature=0"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        qat(**options)
