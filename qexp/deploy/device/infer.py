"""Classifies images: `python infer.py IMAGE ...`

An image is an image file, which needs Pillow, or an array [H,W,C] of uint8 in an .npy file.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from engine import load
from pixels import normalise, softmax, to_array

HERE = Path(__file__).parent
FILES = ("deployment.json", "preprocessing.json", "labels.json")
ABOUT, INPUT, LABELS = (json.loads((HERE / name).read_text()) for name in FILES)
HOW: Any = SimpleNamespace(**INPUT)


def read(file: str) -> np.ndarray:
    """Read an image as an array [H,W,C] of uint8, in the same way as the images that the network knows."""
    if file.endswith(".npy"):
        return np.load(file, allow_pickle=False)
    from PIL import Image

    with Image.open(file) as image:
        return to_array(image, HOW)


def network(threads: int = ABOUT["threads"]) -> Any:
    """Load the network x[N,C,H,W] float32 -> logits[N,K]."""
    return load(HERE / ABOUT["file"], threads, **ABOUT["arguments"])


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    forward, unread = network(), 0
    for file in sys.argv[1:]:
        try:
            image = read(file)
        except Exception as error:  # Pillow raises all sorts of errors on damaged files
            print(f"{file}: cannot be read: {error}", file=sys.stderr)
            unread = 1
            continue
        (shares,) = softmax(np.asarray(forward(normalise(image[None], HOW))))
        print(file, *(f"{LABELS[i]} {shares[i]:.4f}" for i in np.argsort(-shares)[:5]), sep="\t")
    return unread


if __name__ == "__main__":
    sys.exit(main())
