"""Writes an example of a dataset, a model, a method and an experiment of your own, which run as they are.

qexp init [FOLDER]

FOLDER: where to write it (default: the current folder). Files that exist are never changed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from qexp.places import EXAMPLE
from qexp.types import UserError

OURS = ("__pycache__", "outputs")  # what running the example in a clone leaves there


def main(words: list[str]) -> int:
    if len(words) > 1 or any(word.startswith("-") for word in words):
        print(__doc__, file=sys.stderr)
        return 2
    target = Path(*words)
    try:
        written = write_example(target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"{target / name}" for name in written))
    print(f"\nTry it:{'' if target == Path() else f' cd {target} &&'} qexp compress experiment=shapes")
    print("Its tests: python -m pytest")
    return 0


def write_example(target: Path) -> list[Path]:
    """Copy the example into a folder, which may hold other files.

    Returns:
        The files, relative to the folder. A .gitignore that exists is left as it is.

    Raises:
        UserError: One of the other files exists, or the folder cannot be written to.
    """
    sources = sorted(file for file in EXAMPLE.rglob("*") if file.is_file() and not {*file.parts} & {*OURS})
    files = [file.relative_to(EXAMPLE) for file in sources]
    if there := [str(target / file) for file in files if (target / file).exists() and file.name != ".gitignore"]:
        raise UserError(f"{', '.join(there)} exists. Give another folder: qexp init FOLDER.")
    written = [file for file in files if not (target / file).exists()]
    try:
        for file in written:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(EXAMPLE / file, target / file)
    except OSError as error:
        raise UserError(
            f"Cannot write to {target}: {error.strerror}. Give another folder: qexp init FOLDER."
        ) from error
    return written
