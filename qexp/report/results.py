"""Writes the reference tables that sweeps reproduced to a Markdown file, with commands, machines and versions.

    python -m qexp.report.results [outputs=FOLDER] [to=FILE]

Options:
    outputs: Folders with the outputs of sweeps, joined by commas (default: outputs).
    to: File to write (default: docs/results.md).

The newest sweep of each table counts. Tables of which the folders have no sweep stay in the file as they are, so that
each machine can add its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from qexp.report.reference import Reference
from qexp.report.runs import Run, runs_of, sweeps_with_records
from qexp.report.table import markdown_table
from qexp.types import UserError, typed

HEAD = """# The reference tables, run with qexp

`python -m qexp.report.results` writes this page: do not edit it by hand. Each table comes from one file of
`conf/experiment/`. Our figure stands first, the reference's in brackets.
"""


def results(outputs: list[Path], before: str = "") -> str:
    """Write the newest sweep of each table as Markdown.

    Args:
        outputs: Folders with the outputs of sweeps.
        before: Earlier text of the file, from which the tables are kept that no sweep reproduces.

    Raises:
        UserError: No sweep reproduces a table.
    """
    newest: dict[str, tuple[Path, list[Run], Reference]] = {}
    for folder in sorted(
        (sweep for place in outputs for sweep in sweeps_with_records(place)), key=lambda sweep: sweep.name
    ):
        runs = runs_of(folder)
        if reference := Reference.read(folder, runs):
            newest[reference.title] = (folder, runs, reference)
    if not newest:
        run = f"run one first ({typed('compress')} experiment=lenet5_mnist), or give its outputs=FOLDER"
        raise UserError(f"There is no sweep of a table in {', '.join(map(str, outputs))}; {run}.")
    kept = {
        text.partition("\n")[0]: f"## {text.rstrip()}\n" for text in re.split(r"^## ", before, flags=re.MULTILINE)[1:]
    }
    tables = kept | {title: section(*found) for title, found in newest.items()}
    return "\n".join([HEAD, *(tables[title] for title in sorted(tables))])


def section(folder: Path, runs: list[Run], reference: Reference) -> str:
    record = runs[0].record
    versions = ", ".join(f"{name} {version}" for name, version in record.environment.get("versions", {}).items())
    about = [f"{record.environment.get(key)}" for key in ("cpu", "system") if record.environment.get(key)]
    return "\n".join([
        reference.markdown(), f"```\n{record.command}\n```\n",
        f"{record.created[:10]}; {record.params.get('threads')} threads on {', '.join(about)}; {versions}. "
        "All that was measured:\n",
        markdown_table([run.record for run in runs]), "",
    ])  # fmt: skip


def main(words: list[str]) -> int:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if len(given) != len(words) or not given.keys() <= {"outputs", "to"}:
        print(__doc__, file=sys.stderr)
        return 2
    to = Path(given.get("to", "docs/results.md"))
    outputs = [Path(place) for place in given.get("outputs", "outputs").split(",")]
    try:
        text = results(outputs, to.read_text() if to.exists() else "")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    to.write_text(text)
    print(f"Written to {to}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
