"""A table, and the forms in which people read it: on the screen, as Markdown, as HTML and as LaTeX."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported only when something is shown on a screen
    from rich.table import Table as RichTable

NONE = "–"  # text of a cell without a value
FOLDED = 20  # width in characters to which cells are folded before a narrow screen leaves columns out
SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
    "·": r"$\cdot$", "×": r"$\times$",
    "↺": r"$\circlearrowleft$", **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Titles, rows of cells, and how they are shown. Columns and rows are given by their places, counted from 0.

    Attributes:
        titles: Titles of the columns.
        rows: Cells of each row.
        marks: (row, column) of each cell that stands out, such as the best of its column.
        left: Columns that are aligned to the left. The others are aligned to the right.
        whole: Columns whose cells are never folded as long as the table fits the screen.
        dropped_first: Columns that a narrow screen leaves out, in this order.
        title: Title over the table on the screen. In files, the text around the table says what it is.
        caption: Line under the table, on the screen only.
        notes: Lines under the table that explain its cells, in every form.
        faint: (row, column) of each cell whose value counts for nothing.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: frozenset[tuple[int, int]] = frozenset()
    left: frozenset[int] = frozenset()
    whole: frozenset[int] = frozenset()
    dropped_first: tuple[int, ...] = ()
    title: str = ""
    caption: str = ""
    notes: tuple[str, ...] = ()
    faint: frozenset[tuple[int, int]] = frozenset()

    def column(self, place: int) -> list[str]:
        """The title and the cells of a column."""
        return [self.titles[place], *(row[place] for row in self.rows)]

    def marked(self, before: str, after: str) -> list[list[str]]:
        """The rows, with a text before and a text after each cell that stands out."""
        return [
            [f"{before}{cell}{after}" if (i, j) in self.marks else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]


def markdown(table: Table) -> str:
    rule = "|".join(" --- " if place in table.left else " ---: " for place in range(len(table.titles)))
    rows = [f"| {' | '.join(row)} |" for row in table.marked("**", "**")]
    return "\n".join([f"| {' | '.join(table.titles)} |", f"|{rule}|", *rows, *(f"\n{note}" for note in table.notes)])


def html_table(table: Table) -> str:
    """The table as a `<table>`, as notebooks show it."""
    places = range(len(table.titles))
    sides = ["left" if place in table.left else "right" for place in places]
    head = "".join(
        f'<th style="text-align:{side}">{html.escape(title)}</th>'
        for title, side in zip(table.titles, sides, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_html_cell(table, row, place, sides[place]) for place in places)}</tr>"
        for row in range(len(table.rows))
    )
    notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in table.notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def _html_cell(table: Table, row: int, place: int, side: str) -> str:
    text, look = html.escape(table.rows[row][place]), f"text-align:{side}"
    if (row, place) in table.faint:
        look += ";opacity:0.5"
    return f'<td style="{look}">{f"<b>{text}</b>" if (row, place) in table.marks else text}</td>'


def latex(table: Table) -> str:
    r"""The table as a `tabular`, which needs \usepackage{booktabs}."""
    escaped = Table(
        tuple(map(latex_text, table.titles)), tuple(tuple(map(latex_text, row)) for row in table.rows), table.marks
    )
    alignment = "".join("l" if place in table.left else "r" for place in range(len(table.titles)))
    return "\n".join([
        "% needs \\usepackage{booktabs}", *(f"% {note}" for note in table.notes),
        f"\\begin{{tabular}}{{{alignment}}}", r"\toprule", " & ".join(escaped.titles) + r" \\", r"\midrule",
        *(" & ".join(row) + r" \\" for row in escaped.marked(r"\textbf{", "}")), r"\bottomrule", r"\end{tabular}", "",
    ])  # fmt: skip


def latex_text(text: str) -> str:
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], text)


def rich_table(table: Table, width: int = sys.maxsize) -> RichTable:
    """The table for a screen of `width` characters, on which no number is ever cut."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    left_out, fits = columns_to_drop(table, width)
    hint = f"not on a screen as narrow as this: {', '.join(table.titles[place] for place in left_out)}"
    lines = filter(None, [table.caption, *table.notes, hint * bool(left_out)])
    shown = RichTable(title=table.title, title_justify="left", caption="\n".join(lines) or None, caption_justify="left")
    kept = [place for place in range(len(table.titles)) if place not in left_out]
    for place in kept:
        shown.add_column(
            table.titles[place],
            justify="left" if place in table.left else "right",
            no_wrap=fits and place in table.whole,
            overflow="fold",
        )
    for i, row in enumerate(table.rows):
        cells = {j: escape(row[j]) for j in kept}
        cells |= {j: f"[bold green]{cells[j]}*[/]" for j in kept if (i, j) in table.marks}
        cells |= {j: f"[dim]{cells[j]}[/]" for j in kept if (i, j) in table.faint}
        shown.add_row(*cells.values())
    return shown


def columns_to_drop(table: Table, width: int) -> tuple[Sequence[int], bool]:
    """Choose the columns to leave out so that the others fit into `width` characters, and say whether they do."""
    from rich.cells import cell_len

    starred = Table(table.titles, tuple(map(tuple, table.marked("", "*"))))

    def needed(place: int) -> int:
        widest = max(map(cell_len, starred.column(place)))
        return (widest if place in table.whole else min(widest, FOLDED)) + 3  # a border and two spaces

    left_out: list[int] = []
    too_wide = 1 + sum(map(needed, range(len(table.titles)))) - width
    for place in table.dropped_first:
        if too_wide <= 0:
            break
        left_out.append(place)
        too_wide -= needed(place)
    return left_out, too_wide <= 0
