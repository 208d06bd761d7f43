"""Rows of a sweep through options of a method are told apart, in the table, in the CSV file and by name."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from rich.console import Console

from qexp.records import Record
from qexp.report.options import differing_options, option_suffix
from qexp.report.render import rich_table
from qexp.report.table import csv_table, markdown_table, table
from tests.report.support import made, record, table_of


def shown(records: list[Record]) -> dict[str, list[str]]:
    """The columns between batch and top-1."""
    titles, cells, _ = table_of(records)
    assert all(len(row) == len(titles) for row in cells)
    return {title: [row[i] for row in cells] for i, title in enumerate(titles) if 3 < i < titles.index("top-1 %")}


def test_an_option_that_differs_within_a_method_has_a_column() -> None:
    rows = [made("static int8", observer=o, fuse=True) for o in ("minmax", "mse")]
    others = [made("qat int8", observer="lsq", fuse=False), made("none"), record("an artifact", top1=0.5)]
    assert shown([*rows, *others]) == {"observer": ["minmax", "mse", "lsq", "–", "–"]}, (
        "fuse differs between methods only"
    )
    assert shown([rows[0], *others]) == {}
    assert shown([]) == {}


def test_bits_and_what_is_no_option_have_no_column() -> None:
    rows = [made("static int8"), made("static int4", batch=8)]
    rows[1].config["method"] |= {
        "bits": 4,
        "torchscript": {"bits": 4},
        "_recursive_": True,
        "inner": {"_target_": "a", "_partial_": True},
    }
    assert differing_options(rows) == {}


def test_options_in_groups_are_named_by_their_last_part() -> None:
    rows = [
        made("qat int4", recipe={"epochs": e, "optimizer": {"lr": lr, "_target_": t}}, batch_size=b)
        for e, lr, t, b in ((1, 0.1, "sgd", 32), (15, 0.02, "adam", 64))
    ]
    assert differing_options(rows) == {
        "method.recipe.epochs": "epochs",
        "method.recipe.optimizer.lr": "lr",
        "method.batch_size": "batch_size",
    }
    assert shown(rows) == {"epochs": ["1", "15"], "lr": ["0.1", "0.02"], "batch_size": ["32", "64"]}
    rows[0].config["method"]["recipe"]["batch_size"] = 128  # the other has none
    assert shown(rows) == {
        "epochs": ["1", "15"], "lr": ["0.1", "0.02"], "method.recipe.batch_size": ["128", "–"],
        "method.batch_size": ["32", "64"]
    }  # fmt: skip


def test_no_option_takes_the_title_of_another_column() -> None:
    rows = [
        made("reconstruct int4", metrics={"top1": 0.8, "top1_drop": d}, drop=p) for d, p in ((0.02, 0.5), (0.01, 0.0))
    ]
    titles, cells, best = table_of(rows)
    assert titles == ["model", "method", "engine", "batch", "method.drop", "top-1 %", "drop"]
    assert [(row[4], row[6]) for row in cells] == [("0.5", "2.00"), ("0.0", "1.00")]
    assert [marks[4] for marks in best] == [False, False] and [marks[6] for marks in best] == [False, True]


def test_an_option_that_follows_another_is_left_out() -> None:
    rows = [
        made("qat int4", seed=s, recipe={"epochs": e, "scheduler": {"T_max": e}}) for s, e in ((0, 1), (0, 2), (1, 2))
    ]
    for row in rows:
        row.config["method"]["seed"] = row.config["seed"]
    rows.append(made("static int8", seed=1))
    assert shown(rows) == {"seed": ["0", "0", "1", "1"], "epochs": ["1", "2", "2", "–"]}
    rows[1].config["method"]["seed"] = 7
    assert [*differing_options(rows).values()] == ["seed", "epochs", "method.seed"], "now they differ"


def test_seeds_of_different_methods_are_no_reason_for_a_column() -> None:
    assert shown([made("static int8", seed=0), made("qat int8", seed=1)]) == {}


def test_values_are_shown_as_they_are_written_on_the_command_line() -> None:
    rows = [
        made("mixed 4 bits", group=g, fuse=f, candidates=c, layer_bits=b)
        for g, f, c, b in ((None, True, [2, 8], {}), (32, False, [4, 8], {"features.0.*": 8}))
    ]
    assert shown(rows) == {
        "group": ["null", "32"], "fuse": ["true", "false"], "candidates": ["[2, 8]", "[4, 8]"],
        "layer_bits": ["{}", "{'features.0.*': 8}"]
    }  # fmt: skip


def test_rows_of_different_options_are_best_fp32s() -> None:
    rows = [
        made("static int8", metrics={"top1": top1}, observer=o)
        for o, top1 in (("minmax", 0.6), ("mse", 0.7), ("lsq", 0.65))
    ]
    _, _, best = table_of(rows)
    assert [marks[-1] for marks in best] == [False, True, False]


def test_words_stand_left_and_numbers_right() -> None:
    rows = [made("qat int4", observer=o, lr=lr, group=g) for o, lr, g in (("mse", 1e-05, None), ("lsq", 0.02, 32))]
    ruler = markdown_table([*rows, made("none")]).splitlines()[1].strip("|").split("|")
    assert [cell.strip() for cell in ruler[3:]] == [
        "---:",
        "---",
        "---:",
        "---:",
        "---:",
    ]  # batch, observer, lr, group, top-1
    columns = {column.header: column for column in rich_table(table(rows)).columns}
    assert [columns[name].justify for name in ("observer", "lr", "group", "top-1 %")] == [
        "left",
        "right",
        "right",
        "right",
    ]


def test_a_long_value_is_folded_before_a_number_is_cut() -> None:
    rows = [made("mixed 4 bits", metrics={"top1": 0.12, "latency_ms": 1.234}, candidates=[*range(n)]) for n in (12, 16)]
    console = Console(width=70, record=True, file=io.StringIO())
    console.print(rich_table(table(rows)))
    text = console.export_text()
    assert "12.00" in text and "1.23" in text and "…" not in text and " 15]" in text


def test_csv_has_the_options_by_their_full_names() -> None:
    rows = [made("static int8", observer="mse", seed=3), made("static int8", observer="minmax", seed=4), made("none")]
    for row in rows:
        row.params["seed"] = row.config["seed"]
    text = csv_table(rows)
    header = text.splitlines()[0].split(",")
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(r["seed"], r["method.observer"]) for r in read] == [("3", "mse"), ("4", "minmax"), ("0", "")]
    assert header.count("seed") == 1 and "observer" not in header


def test_failed_rows_keep_their_lines() -> None:
    bad = replace(made("static int4", observer="mse"), status="failed", reason="crashed")
    text = markdown_table([made("static int4", observer="minmax"), bad])
    assert text.endswith("\n\nfailed: vgg · static int4: crashed")
    assert "| observer |" in text.splitlines()[0] and "| minmax |" in text.splitlines()[2], "which of them finished"


def test_a_name_tells_what_differs() -> None:
    rows = [made("static int8", observer=o, lr=lr) for o, lr in (("minmax", 1), ("mse", 1))]
    assert [option_suffix(row, differing_options(rows)) for row in [*rows, made("none")]] == [
        " · observer minmax",
        " · observer mse",
        "",
    ]


def test_stages_of_chains_have_options_of_their_own() -> None:
    def chain(ratio: int, last: str, bits: int) -> Record:
        stages = {
            "prune": {"_target_": "a.Prune", "ratio": ratio, "trainer": {"devices": 1}, "timer": {"threads": bits}}
        }
        stages["last"] = {"_target_": last, "bits": bits}
        row = made("chain")
        row.config["method"] = {"_target_": "a.Chain", "stages": stages}
        return row

    assert differing_options([chain(2, "a.Static", 8), chain(3, "a.Static", 4)]) == {
        "method.stages.prune.ratio": "ratio"
    }
    assert differing_options([chain(2, "a.Static", 8), chain(3, "a.QAT", 8)]) == {}, "they are different methods"
