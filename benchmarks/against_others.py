r"""Compares our int8 with ONNX Runtime's `quantize_static` and with NNCF's OpenVINO model of the same network.

    uv run --group benchmark python benchmarks/against_others.py model=resnet34 data=folder data.root=FOLDER \
        [batch_size=32] [threads=2]

All models take turns in one measurement. The options are those of compress.py (the method is `static` and the engine
`auto` unless told otherwise). All int8 models are calibrated on the same images, run on the same number of threads, and
scored on the same test images.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import composed, machine
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.engine.base import Engine
from qexp.files import building, file_digest
from qexp.jobs.artifact_factory import ArtifactFactory, prepare
from qexp.jobs.engines import accepted_by, engines_of
from qexp.jobs.fp32 import fastest_known
from qexp.measure.accuracy import top_k
from qexp.measure.base import ranking, ready
from qexp.measure.candidate import Candidate
from qexp.measure.disturbance import DISTURBED
from qexp.measure.host_lock import alone_on_host
from qexp.measure.images import EvaluationSet
from qexp.measure.latency import Latency, speedup
from qexp.places import CONF


def onnxruntime_static(fp32: Path, images: np.ndarray, folder: Path) -> str:
    """Quantise with ONNX Runtime's own tools, and return the name of the model's file.

    That means its preprocessing, the Q/DQ format, per-channel int8 weights, uint8 activations and its default min-max
    calibration.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.array_split(images, max(1, len(images) // 64)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    quant_pre_process(str(fp32), str(folder / "preprocessed.onnx"))
    quantize_static(
        folder / "preprocessed.onnx", folder / "model.onnx", Images(), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return "model.onnx"


def nncf_openvino(fp32: Path, images: np.ndarray, folder: Path) -> str:
    """Quantise with NNCF's post-training quantisation for OpenVINO and its defaults, and return the model's file."""
    import nncf
    import openvino

    model = openvino.Core().read_model(str(fp32))
    batches = np.array_split(images, len(images))  # one image each, because NNCF counts batches as samples
    quantised = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
    openvino.save_model(quantised, str(folder / "model.xml"), compress_to_fp16=False)
    return "model.xml"


def foreign(
    make: Callable[[Path, np.ndarray, Path], str], fp32: Candidate, engine: Engine, images: np.ndarray, root: Path
) -> Candidate:
    """Quantise a model with another tool, and make it a candidate like ours.

    Args:
        make: Writes the quantised model into a folder, and returns the name of its file.
        fp32: Candidate whose ONNX file is quantised.
        engine: Engine that runs the quantised model.
        images: Calibration images x[N,C,H,W] float32.
        root: Folder where the model is kept for the next time.
    """
    target = root / f"{fp32.artifact.key}-{make.__name__}"
    if not target.exists():
        with building(target) as folder:
            make(fp32.file, images, folder)
    engine.file = next(f.name for f in target.iterdir() if f.name in ("model.onnx", "model.xml"))
    files = {f.name: file_digest(f) for f in target.iterdir()}
    artifact = replace(fp32.artifact, folder=target, key=target.name, files=files, label=make.__name__)
    return Candidate(artifact, engine, fp32.batch, fp32.threads, fp32.limits)


def ours(config: DictConfig, factory: ArtifactFactory) -> Candidate:
    """Make our candidates, and choose the fastest in a short trial, as `engine=auto` does."""
    notes: dict[str, str] = {}
    method = instantiate(config.method)
    candidates = accepted_by(engines_of(config.engine), lambda engine: factory.candidate(method, engine), notes)
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    ranked = ranking(candidates, instantiate(config.engine.trial), notes)
    print("candidates, ms: " + ", ".join(f"{name} {ms:.3g}" for name, ms in ranked.items()), *notes.items())
    return candidates[next(iter(ranked))]


def engine_named(name: str) -> Engine:
    return instantiate(OmegaConf.load(CONF / "engine" / f"{name}.yaml"))


def main(options: list[str]) -> None:
    config = composed(options)
    factory = prepare(config)
    cache = Path(config.outputs) / "cache"
    fp32 = instantiate(config.baseline.method)
    onnxruntime, openvino = engine_named("onnxruntime"), engine_named("openvino")
    eager, plain = factory.candidate(fp32, instantiate(config.baseline.engine)), factory.candidate(fp32, onnxruntime)
    fp32_engines = accepted_by(engines_of(config.fp32_engines), lambda engine: factory.candidate(fp32, engine), {})
    best = fastest_known(fp32_engines, instantiate(config.fp32_engines.trial), cache, lambda candidate: None)
    if best is None:
        sys.exit(f"Nothing was compared: {DISTURBED}.")
    images, root = factory.data.calibration()[:].numpy(), Path(config.outputs) / "benchmarks" / "others"
    chosen = ours(config, factory)
    compared = {
        f"qexp {chosen.artifact.label} on {chosen.engine.name}": chosen,
        "ONNX Runtime quantize_static": foreign(onnxruntime_static, plain, onnxruntime, images, root),
        "NNCF on OpenVINO": foreign(nncf_openvino, plain, openvino, images, root),
        f"fp32 on {best.engine.name}": best,
        "fp32 on eager": eager,
    }
    latency: Latency = instantiate(config.measure.latency)
    factory.data.prepare_evaluation("test", None)
    tests = EvaluationSet.test(eager.artifact, cache)
    try:
        with alone_on_host():
            ready(list(compared.values()))
            windows = latency.take_turns(list(compared.values())).windows
        top1 = {name: accuracy(s, tests, cache) for name, s in compared.items()}
    finally:
        for s in compared.values():
            s.close()
    report(config, compared, windows, top1, latency.resolution)


def accuracy(candidate: Candidate, tests: EvaluationSet | None, cache: Path) -> float | None:
    """Top-1 on the test images, or None if it would mean nothing."""
    if tests is None or not tests.meaningful:
        return None
    return top_k(candidate.logits(tests, 250, cache)[0], tests.classes, 1)


def report(
    config: DictConfig,
    compared: dict[str, Candidate],
    windows: list[list[list[float]]],
    top1: dict[str, float | None],
    resolution: float,
) -> None:
    """Print a Markdown table, and write it and all samples to outputs/benchmarks."""
    medians = [[statistics.median(window) for window in taken] for taken in windows]
    lines = [
        f"{config.model.id}, batch {config.batch_size}, {config.threads} threads, {len(medians[0])} windows in turns",
        "",
        "| | top-1 % | size MB | ms | we are faster (95 % interval) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for (name, candidate), own in zip(compared.items(), medians, strict=True):
        ratio, *bounds = (m.value for m in speedup("speedup", own, medians[0], resolution))
        faster = (
            ""
            if own is medians[0]
            else f"{ratio:.2f}x ({bounds[0]:.2f} to {bounds[1]:.2f})"
            if bounds
            else f"{ratio:.2f}x"
        )
        shown = "–" if top1[name] is None else f"{100 * top1[name]:.2f}"  # type: ignore[operator]
        size = (
            sum(f.stat().st_size for f in candidate.file.parent.glob(f"{candidate.file.stem}.*"))
            if candidate.file.suffix == ".xml"
            else candidate.file.stat().st_size
        )
        lines.append(f"| {name} | {shown} | {size / 1e6:.3g} | {statistics.median(own):.3g} | {faster} |")
    lines += ["", machine()]
    print("\n".join(["", *lines]))
    folder = Path(config.outputs) / "benchmarks"
    stem = f"against_others-{config.model.id}-batch{config.batch_size}-threads{config.threads}".replace("/", "_")
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n")
    (folder / f"{stem}.json").write_text(
        json.dumps({"windows_ms": dict(zip(compared, windows, strict=True)), "top1": top1})
    )


if __name__ == "__main__":
    main(sys.argv[1:])
