"""The commands that README.md, CONTRIBUTING.md and docs/ give, as words.

Their placeholders are filled with what a reader would put in.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from qexp.__main__ import PROGRAMS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HYDRA = (
    "compress.py",
    "train.py",
    "benchmark.py",
    "benchmarks/against_others.py",
)  # the last takes compress.py's options

# What a reader puts in; the first that are found in a command are taken first.
PLACEHOLDERS = {
    ".../cifar10-jpeg": "pictures",
    "data.root=...": "data.root=pictures",
    "model=...": "model=resnet20,vgg19",
    "method=...": "method=none,static",
    "artifact=...": "artifact=outputs/artifacts/NAME",
    "engine=...": "engine=onnxruntime",
    " SWEEP ": " model=resnet20,vgg19 method=none,static ",
    "partition=NAME": "partition=main",
    "http://HOST:5000": "sqlite:///other.db",
    "uri=URI": "uri=sqlite:///other.db",
}

FENCE = re.compile(r"^```(\w*)\n(.*?)\n```$", re.M | re.S)
INLINE = re.compile(
    r"(uv run|qexp [a-z]|python(?! \S+\.py$)|pip|mlflow|ray|\S+\.py)\s+\S"
)  # a span that names a program alone is no command
ROW = re.compile(r"^\| `([\w.]+=\w[^`|]*)`", re.M)


def words_of(line: str) -> list[list[str]]:
    """The words of each command in a line of a shell, without what starts Python."""
    made: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        made.append([]) if word == "&&" else made[-1].append(word)
    return [bare(words) for words in made if words]


def bare(words: list[str]) -> list[str]:
    while re.match(r"[A-Z_]+=", words[0]):  # the environment's
        words = words[1:]
    if words[:2] == ["uv", "run"]:
        words = words[2:]
        while words[0] in ("--extra", "--group"):
            words = words[2:]
    if words[0] == "qexp":
        return as_in_a_clone(words[1:])
    return words[1:] if words[0] == "python" else words


def as_in_a_clone(words: list[str]) -> list[str]:
    """The words of a command of `qexp`, as they are without it."""
    program, *rest = words
    module, inner = PROGRAMS[program].module, PROGRAMS[program].words
    return [f"{program}.py", *rest] if module is None else ["-m", module.removesuffix(".__main__"), *inner, *rest]


def complete(command: list[str], row: list[str]) -> list[str]:
    """The command with a table's row of options, which take the place of its own and of those it leaves open."""
    given = {word.split("=")[0] for word in row}
    return [word for word in command if word.split("=")[0] not in given and not word.endswith("=...")] + row


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of each command, whether it stands in a block or in backticks.

    Where a table lists options for the command above it, there is one command for each row.
    """
    for section in re.split(r"^## ", text, flags=re.M):
        for language, block in FENCE.findall(section):
            if language not in ("text", "python", "yaml"):
                for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                    yield from words_of(line)
        prose = FENCE.sub("", section)
        spans = [span for span in re.findall(r"`([^`]+)`", prose) if INLINE.match(span)]
        found = [words for span in spans for words in words_of(span)]
        if found and (rows := ROW.findall(prose)):
            command = found.pop()
            found += [complete(command, row.split()) for row in rows]
        yield from found


def documented(documents: Sequence[Path]) -> dict[str, list[str]]:
    """All commands by their text, in which words are quoted where they must be, with their placeholders filled in."""
    found: dict[str, list[str]] = {}
    for document in documents:
        for words in commands_of(document.read_text()):
            filled = fill_in(words)
            found[shlex.join(filled)] = filled
    return found


def fill_in(words: list[str]) -> list[str]:
    text = "\0".join(words)
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder.replace(" ", "\0"), value.replace(" ", "\0"))
    filled = text.split("\0")
    if filled[0] in HYDRA or filled[0] == "-m":
        unknown = re.findall(r"\.\.\.|\b[A-Z]{2,}\b", " ".join(filled).replace("artifacts/NAME", "artifacts/"))
        assert not unknown, f"{' '.join(words)}: PLACEHOLDERS has nothing for {', '.join(unknown)}"
    return filled


COMMANDS = documented(DOCUMENTS)


def call(words: Sequence[str]) -> tuple[int, str]:
    """Run a Python program in this process, which has its libraries already.

    Returns:
        Its exit code, and all that it printed.
    """
    program, *rest = words
    name = rest.pop(0) if program == "-m" else Path(program).stem
    module = import_module(name)
    main = (import_module(f"{name}.__main__") if hasattr(module, "__path__") else module).main
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr(sys, "argv", [program, *rest])
        code: Any
        try:
            code = main() if program in HYDRA else main(rest)
        except SystemExit as end:
            code = end.code
    return (code, printed.getvalue()) if isinstance(code or 0, int) else (1, f"{printed.getvalue()}{code}")
