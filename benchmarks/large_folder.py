"""How long it takes, and how much memory, to calibrate, test and train on a folder of very many images.

    uv run python benchmarks/large_folder.py FOLDER [files=200000] [batches=0] [compress.py's options ...]

FOLDER holds train/CLASS/IMAGE and test/CLASS/IMAGE. Hard links to its training images make a folder of as many files.
It is opened, what is used of it is decoded, and compress.py is run on it, after the same was done on FOLDER itself:
what the second run takes more is what the many files cost. With `batches`, all training images are decoded at last, and
so many batches of 64 are read in random order, as a training reads them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from common import composed

from qexp.data.loaders import Loaders
from qexp.data.opening import open_data
from qexp.measure.host_lock import HOST_LOCK

OPTIONS = (
    "model=torchvision", "model.name=mobilenet_v2", "checkpoint=random", "method=static", "data=folder",
    "data.image_size=224", "engine=onnxruntime", "engine@fp32_engines=eager", "measure.accuracy.images=2000",
    "tracking=none", "report.formats=[]",
)  # fmt: skip


def multiplied(source: Path, target: Path, files: int) -> None:
    """Make a folder of `files` hard links to the training images of another, whose test images are linked once."""
    for part, wanted in (("train", files), ("test", 0)):
        images = sorted(file for file in (source / part).glob("*/*"))
        for number in range(max(wanted, len(images))):
            image = images[number % len(images)]
            link = target / part / image.parent.name / f"{number:07}{image.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(image, link)


def opened(words: list[str]) -> str:
    """How long opening the data takes, how long decoding what is used of them, and how much memory both."""
    config, process = composed([word for word in words if not word.startswith("report.")]), psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    data = open_data(config)
    listed = time.perf_counter()
    data.calibration()
    data.prepare_evaluation("test", config.measure.accuracy.images)
    decoding, memory = time.perf_counter() - listed, (process.memory_info().rss - before) / 1e6
    return f"opened in {listed - began:.1f} s, decoded in {decoding:.1f} s, {memory:.0f} MB"


def watched(command: list[str]) -> str:
    """Run a command, and tell when it began to measure, its seconds, and the largest memory of its own process."""
    began, since, most, measured = time.perf_counter(), time.time(), 0.0, 0.0
    holder = HOST_LOCK.with_suffix(".json")  # which is written when a process begins to measure
    process = psutil.Popen(command)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it has just ended
            most = max(most, process.memory_info().rss / 1e6)
        if not measured and holder.exists() and holder.stat().st_mtime > since:
            measured = time.perf_counter() - began
        time.sleep(0.05)
    return f"measures after {measured:.1f} s, ends after {time.perf_counter() - began:.1f} s, {most:.0f} MB"


def trained_on(words: list[str], batches: int) -> str:
    """How fast all training images are decoded, and how fast batches of them are read in random order."""
    config, process = composed([word for word in words if not word.startswith("report.")]), psutil.Process()
    data, began = open_data(config), time.perf_counter()
    data.prepare_training()
    decoding = time.perf_counter() - began
    size = (data.folder / "train_pixels.bin").stat().st_size / 1e9
    loader = iter(Loaders(data, 64).train_dataloader())
    next(loader)
    before, began = process.memory_info().rss, time.perf_counter()
    for _, (images, _) in zip(range(batches), loader, strict=False):
        images.float().sum()  # reads every pixel
    rate = batches * 64 / (time.perf_counter() - began)
    memory = (process.memory_info().rss - before) / 1e6
    return (
        f"{len(data.train_indices)} training images decoded in {decoding:.0f} s to {size:.1f} GB of "
        f"{psutil.virtual_memory().total / 1e9:.1f} GB of memory; read at {rate:.0f} a second, {memory:.0f} MB more"
    )


def decoded(cache: Path) -> dict[str, int]:
    """How many images of each part are decoded."""
    return {file.name.removesuffix("_rows.npy"): int((np.load(file) >= 0).sum()) for file in cache.glob("*/*_rows.npy")}


def main() -> None:
    source, *options = sys.argv[1:]
    own = dict(word.split("=") for word in options if word.startswith(("files=", "batches=")))
    given = [word for word in options if not word.startswith(("files=", "batches="))]
    files, batches = int(own.get("files", 200_000)), int(own.get("batches", 0))
    with tempfile.TemporaryDirectory(dir=Path(source).parent) as folder:
        multiplied(Path(source), Path(folder) / "images", files)
        for name, root in (("the folder itself", source), (f"{files} files", f"{folder}/images")):
            outputs = Path(folder) / name.replace(" ", "_")
            words = [*OPTIONS, *given, f"data.root={root}", f"outputs={outputs}"]
            print(f"{name}: {opened([*words, 'data.mean=0.5', 'data.std=0.5'])}", flush=True)
            print(f"{name}: {watched([sys.executable, 'compress.py', *words])}", flush=True)
            counts = ", ".join(f"{count} {part}" for part, count in decoded(outputs / "cache" / "data").items())
            print(f"{name}: decoded {counts}", flush=True)
        if batches:
            print(trained_on(words, batches))


if __name__ == "__main__":
    main()
