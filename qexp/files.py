"""Writes folders and files that are either whole or absent, because they appear in one rename.

It also takes the digests of files, by which qexp sees whether they were changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from qexp.types import UserError

RECORDS = "records"  # subfolder of an artifact that holds the records of its runs by key


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Make a temporary folder beside `target`, and rename it to `target` when the block ends without an error.

    If another process was faster, its folder stays, since both were made from the same inputs.

    Yields:
        The temporary folder.

    Raises:
        UserError: Nothing can be written there.
    """
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield partial
        partial.chmod(0o755)
        try:
            os.rename(partial, target)
        except OSError:
            if not target.exists():
                raise
    except OSError as error:
        raise not_writable(target, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def not_writable(target: Path, error: OSError) -> UserError:
    """Turn the error of a failed write into one that tells the user how much space is left, or to write elsewhere."""
    place = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, None)  # NumPy's errors have no number
    hint = f"{shutil.disk_usage(place).free / 1e6:.1f} MB are free there: make room, or choose" if full else "Choose"
    return UserError(f"Cannot write {target}: {error.strerror or error}. {hint} another folder with outputs=.")


@contextmanager
def building_anew(target: Path, keep: str) -> Iterator[Path]:
    """Make a folder like `building`, but let it replace `target` if that exists.

    Nothing else may write to `target` meanwhile. If the process is killed, either the old or the new folder is left,
    and `mend` tidies up the rest.

    Args:
        target: Folder to make.
        keep: Name of a subfolder. Its files in the old folder are kept in the new one too.

    Yields:
        The temporary folder.

    Raises:
        UserError: Nothing can be written there.
    """
    mend(target, keep)
    with building(target) as partial:
        yield partial
        if target.exists():
            os.rename(target, _set_aside(target))
    mend(target, keep)


def mend(target: Path, keep: str) -> None:
    """Finish what `building_anew`, called with the same arguments, had to leave when its process was killed."""
    old = _set_aside(target)
    if not old.exists():
        return
    if not target.exists():
        os.rename(old, target)
        return
    for file in (old / keep).glob("*"):
        if not (target / keep / file.name).exists():
            link(file, target / keep / file.name)
    shutil.rmtree(old)


def _set_aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def made_since(file: Path, since: int) -> bool:
    """Whether a file exists and was written at or after the time `since`, in nanoseconds like `st_mtime_ns`."""
    try:
        return file.stat().st_mtime_ns >= since
    except FileNotFoundError:
        return False


def write_json(file: Path, value: Any) -> None:
    """Write `value` as JSON, so that `file` holds the whole old or the whole new text at any moment.

    Raises:
        UserError: The file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as stream:
            json.dump(value, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise not_writable(file, error) from error


def link(source: Path, target: Path) -> None:
    """Hard-link a file that nobody changes, or copy it if `target` is on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_instead(source: Path, target: Path) -> None:
    """Like `link`, but replace `target` if it exists. Other hard links to the old file keep its content."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    link(source, partial)
    os.replace(partial, target)


def file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes. A process reads the file once, unless its size, inode or times change."""
    seen = file.stat()
    return _digest_as_of(file.absolute(), seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


@lru_cache(maxsize=1000)
def _digest_as_of(file: Path, *state: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_digests(folder: Path, digests: dict[str, str]) -> None:
    """Check that files are what they were when their digests were taken.

    Args:
        folder: Folder of the files.
        digests: SHA-256 (hex) by file name.

    Raises:
        UserError: Files are missing or were changed. The message names them.
    """
    wrong = [
        name
        for name, expected in digests.items()
        if not (folder / name).is_file() or file_digest(folder / name) != expected
    ]
    if wrong:
        raise UserError(
            f"{folder} is damaged: {', '.join(wrong)} is missing or was changed. Delete the folder and compress again."
        )
