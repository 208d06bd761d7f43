"""The table of a sweep: marks, missing values, and numbers that read back the same from Markdown and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from qexp.metrics import METRICS, significant
from qexp.records import Measurement, Record
from qexp.report.render import rich_table
from qexp.report.table import DROPPED_FIRST, csv_table, markdown_table, table
from tests.report.support import FP32, HALF, INT8, record, table_of


def marked(records: list[Record]) -> dict[str, set[str]]:
    """The labels of the rows that each column marks as best."""
    titles, cells, best = table_of(records)
    return {
        title: {row[1] for row, marks in zip(cells, best, strict=True) if marks[i]} for i, title in enumerate(titles)
    }


def test_times_of_several_machines_are_told_apart() -> None:
    def on(host: str, made: Record) -> Record:
        return replace(made, environment={"host": host})

    assert "machine" not in table_of([on("one", FP32), on("one", INT8)])[0]
    records = [
        on("one", FP32),
        on("one", INT8),
        on("two", record("again", top1=0.95, latency_ms=0.5, speedup=9.0, size_mb=1.0)),
    ]
    assert [row[table_of(records)[0].index("machine")] for row in table_of(records)[1]] == ["one", "one", "two"]
    best = marked(records)
    assert best["ms"] == {"static int8"}, "of machine one; on two there is nothing to compare with"
    assert best["top-1 %"] == best["size MB"] == {"again"}
    assert [row["host"] for row in csv.DictReader(io.StringIO(csv_table(records)))] == ["one", "one", "two"]


def test_the_best_of_each_column_is_marked() -> None:
    best = marked([FP32, INT8, HALF])
    assert best["size MB"] == best["ms"] == {"static int8"}
    assert best["smaller"] == {"static int8"}
    assert best["top-1 %"] == best["drop"] == {"fp32", "half"}  # a tie
    assert best["faster"] == set()  # one value alone is no winner
    assert best["model"] == best["method"] == set()


def test_operations_stand_beside_times_where_rows_differ_in_them() -> None:
    whole = replace(
        INT8, measurements=(*INT8.measurements, Measurement("macs_m", 40.8, "M"), Measurement("macs_ratio", 1.0, "x"))
    )
    pruned = record("prune_channels 2x MACs", latency_ms=2.0, speedup=2.0, macs_m=20.1, macs_ratio=2.03)
    assert not {"MACs M", "fewer"} & {*table_of([whole])[0]}, "all rows have the same"
    titles, cells, _ = table_of([whole, pruned])
    first = titles.index("MACs M")
    assert titles[first : first + 4] == ["MACs M", "fewer", "ms", "faster"]
    assert [row[first : first + 4] for row in cells] == [
        ["40.8", "1.00x", "1.00", "4.00x"],
        ["20.1", "2.03x", "2.00", "2.00x"],
    ]
    assert marked([whole, pruned])["fewer"] == {"prune_channels 2x MACs"}


def test_rivals_have_the_same_model_data_and_batch_size() -> None:
    slower = record("fp32", batch=8, latency_ms=9.0), record("static int8", batch=8, latency_ms=7.0)
    others = record("a", model="lenet", latency_ms=0.1), record("b", data="birds", latency_ms=0.1)
    titles, cells, best = table_of([FP32, INT8, *slower, *others])
    column = titles.index("ms")
    assert [marks[column] for marks in best] == [False, True, False, True, False, False]


def test_what_looks_equal_is_not_ranked() -> None:
    best = marked([record("one", latency_ms=1.2301, top1=0.5), record("other", latency_ms=1.2299, top1=0.5)])
    assert best["ms"] == best["top-1 %"] == set()
    best = marked(
        [record("one", latency_ms=1.2301), record("other", latency_ms=1.2299), record("third", latency_ms=2.0)]
    )
    assert best["ms"] == {"one", "other"}


def timed(label: str, low: float, middle: float, high: float, **metrics: float) -> Record:
    return record(label, latency_low_ms=low, latency_ms=middle, latency_high_ms=high, **metrics)


def test_rows_whose_intervals_overlap_are_not_ranked() -> None:
    rows = [timed("one", 0.9, 1.0, 1.2), timed("other", 1.1, 1.3, 1.4), timed("third", 1.3, 1.5, 1.6)]
    assert marked(rows)["ms"] == {"one", "other"}  # the third overlaps with the second only, which leads nothing
    assert marked(rows[:2])["ms"] == set()
    assert marked([timed("one", 0.9, 1.0, 1.09), rows[1]])["ms"] == {"one"}


def test_the_winner_of_a_speedup_is_the_largest() -> None:
    rows = [
        record(name, speedup=middle, speedup_low=middle - 1, speedup_high=middle + 1)
        for name, middle in (("a", 9), ("b", 4), ("c", 8))
    ]
    assert marked(rows)["faster"] == {"a", "c"}


def test_a_noisy_latency_is_flagged_and_explained() -> None:
    calm, wild = record("calm", latency_ms=1.0, latency_spread=0.1), record("wild", latency_ms=3.0, latency_spread=0.11)
    titles, cells, _ = table_of([calm, wild])
    assert [row[titles.index("ms")] for row in cells] == ["1.00", "3.00~"]
    assert "noisy" in markdown_table([calm, wild]) and "noisy" not in markdown_table([calm])
    assert "noisy" in str(rich_table(table([calm, wild], "")).caption) and "noisy" not in str(
        rich_table(table([calm], "")).caption
    )


def test_what_a_sweep_goes_through_has_a_column_of_its_own() -> None:
    rows = [record("fp32", latency_ms=2.0), record("fp32", latency_ms=1.0)]
    rows[1].params["threads"], rows[0].params["threads"] = 2, 1
    titles, cells, best = table_of(rows)
    assert titles[4] == "threads" and [row[4] for row in cells] == ["1", "2"]
    assert not any(any(marks) for marks in best), "other numbers of threads are no rivals"
    rows[1].params["threads"] = 1
    assert "threads" not in table_of(rows)[0]


def test_missing_values_are_a_dash_and_columns_without_values_are_left_out() -> None:
    titles, cells, best = table_of([FP32, HALF])
    assert "faster" not in titles and "memory MB" not in titles
    assert cells[1][titles.index("ms")] == "–" and not best[1][titles.index("ms")]
    assert cells[0] == ["vgg", "fp32", "eager", "1", "90.00", "0.00", "10.0", "–", "4.00"]
    assert all(len(row) == len(titles) == len(marks) for row, marks in zip(cells, best, strict=True))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.00"), (0.00123, "0.00123"), (0.0567, "0.0567"), (0.5, "0.500"), (0.99951, "1.00"), (1.234, "1.23"),
    (9.996, "10.0"),
     (12.34, "12.3"), (99.96, "100"), (123.4, "123"), (12345.6, "12346")],
)  # fmt: skip
def test_three_significant_digits(value: float, shown: str) -> None:
    assert significant(value) == shown
    assert float(shown) == pytest.approx(value, rel=0.005)


def test_a_loss_that_is_no_number_has_its_cell() -> None:
    assert [significant(value) for value in (float("nan"), float("inf"))] == ["nan", "inf"]


def test_markdown_reads_back() -> None:
    others = [
        record("ternary", status="unsupported", reason="no 2 bits"),
        record("bad", status="failed", reason="crashed"),
    ]
    records = [FP32, INT8, HALF, *others]
    head, _, after = markdown_table(records).partition("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in head.splitlines()]
    titles, ruler, rows = lines[0], lines[1], lines[2:]
    assert len(rows) == 3 and {len(line) for line in lines} == {len(titles)}
    assert all(cell == ("---" if i < 3 else "---:") for i, cell in enumerate(ruler))
    by_label = {row[1]: dict(zip(titles, row, strict=True)) for row in rows}
    assert by_label["static int8"]["ms"] == "**1.00**" and by_label["static int8"]["top-1 %"] == "89.12"
    columns = (
        ("top-1 %", "top1", 100),
        ("size MB", "size_mb", 1),
        ("smaller", "size_ratio", 1),
        ("ms", "latency_ms", 1),
    )
    for made in (FP32, INT8, HALF):
        for title, metric, factor in columns:
            shown = by_label[made.params["label"]][title].strip("*").removesuffix("x")
            assert (
                shown == "–"
                if metric not in made.metrics
                else float(shown) == pytest.approx(factor * made.metrics[metric], rel=0.005)
            )
    assert after.split("\n\n") == ["unsupported: vgg · ternary: no 2 bits", "failed: vgg · bad: crashed"]


def test_zeros_have_a_column_where_weights_were_pruned() -> None:
    dense, pruned = record("fp32", sparsity=0.0), record("prune", sparsity=0.6)
    assert "zeros" not in table_of([dense, dense])[0]
    titles, cells, _ = table_of([dense, pruned])
    assert [row[titles.index("zeros")] for row in cells] == ["0 %", "60 %"]


def test_csv_reads_back_unrounded() -> None:
    third = record("third", latency_ms=1 / 3, top1=0.1 + 0.2)
    bad = record("bad", status="failed", reason='said "no", twice\nand left')
    rows = list(csv.DictReader(io.StringIO(csv_table([FP32, third, bad]), newline="")))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    assert rows[2]["reason"] == bad.reason and rows[2]["latency_ms"] == ""
    for made, row in zip((FP32, third), rows, strict=False):
        assert {name: float(row[name]) for name in made.metrics} == made.metrics
        assert {name: row[name] for name in made.params} == {name: str(value) for name, value in made.params.items()}


def test_a_sweep_where_nothing_finished_still_has_a_table() -> None:
    records = [record("bad", status="failed", reason="crashed")]
    assert markdown_table(records).endswith("\nfailed: vgg · bad: crashed")
    assert table_of(records) == (["model", "method", "engine", "batch"], [], [])
    assert list(csv.DictReader(io.StringIO(csv_table(records))))[0]["status"] == "failed"


def test_the_table_on_screen_shows_every_cell() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(rich_table(table([FP32, INT8, record("odd [red]", latency_ms=2.0)], "3 runs")))
    shown = console.export_text()
    assert "1.00*" in shown and "89.12" in shown and "3 runs" in shown and "odd [red]" in shown


@pytest.mark.parametrize("width", [70, 80, 100, 120, 160, 200])
def test_a_narrow_screen_leaves_columns_out_and_cuts_no_number(width: int) -> None:
    metrics = {
        name: 0.123
        for name in ("top1", "top1_drop", "top5", "size_mb", "size_ratio", "latency_ms", "speedup", "memory_mb")
    }
    rows = [
        record("prune_channels 2x MACs + static int8", **metrics, speedup_vs_best_fp32=value) for value in (0.5, 1234.5)
    ]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(rich_table(table(rows, "2 runs"), width))
    lines = console.export_text().splitlines()
    header = next(line for line in lines if "model" in line)
    shown = [cell.strip() for cell in header.strip("┃").split("┃")]
    printed = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│ vgg" in line]
    titles, cells, _ = table_of(rows)
    assert [title for title in titles if title in shown] == shown and {
        "model",
        "method",
        "engine",
        "batch",
        "top-1 %",
        "ms",
    } <= {*shown}
    for row, ours in zip(printed, cells, strict=True):
        expected = dict(zip(titles, ours, strict=True))
        assert [cell.rstrip("*") for cell in row if cell[:5] != "prune"] == [
            expected[title] for title in shown if title != "method"
        ]
    left_out = [title for title in titles if title not in shown]
    dropped = [METRICS[name].title for name in DROPPED_FIRST if METRICS[name].title in left_out]
    hint = f"not on a screen as narrow as this: {', '.join(dropped)}"
    assert (hint in " ".join(" ".join(lines).split())) == bool(left_out)
    assert max(map(len, lines)) <= width and bool(left_out) == (width < 160)


def test_where_nothing_is_left_to_leave_out_numbers_are_folded() -> None:
    console = Console(width=38, record=True, file=io.StringIO())
    console.print(rich_table(table([record("static int8", top1=0.8765, latency_ms=123456.0)], "1 run"), 38))
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    columns = zip(*(line.strip("│").split("│") for line in lines), strict=True)
    assert ["".join(part.strip() for part in parts) for parts in columns] == [
        "vgg",
        "staticint8",
        "eager",
        "1",
        "87.65",
        "123456",
    ]


def test_a_disturbed_number_is_shown_in_brackets_and_beats_nobody() -> None:
    times = (Measurement("latency_ms", 0.5, "ms", "disturbed"), Measurement("speedup", 8.0, "x", "disturbed"))
    busy = replace(record("static int8", top1=0.89, top1_drop=0.01), measurements=times)
    titles, cells, marks = table_of([FP32, record("half", latency_ms=2.0, speedup=2.0), busy])
    column = titles.index("ms")
    assert [row[column] for row in cells] == ["4.00", "2.00", "(0.500)"] and [row[column] for row in marks] == [0, 1, 0]
    assert cells[2][titles.index("faster")] == "(8.00x)"
    shown = table([FP32, busy])
    assert shown.faint == {(1, shown.titles.index(title)) for title in ("ms", "faster")}
    assert "( ) disturbed: other processes used the cores" in markdown_table([busy])
    console = Console(width=200, record=True, force_terminal=True, color_system="standard", file=io.StringIO())
    console.print(rich_table(shown))
    assert "\x1b[2m(0.500)" in console.export_text(styles=True)
