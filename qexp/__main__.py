"""The command `qexp`, which starts the program that its first word names."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

from qexp.startup import own_folder_first
from qexp.types import nearest, versions


@dataclass(frozen=True)
class Program:
    """A program of the command `qexp`.

    Attributes:
        about: What it does, in a few words.
        module: Module whose `main` takes the words of the command line and returns the exit code. None for a program of
            Hydra's, which is known by its name.
        words: Words that come before those of the command line.
    """

    about: str
    module: str | None = None
    words: tuple[str, ...] = ()


PROGRAMS = {
    "init": Program("write an example of your own model, dataset, method and experiment", "qexp.init"),
    "train": Program("train a network, which becomes a baseline"),
    "compress": Program("compress trained networks and measure them"),
    "benchmark": Program("time artifacts or networks"),
    "report": Program("write tables, pictures and a page of the runs on disk", "qexp.report.__main__"),
    "deploy": Program("write the folder that a device needs", "qexp.deploy.__main__"),
    "device": Program("tell what a device is, or remove what is kept there", "qexp.device.__main__"),
    "sync": Program("log records that tracking has not seen yet", "qexp.tracking.__main__", ("sync",)),
    "import": Program("add what a deployment measured on its device", "qexp.tracking.__main__", ("import",)),
}


def main() -> int:
    """Start a program. Its errors end the process as they do without this command."""
    name, *words = sys.argv[1:] or ["--help"]
    if {"-sc", "--shell-completion"} & {name, *words}:
        from qexp.completion import complete

        hydras = [program for program, how in PROGRAMS.items() if how.module is None]
        return complete([word for word in (name, *words) if "=" in word], [*PROGRAMS], hydras)
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"qexp {versions('qexp').get('qexp', 'of a clone that is not installed')}")
        return 0
    if name not in PROGRAMS:
        print(f"error: There is no program {name!r}. {nearest(name, PROGRAMS)}", file=sys.stderr)
        return 2
    own_folder_first()
    sys.argv = [f"qexp {name}", *words]  # what `command_line` and help texts show
    return start(PROGRAMS[name], name, words)


def start(program: Program, name: str, words: list[str]) -> int:
    if program.module is None:
        from qexp.cli import program as hydra_program
        from qexp.startup import end_at_once

        hydra_program(name)()
        end_at_once()
    module = importlib.import_module(program.module)
    if {"-h", "--help"} & {*words}:
        print(module.__doc__)
        return 0
    code: int = module.main([*program.words, *words])
    return code


def usage() -> str:
    width = max(map(len, PROGRAMS))
    return "\n".join(
        [
            "qexp PROGRAM [OPTIONS] chooses how to compress an image classifier.",
            "",
            *(f"  {name:{width}}  {program.about}" for name, program in PROGRAMS.items()),
            "",
            "qexp PROGRAM --help explains its options. For completion of programs and options in bash, put this into",
            '~/.bashrc: eval "$(qexp -sc install=bash)". zsh and fish are there too.',
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
