"""The user's own images: root/{train,test}/CLASS/*.{png,jpg,jpeg,webp,bmp,...}."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from qexp.data.base import ImageData
from qexp.data.cache import Decoded, content_digest
from qexp.types import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
LAYOUT = "Expected ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE"


class FolderData(ImageData):
    def __init__(self, root: str, name: str | None = None, **common: Any):
        self.root = Path(root)
        super().__init__(name=name or self.root.resolve().name, **common)

    def _classes(self, split: str) -> list[Path]:
        folder = self.root / split
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}. {LAYOUT}; set data.root to ROOT.")
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    def class_names(self) -> list[str]:
        train, test = ([p.name for p in self._classes(split)] for split in ("train", "test"))
        if not train:
            raise UserError(f"{self.root / 'train'} holds no class folders. {LAYOUT}.")
        if train != test:
            only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
            raise UserError(
                f"The classes below {self.root} differ: only in train: {only_train or 'none'}; only in test: {only_test or 'none'}. "
                "Both parts need the same class folders."
            )
        return train

    def _files(self, split: str) -> list[tuple[Path, int]]:
        found = []
        for label, folder in enumerate(self._classes(split)):
            files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(f"{folder} holds no images (looked for {', '.join(sorted(SUFFIXES))}). Fill it or remove it.")
            found += [(file, label) for file in files]
        return found

    def source_digest(self) -> str:
        self.class_names()
        files = [file for split in ("train", "test") for file, _ in self._files(split)]
        return content_digest(files, self.root, self.cache_dir / "digests")

    def decode(self) -> Decoded:
        return {split: self._decode(split) for split in ("train", "test")}

    def _decode(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        files = self._files(split)
        images = np.empty((len(files), self.image_size, self.image_size, self.channels), np.uint8)
        with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
            decoded = pool.map(self._read, (file for file, _ in files), chunksize=256)
            for row, image in enumerate(track(decoded, f"Decoding {self.name} {split}", total=len(files), transient=True)):
                images[row] = image
        return images, np.array([label for _, label in files])

    def _read(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                image = image.convert("L" if self.channels == 1 else "RGB")
                if image.size != (self.image_size, self.image_size):
                    image = image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
                return np.asarray(image).reshape(self.image_size, self.image_size, self.channels)
        except Exception as error:
            raise UserError(f"Cannot read the image {file}: {error}. Replace or remove it.") from error
