"""Finds the files of published datasets in a folder or downloads them, and uses none whose checksum is wrong."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from qexp.types import UserError

TIMEOUT_S = 30
OTHER_WAY = "Or use images of your own: data=folder data.root=FOLDER."


@dataclass(frozen=True)
class Published:
    """A file as its publisher offers it, with its MD5 (hex) and the URLs where it can be had."""

    name: str
    md5: str
    urls: tuple[str, ...]


def fetch(folder: Path, files: Sequence[Published]) -> list[Path]:
    """Find files in a folder, and download those that are missing.

    Returns:
        The paths of the files.

    Raises:
        UserError: A file is damaged, or is missing and cannot be downloaded. The message names the file, the folder
            and the MD5.
    """
    missing = []
    for file in files:
        path = folder / file.name
        if not path.exists():
            missing.append(file)
        elif (given := _md5(path)) != file.md5:
            raise UserError(
                f"{path} is damaged: its MD5 is {given}, it must be {file.md5}. Remove it to have it downloaded again."
            )
    while missing:
        failures = _download(missing[0], folder)
        if failures:
            wanted = ", ".join(f"{file.name} (MD5 {file.md5})" for file in missing)
            raise UserError(
                f"Not in {folder}: {wanted}. Downloading failed: {'; '.join(failures)}. "
                f"Put it there yourself. {OTHER_WAY}"
            )
        del missing[0]
    return [folder / file.name for file in files]


def _download(file: Published, folder: Path) -> list[str]:
    """Try the URLs in turn, and return why each one failed, or an empty list if one gave the file."""
    # The file gets its name when it is whole, because an interrupted download must not look like the file.
    partial = folder / f".{file.name}.{os.getpid()}"
    failures = []
    for url in file.urls:
        try:
            _download_from(url, partial)
            given = _md5(partial)
            if given == file.md5:
                os.replace(partial, folder / file.name)
                return []
            failures.append(f"{url} gave a damaged file with MD5 {given}")
        except (OSError, RuntimeError, HTTPException) as error:
            failures.append(f"{url}: {error}")
        finally:
            with suppress(OSError):
                partial.unlink()
    return failures


def _download_from(url: str, file: Path) -> None:
    from torchvision.datasets.utils import download_url  # importing it takes seconds

    with _timeout(TIMEOUT_S):
        download_url(url, file.parent, file.name)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit how long sockets wait. Behind a firewall that drops packets, a connection would hang for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _md5(file: Path) -> str:
    from torchvision.datasets.utils import calculate_md5

    try:
        return calculate_md5(file)
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error


def extract(file: Path, folder: Path) -> None:
    """Unpack an archive whose checksum was right.

    Raises:
        UserError: `folder` cannot be written to, or has no space for it.
    """
    from torchvision.datasets.utils import extract_archive

    try:
        folder.mkdir(parents=True, exist_ok=True)
        extract_archive(file, folder)
    except OSError as error:
        raise UserError(
            f"Cannot unpack {file} into {folder}: {error.strerror or error}. Free some space there or set TMPDIR."
        ) from error
