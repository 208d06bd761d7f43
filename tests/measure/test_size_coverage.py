"""Bytes against the file system and a zstd round trip; shares by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from qexp.artifact import Artifact, Layer
from qexp.measure.base import Context
from qexp.measure.candidate import Candidate
from qexp.measure.coverage import Coverage
from qexp.records import Measurement
from tests import configured
from tests.measure.fake_engines import Fake, MadeFor

LEVELS = (1, 19)
QUICK = configured.measure("size", zstd_level=1)


def by_name(found: list[Measurement]) -> dict[str, float]:
    return {m.name: m.value for m in found}


def test_sizes_are_bytes_of_the_file_the_engine_loads(
    make_artifact: Callable[..., Artifact], make_candidate: Callable[..., Candidate], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 20, (3, 10_000)).round()  # float64 of few values, which compress well
    candidate = make_candidate(Fake(), make_artifact("small", weights, packed_bytes=123_000))
    baseline = make_candidate(Fake(), make_artifact("large", np.tile(weights, 3)))
    (candidate.artifact.folder / "other.bin").write_bytes(bytes(1000))  # another engine's file
    found = {
        level: configured.measure("size", zstd_level=level).measure(Context(candidate, baseline, None, tmp_path))
        for level in LEVELS
    }
    file = candidate.artifact.folder / "model.pt2"

    values = by_name(found[19])
    assert values["size_mb"] * 1e6 == file.stat().st_size
    assert values["packed_size_mb"] == 0.123
    assert values["size_ratio"] == baseline.file.stat().st_size / file.stat().st_size
    assert {m.name: m.kind for m in found[19]}["packed_size_mb"] == "estimated"
    for level in LEVELS:
        packed = zstandard.ZstdCompressor(level=level).compress(file.read_bytes())
        assert zstandard.decompress(packed) == file.read_bytes()
        assert by_name(found[level])["zstd_size_mb"] * 1e6 == pytest.approx(len(packed), rel=0.02)
    assert by_name(found[19])["zstd_size_mb"] < by_name(found[1])["zstd_size_mb"] < values["size_mb"] / 4


def test_of_an_engine_with_a_file_for_each_batch_size_the_one_in_use_counts(
    make_artifact: Callable[..., Artifact], make_candidate: Callable[..., Candidate], tmp_path: Path
) -> None:
    engine, artifact = MadeFor(), make_artifact()
    lowered = [engine.lower(artifact, batch, threads=1) for batch in (2, 8)]
    assert set(lowered[1].files) == {"model.pt2", "model-2-1.fake", "model-8-1.fake"}
    for batch in (2, 8):
        candidate = make_candidate(engine, lowered[1], batch=batch)
        assert by_name(QUICK.measure(Context(candidate, None, None, tmp_path)))["size_mb"] == (1000 * batch + 1) / 1e6
    assert candidate.window(3, 0)


def test_without_a_baseline_there_is_no_ratio(make_context: Callable[..., Context]) -> None:
    assert "size_ratio" not in by_name(QUICK.measure(make_context(Fake())))


def coverage(context: Context) -> dict[str, float]:
    found = Coverage().measure(context)
    assert {m.name: m.unit for m in found} == {
        "params_m": "M", "macs_m": "M", "quantized_params_share": "fraction", "quantized_macs_share": "fraction",
        **({"macs_ratio": "x"} if context.baseline else {}),
    }  # fmt: skip
    return by_name(found)


def test_shares_are_those_of_the_quantised_layers(
    make_artifact: Callable[..., Artifact], make_context: Callable[..., Context]
) -> None:
    layers = (
        Layer("conv", "conv2d", 100, 900_000),
        Layer("fc1", "linear", 600, 80_000, "int8", "uint8"),
        Layer("fc2", "linear", 300, 20_000, "float16"),
    )
    context = make_context(Fake(), artifact=make_artifact(layers=layers, parameters=1_050, macs=1_000_000))
    assert coverage(context) == {
        "params_m": 0.00105, "macs_m": 1.0, "quantized_params_share": 900 / 1050, "quantized_macs_share": 0.1,
    }  # fmt: skip


def test_what_a_method_wrote_for_people_is_kept_with_the_run(
    make_artifact: Callable[..., Artifact], make_context: Callable[..., Context]
) -> None:
    made = make_artifact(files={"model.pt2": "", "layers.csv": "", "plan.yaml": ""})
    (made.folder / "layers.csv").write_text("layer\nconv\n")
    (made.folder / "plan.yaml").write_text("conv: 4\n")
    context = make_context(Fake(), artifact=made)
    coverage(context)
    assert context.texts == {"layers.csv": "layer\nconv\n", "plan.yaml": "conv: 4\n"}


@pytest.mark.parametrize("layers", [(), (Layer("fc", "linear", 300, 20_000),)])
def test_shares_without_any_quantised_layer_are_zero(
    layers: tuple[Layer, ...], make_artifact: Callable[..., Artifact], make_context: Callable[..., Context]
) -> None:
    values = coverage(
        make_context(Fake(), artifact=make_artifact(layers=layers, macs=sum(layer.macs for layer in layers)))
    )
    assert values["quantized_params_share"] == values["quantized_macs_share"] == 0


def test_zeros_and_notes_of_the_artifact_are_in_the_record(
    make_artifact: Callable[..., Artifact], make_context: Callable[..., Context]
) -> None:
    context = make_context(Fake(), artifact=make_artifact(sparsity=0.25, notes={"coded": "computed dense"}))
    assert by_name(Coverage().measure(context))["sparsity"] == 0.25 and context.notes["coded"] == "computed dense"


def test_the_size_of_coded_weights_was_measured(
    make_artifact: Callable[..., Artifact], make_context: Callable[..., Context]
) -> None:
    kinds = []
    for coded in (False, True):
        found = QUICK.measure(
            make_context(Fake(), artifact=make_artifact(f"coded {coded}", coded=coded, packed_bytes=2000))
        )
        kinds += [(m.value, m.kind) for m in found if m.name == "packed_size_mb"]
    assert kinds == [(0.002, "estimated"), (0.002, "measured")]


def test_operations_are_compared_with_the_baselines(
    make_artifact: Callable[..., Artifact], make_context: Callable[..., Context]
) -> None:
    context = make_context(Fake(), baseline=Fake(), artifact=make_artifact("pruned", macs=4000))
    values = coverage(context)
    assert values["macs_m"] == 0.004 and values["macs_ratio"] == 10000 / 4000
    assert "macs_ratio" not in coverage(make_context(Fake(), artifact=make_artifact("alone")))
