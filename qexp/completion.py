"""Completes what is typed behind `qexp` in a shell: names of programs here, and options as Hydra does.

Hydra's own scripts know commands without programs only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

BASH = """\
_qexp() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="${COMP_LINE:0:$COMP_POINT}" qexp -sc query=bash 2> /dev/null))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _qexp qexp
"""
SCRIPTS = {
    "bash": {"install": BASH, "uninstall": "complete -r qexp; unset -f _qexp\n"},
    "zsh": {
        "install": f"autoload -Uz compinit bashcompinit; compinit; bashcompinit\n{BASH.replace('=bash', '=zsh')}",
        "uninstall": "compdef -d qexp; unset -f _qexp\n",
    },
    "fish": {
        "install": "complete -c qexp -f -a '(COMP_LINE=(commandline -cp) qexp -sc query=fish 2> /dev/null)'\n",
        "uninstall": "complete -c qexp -e\n",
    },
}


def complete(asked: Sequence[str], programs: Sequence[str], hydras: Sequence[str]) -> int:
    """Answer `-sc install=SHELL`, `-sc uninstall=SHELL` and `-sc query=SHELL`, as Hydra names them.

    Args:
        asked: The words that say what is wanted.
        programs: Names of all programs.
        hydras: Names of those that take Hydra's options.

    Returns:
        The exit code.
    """
    what, _, shell = asked[0].partition("=") if len(asked) == 1 else ("", "", "")
    if what not in ("install", "uninstall", "query") or shell not in SCRIPTS:
        print("error: Give -sc install=SHELL or uninstall=SHELL, with bash, zsh or fish.", file=sys.stderr)
        return 2
    if what != "query":
        print(SCRIPTS[shell][what], end="")
        return 0
    command, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    name, space, _ = line.lstrip().partition(" ")
    if not space:
        end = " " if shell == "bash" else ""  # the other shells put it there themselves
        print("\n".join(f"{program}{end}" for program in programs if program.startswith(name)))
    elif name in hydras:
        ask_hydra(name, line)
    return 0


def ask_hydra(name: str, line: str) -> None:
    """Print what may follow, one word a line.

    Args:
        name: A program of Hydra's.
        line: What was typed, from its name on.
    """
    from qexp.cli import program

    os.environ["COMP_LINE"] = line
    sys.argv = [f"qexp {name}", "-sc", "query=fish"]  # which prints one word a line, as bash takes it here
    program(name)()
