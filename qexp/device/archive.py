"""Packs what a device needs of qexp, and of modules of the user's own, into one small archive."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass

from qexp.sources import own_sources

EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first time that ZIP knows: the same files make the same archive


@dataclass(frozen=True)
class Archive:
    """An archive of sources.

    Attributes:
        content: The bytes of a ZIP file.
        digest: Their SHA-256 (hex), which is its name on a device.
    """

    content: bytes
    digest: str


def archive_of(names: Iterable[str]) -> Archive:
    """Pack modules, and all that they import but for libraries.

    Args:
        names: Dotted names of modules or classes.

    Raises:
        ModuleNotFoundError: One of them cannot be found.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as files:
        for name, file in sorted(own_sources(names).items()):
            place = name.replace(".", "/")
            place += f"/{file.name}" if file.stem == "__init__" else file.suffix
            files.writestr(zipfile.ZipInfo(place, EARLIEST), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return Archive(packed.getvalue(), hashlib.sha256(packed.getvalue()).hexdigest())
