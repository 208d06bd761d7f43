"""The command `qexp`: its programs, their messages, and what shells complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from qexp.__main__ import PROGRAMS, main
from qexp.completion import SCRIPTS
from qexp.places import EXAMPLE
from qexp.types import command_line, typed

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Calls the command in an empty folder, and returns its exit code and what it wrote to stdout and to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/qexp", *words])
        try:
            code = main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return called


def test_it_tells_its_programs_and_its_version(call: Call) -> None:
    code, out, err = call()
    assert code == 0 and not err and all(re.search(rf"^  {name} +\w", out, re.M) for name in PROGRAMS)
    assert call("--help") == (0, out, "")
    assert call("--version") == (0, f"qexp {metadata.version('qexp')}\n", "")


def test_an_unknown_program_is_named_with_the_nearest(call: Call) -> None:
    code, out, err = call("compres", "model=resnet8")
    assert code == 2 and not out and "no program 'compres'. did you mean 'compress'?" in err


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.module])
def test_a_program_explains_its_options(name: str, call: Call) -> None:
    code, out, err = call(name, "--help")
    assert code == 0 and f"qexp {name}" in out and not err


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("/clone/compress.py", ["python compress.py -m 'a=[1, 2]'", "python train.py", "python -m qexp.tracking sync"]),
        ("qexp compress", ["qexp compress -m 'a=[1, 2]'", "qexp train", "qexp sync"]),
    ],
)
def test_commands_are_shown_as_they_were_called(
    started: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started, "-m", "a=[1, 2]"])
    assert [command_line(), typed("train"), typed("sync")] == expected


def test_modules_of_the_current_folder_are_found_first(call: Call, tmp_path: Path) -> None:
    call("sync")
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("qexp comp", "compress"),
        ("qexp ", "benchmark"),
        ("qexp compress method=sta", "method=static"),
        ("qexp compress -m method=static method.obs", "method.observer="),
        ("qexp train recipe.ep", "recipe.epochs="),
        ("qexp report ", ""),
    ],
)
def test_shells_complete_programs_and_options(
    line: str, expected: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    code, out, _ = call("-sc", "query=zsh")
    assert code == 0 and (expected in out.splitlines() if expected else not out)
    assert all(word.startswith(line.rpartition(" ")[2]) for word in out.splitlines())


def test_completion_is_there_for_shells_that_are_known(call: Call) -> None:
    for shell in SCRIPTS:
        assert "complete" in call("-sc", f"install={shell}")[1]
        assert call("compress", "-sc", f"uninstall={shell}")[0] == 0
    code, _, err = call("-sc", "install=tcsh")
    assert code == 2 and "bash, zsh or fish" in err


@pytest.mark.integration
def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    (tmp_path / "qexp").write_text(f'#!/bin/sh\nexec {sys.executable} -m qexp "$@"\n')
    (tmp_path / "qexp").chmod(0o755)
    script = (
        'eval "$(qexp -sc install=bash)"; COMP_LINE="qexp compress model=resnet2 data=digits"; COMP_POINT=27; _qexp; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    answer = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["model=resnet20"]


def test_init_writes_the_example_and_never_over_other_files(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("init", "new")
    names = {str(file.relative_to(EXAMPLE)) for file in EXAMPLE.rglob("*") if "__pycache__" not in file.parts}
    written = {str(file.relative_to(tmp_path / "new")) for file in (tmp_path / "new").rglob("*")}
    assert code == 0 and written == names and "cd new && qexp compress experiment=shapes" in out
    (tmp_path / "new" / "shapes" / "images.py").write_text("mine")
    code, _, err = call("init", "new")
    assert code == 1 and "exists. Give another folder" in err
    assert (tmp_path / "new" / "shapes" / "images.py").read_text() == "mine"


def test_init_leaves_a_gitignore_as_it_is(call: Call, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    assert call("init")[0] == 0
    assert (tmp_path / ".gitignore").read_text() == "mine\n" and (tmp_path / "conf/model/shapes_net.yaml").is_file()


@pytest.mark.parametrize("words", [["--force"], ["one", "two"]])
def test_init_explains_itself(words: list[str], call: Call) -> None:
    code, _, err = call("init", *words)
    assert code == 2 and "qexp init [FOLDER]" in err


def test_init_says_where_it_cannot_write(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call("init", "file/below")
    assert code == 1 and "Cannot write to file/below" in err
