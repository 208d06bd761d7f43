"""How long it takes, and how much memory, to calibrate and test on few images of a folder of very many.

    uv run python benchmarks/large_folder.py FOLDER [files=200000] [compress.py's options ...]

FOLDER holds train/CLASS/IMAGE and test/CLASS/IMAGE. Hard links to its training images make a folder of as many files.
It is opened, what is used of it is decoded, and compress.py is run on it.
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

from qexp.data.opening import open_data

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


def watched(command: list[str]) -> tuple[float, float]:
    """Run a command.

    Returns:
        Its seconds, and the largest memory of its own process in MB.
    """
    began, most = time.perf_counter(), 0.0
    process = psutil.Popen(command)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it has just ended
            most = max(most, process.memory_info().rss / 1e6)
        time.sleep(0.05)
    return time.perf_counter() - began, most


def decoded(cache: Path) -> dict[str, int]:
    """How many images of each part are decoded."""
    return {file.name.removesuffix("_rows.npy"): int((np.load(file) >= 0).sum()) for file in cache.glob("*/*_rows.npy")}


def main() -> None:
    source, *options = sys.argv[1:]
    files = next((int(word[6:]) for word in options if word.startswith("files=")), 200_000)
    given = [word for word in options if not word.startswith("files=")]
    with tempfile.TemporaryDirectory(dir=Path(source).parent) as folder:
        multiplied(Path(source), Path(folder) / "images", files)
        outputs = Path(folder) / "outputs"
        words = [*OPTIONS, *given, f"data.root={folder}/images", f"outputs={outputs}"]
        print(opened([*words, "data.mean=0.5", "data.std=0.5"]), flush=True)
        seconds, memory = watched([sys.executable, "compress.py", *words])
        counts = ", ".join(f"{count} {part}" for part, count in decoded(outputs / "cache" / "data").items())
        print(f"compressed in {seconds:.1f} s, {memory:.0f} MB; decoded: {counts}")


if __name__ == "__main__":
    main()
