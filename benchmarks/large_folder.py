"""How long it takes, and how much memory, to calibrate and test on few images of a folder of very many.

    uv run python benchmarks/large_folder.py FOLDER [files=200000] [compress.py's options ...]

FOLDER holds train/CLASS/IMAGE and test/CLASS/IMAGE. Hard links to its training images make a folder of as many files,
and compress.py is run twice on it, the second time with force=true, so that all is decoded already.
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
        for name, more in (("first", []), ("again", ["force=true"])):
            seconds, memory = watched([sys.executable, "compress.py", *words, *more])
            counts = ", ".join(f"{count} {part}" for part, count in decoded(outputs / "cache" / "data").items())
            print(f"{name}: {seconds:.1f} s, {memory:.0f} MB; decoded: {counts}")


if __name__ == "__main__":
    main()
