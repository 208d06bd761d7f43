"""The table of a sweep for papers."""

from __future__ import annotations

import re

from qexp.report.table import REUSED, legend, table, text_titles
from qexp.types import Record

SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "·": r"$\cdot$", "×": r"$\times$",
    "↺": r"$\circlearrowleft$", **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], text)


def latex_table(records: list[Record]) -> str:
    r"""A `tabular` of the finished runs, the best in bold (needs \usepackage{booktabs})."""
    titles, cells, best = table(records)
    text = text_titles(records)
    lines = [
        f"\\begin{{tabular}}{{{''.join('l' if title in text else 'r' for title in titles)}}}", r"\toprule",
        " & ".join(map(escaped, titles)) + r" \\", r"\midrule",
    ]  # fmt: skip
    for row, marks in zip(cells, best, strict=True):
        shown = (escaped(cell.removesuffix(REUSED)) for cell in row)
        lines.append(
            " & ".join(f"\\textbf{{{cell}}}" if mark else cell for cell, mark in zip(shown, marks, strict=True))
            + r" \\"
        )
    notes = [f"% {line}" for line in legend(records)]
    return "\n".join(["% needs \\usepackage{booktabs}", *notes, *lines, r"\bottomrule", r"\end{tabular}", ""])
