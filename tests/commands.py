"""What tests of the entry scripts share: overrides for small and quick runs, and what was recorded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from qexp.places import CONF


def static_label() -> str:
    """Return what a table says of static quantisation on this processor."""
    from qexp.method.quantize.base import products_saturate  # with torchao, which takes seconds

    return "static int8" + (" 7-bit weights" if products_saturate() else "")


def without(node: str, *engines: str) -> list[str]:
    """Overrides that leave engines out of the candidates of the config node `engine` or `fp32_engines`."""
    return [f"{node}.candidates.{engine}=null" for engine in engines]


SLOW = ("inductor", "executorch", "openvino", "litert", "ncnn")  # to prepare
FEW_WINDOWS = [
    "measure.latency.windows=2", "measure.latency.calls=2", "measure.latency.window_s=0.01",
    "measure.latency.warmup_calls=2",
    "measure.latency.warmup_s=0.01", "threads=1",
]  # fmt: skip
QUICK = [*FEW_WINDOWS, *without("fp32_engines", *SLOW, "torch_ao", "eager")]
PRETEND = [
    "model=resnet8",
    "data=random",
    "data.image_size=16",
    "data.images=32",
    "data.calibration_images=8",
    "checkpoint=random",
]
FAKE = "tests.measure.fake_engines"  # engines that take any graph for theirs
FAKE_FP32 = [
    "engine@fp32_engines=eager",
    *(f"{e}._target_={FAKE}.Fake" for e in ("fp32_engines", "baseline.engine")),
    *(f"~{e}.device" for e in ("fp32_engines", "baseline.engine")),
]
FEW_FORMATS = "report.formats=[md,csv]"  # without pictures
TRAINED = [
    "data=folder", "data.root=pictures", "data.image_size=16", "data.channels=1", "data.calibration_images=16",
    "model=resnet8",
    "recipe.epochs=1", "recipe.batch_size=8", "trainer=cpu", "train_missing=true", FEW_FORMATS,
]  # fmt: skip
CHEAP = [f"measure.{name}=null" for name in ("latency", "energy", "operators", "memory", "parity")]
NOWHERE = [
    *(option for option in PRETEND if not option.startswith("checkpoint")),
    "checkpoint=/nowhere/at all",
]  # every job fails at once
RunCommand = Callable[..., tuple[int, str]]


def fake(name: str, *options: str) -> list[str]:
    """Overrides that put an engine of tests/measure/fake_engines.py, and others for fp32, in the place of real ones."""
    return [
        "engine=eager",
        "~engine.device",
        f"engine._target_={FAKE}.{name}",
        *(f"+engine.{o}" for o in options),
        *FAKE_FP32,
    ]


def fake_candidate(replaced: str, name: str, *options: str) -> list[str]:
    """Overrides that put an engine of tests/measure/fake_engines.py in the place of a candidate of engine=auto."""
    node = f"engine.candidates.{replaced}"
    theirs = {*OmegaConf.load(CONF / "engine" / f"{replaced}.yaml")} - {"_target_"}
    return [f"{node}._target_={FAKE}.{name}", *(f"~{node}.{o}" for o in theirs), *(f"+{node}.{o}" for o in options)]


def small(images: Path, *more: str) -> list[str]:
    data = ["data=folder", f"data.root={images}", "data.image_size=16", "data.channels=1", "data.calibration_images=16"]
    return [*data, "model=resnet8", "recipe.epochs=1", "recipe.batch_size=8", "trainer=cpu", *QUICK, *more]


def write_images(folder: Path) -> Path:
    """Two classes that differ in brightness, 16x16 grey: 40 images to train, 20 to test each."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for label, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(100 * label, 120 + 100 * label, (16, 16), np.uint8)
                file = folder / part / name / f"{index}.png"
                Image.fromarray(pixels).save(file)
                os.utime(file, ns=(0, 0))  # so that images that are written again are the same to qexp
    return folder


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(f.read_text()) for f in sorted((tmp_path / "outputs" / "sweeps").rglob("record.json"))]


def metrics(record: dict[str, Any]) -> dict[str, float]:
    return {m["name"]: m["value"] for m in record["measurements"]}
