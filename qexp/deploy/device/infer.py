"""What images show: `python infer.py IMAGE ...`, of image files (which need Pillow) or arrays [H,W,C] uint8 as .npy files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from engine import load
from pixels import normalise, softmax, to_array

HERE = Path(__file__).parent
ABOUT, INPUT, LABELS = (
    json.loads((HERE / f"{name}.json").read_text()) for name in ("deployment", "preprocessing", "labels")
)


def read(file: str) -> np.ndarray:
    """[size,size,channels] uint8, as the training images were read."""
    if file.endswith(".npy"):
        return np.load(file, allow_pickle=False)
    from PIL import Image

    with Image.open(file) as image:
        return to_array(image, INPUT["image_size"], INPUT["channels"])


def network(threads: int = ABOUT["threads"]) -> Any:
    """The loaded network: x[N,C,H,W] float32 -> logits[N,K]."""
    return load(HERE / ABOUT["file"], threads, **ABOUT["arguments"])


def main() -> None:
    forward = network()
    for file in sys.argv[1:]:
        (shares,) = softmax(np.asarray(forward(normalise(read(file)[None], INPUT["mean"], INPUT["std"]))))
        print(file, *(f"{LABELS[i]} {shares[i]:.4f}" for i in np.argsort(-shares)[:5]), sep="\t")


if __name__ == "__main__":
    main()
