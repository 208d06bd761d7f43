"""Makes the reference of all options from the yaml files of conf/ and their comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Groups in the order of the page, with their titles. Others come after them.
GROUPS = {
    "": "Programs", "data": "Data", "model": "Networks", "method": "Methods", "engine": "Engines",
    "device": "Devices", "measure": "Measurements", "recipe": "Training recipes", "trainer": "Trainers",
    "tracking": "Tracking", "experiment": "Experiments", "hydra/launcher": "Launchers",
    "hydra/sweeper": "Sweeps and searches", "hydra/sweeper/sampler": "Samplers of searches",
}  # fmt: skip
HEAD = """# Options

Every option, its default and what it means, as the files of `conf/` say it. `GROUP=NAME` on the command line takes a
file of a group, and `GROUP.KEY=VALUE` changes one of its keys. Files in `conf/` in the [current
folder](install.md#your-own-folder) come before these. A name that begins with `_` is a part that other files take in.
"""
# A key or, in a list of defaults, the choice of a group.
LINE = re.compile(
    r"^(?P<indent> *)(?:- (?:override )?/?)?(?P<key>[\w/@.]+):(?: +(?P<value>[^#\s].*?))?(?: +# (?P<about>.*))?$"
)


@dataclass(frozen=True)
class Option:
    """A key of a file.

    Attributes:
        path: Its path in the file, with dots.
        value: Its default, as it is written there. Empty if it has keys of its own.
        about: What the comments say of it.
    """

    path: str
    value: str
    about: str


def options(text: str) -> Iterator[Option]:
    """The options of a yaml file, in their order. Comments above a key count with that on its line."""
    above: list[str] = []
    keys: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = LINE.match(line)
        if not found:
            comment = line.strip().startswith("# ")
            above = [*above, line.strip().removeprefix("# ")] if comment else []
            continue
        indent = len(found["indent"])
        keys = [(depth, name) for depth, name in keys if depth < indent] + [(indent, found["key"])]
        told = [found["about"] or "", " ".join(above)]
        above = []
        path = ".".join(name for _, name in keys).removeprefix("defaults.")
        yield Option(path, found["value"] or "", ". ".join(filter(None, told)))


def preamble(text: str) -> tuple[str, str]:
    """Split the comment that begins a file, and is about all of it, from the rest."""
    lines = text.splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    whole = count < len(lines) and (not lines[count].strip() or lines[count].startswith("defaults:"))
    about = [line.removeprefix("# ") for line in lines[:count] if not line.startswith("# @package")] if whole else []
    return "\n".join(about), "\n".join(lines[count if whole else 0 :])


def section(file: Path, group: str) -> str:
    """The part of the reference about one file. Experiments are shown as they are written."""
    about, rest = preamble(file.read_text())
    name = f"{group}={file.stem}" if group and not file.stem.startswith("_") else f"{group}/{file.stem}".strip("/")
    lines = [f"### `{name}`", ""]
    if group == "experiment":
        return "\n".join([*lines, "```yaml", file.read_text().rstrip(), "```", ""])
    if about:
        lines += [about, ""]
    taken = re.search(r"^defaults: \[(.*)\]", rest, re.M)
    if parts := [f"`{each}`" for each in taken[1].split(", ") if each != "_self_"] if taken else []:
        lines += [f"Takes in {', '.join(parts)}.", ""]
    rows = [option for option in options(rest) if option.path.partition(".")[0] not in ("defaults", "hydra")]
    if rows:
        lines += ["| option | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{row.path}` | {code(row.value)} | {cell(row.about)} |" for row in rows]
    return "\n".join([*lines, ""])


def cell(text: str) -> str:
    """Text as it can stand in a cell of a table."""
    return text.replace("|", "&#124;").replace("<", "&lt;").replace("*", "&#42;").replace("_", "&#95;")


def code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def reference(conf: Path) -> str:
    """The whole page, in Markdown."""
    found = sorted({str(file.parent.relative_to(conf)) for file in conf.glob("[!.]*/**/*.yaml")})
    others = {group: group.capitalize() for group in found if group not in GROUPS and not group.endswith("_logging")}
    made = [HEAD]
    for group, title in (GROUPS | others).items():
        made += [f"## {title}", "", *(section(file, group) for file in sorted((conf / group).glob("*.yaml")))]
    return "\n".join(made)
