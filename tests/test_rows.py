"""Jobs listed as rows: what runs, and how it stands beside the table that it reproduces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qexp.places import CONF
from qexp.records import Record
from qexp.report.reference import BETTER, WORSE, Reference
from qexp.report.results import results
from qexp.report.runs import Run as Found
from qexp.tracking.store import read_records
from qexp.types import UserError
from tests.commands import FEW_WINDOWS, PRETEND, RunCommand, fake
from tests.report.support import record
from tests.tiers import more

LISTED = [
    {"name": "fp32", "run": "method=none", "top1": 0.9, "size_mb": 8.0, "latency_ms": 40.0},
    {"name": "int8", "run": "method=static", "top1": 0.88, "size_mb": 2.0, "latency_ms": 10.0},
    {"name": "half the size of int8", "run": "method=static bits=4", "against": "int8", "size_mb": 1.0},
]
ROWS = ",".join(f"{{name: {row['name']}, run: '{row['run']}', top1: 0.5}}" for row in LISTED)


def experiments() -> list[str]:
    return sorted(
        file.stem for file in (CONF / "experiment").glob("*.yaml") if "hydra/sweeper: rows" in file.read_text()
    )


@pytest.mark.thorough
def test_every_row_is_a_job_for_each_value_of_the_command_line(run: RunCommand, tmp_path: Path) -> None:
    listed = ["hydra/sweeper=rows", "hydra.sweeper.title=A table", f"hydra.sweeper.rows=[{ROWS}]"]
    common = [*PRETEND, *fake("Fake"), *FEW_WINDOWS, *listed]
    code, printed = run("-m", *common, "batch_size=1,2")
    assert code == 0, printed
    assert "6 runs: fp32, int8, half the size of int8 × batch_size 1, 2" in printed and "A table" in printed
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    made = [(r.params["batch_size"], r.params["method"], r.params["bits"]) for r in read_records(sweep)]
    assert made == [(batch, *what) for batch in (1, 2) for what in (("none", 32), ("static", 8), ("static", 4))]
    assert "## A table" in (sweep / "results.md").read_text()
    before = "# Tables\n\n## Z, of another machine\n\n| a |\n\n~ noisy\n\n## A table\n\n| of last week |\n"
    text = results([tmp_path / "outputs"], before)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## A table", "## Z, of another machine"]
    assert text.endswith("## Z, of another machine\n\n| a |\n\n~ noisy\n") and "of last week" not in text
    assert results([tmp_path / "outputs"], text) == text and "\nresnet8 on random; ▲ better" in text
    with pytest.raises(UserError, match="no sweep of a table in .*elsewhere; run one first"):
        results([tmp_path / "elsewhere"], text)


def found(*records: Record) -> list[Found]:
    return [Found(each, Path(str(job))) for job, each in enumerate(records)]


def reference(tmp_path: Path, *records: Record) -> Reference:
    (tmp_path / "rows.json").write_text(json.dumps({"title": "A table", "rows": LISTED}))
    made = Reference.read(tmp_path, found(*records))
    assert made
    return made


def test_ours_stand_beside_theirs_in_what_machines_have_in_common(tmp_path: Path) -> None:
    ours = (
        record("fp32", top1=0.95, size_mb=8.0, latency_ms=4.0),
        record("int8", top1=0.94, size_mb=2.5, latency_ms=0.5),
        record("int4", top1=0.90, size_mb=1.0, latency_ms=2.0),
    )
    shown = reference(tmp_path, *ours).table()
    rows = {row[0]: dict(zip(shown.titles, row, strict=True)) for row in shown.rows}
    assert rows["fp32"]["top-1 %"] == "95.00 (90.00)" and rows["fp32"]["faster"] == "–"
    int8 = rows["int8"]
    assert int8["top-1 lost"] == f"1.00{BETTER} (2.00)"  # 0.95 - 0.94 and 0.90 - 0.88
    assert int8["size MB"] == f"2.50{WORSE} (2.00)" and int8["smaller"] == f"3.20x{WORSE} (4.00x)"
    assert int8["faster"] == f"8.00x{BETTER} (4.00x)" and int8["ms"] == "0.500 (10.0)"
    half = rows["half the size of int8"]
    assert half["smaller"] == f"2.50x{BETTER} (2.00x)", "against int8"
    assert half["size MB"] == "1.00 (1.00)", "the same is neither better nor worse"
    assert half["top-1 lost"] == "4.00 (–)"


def test_their_times_stand_beside_ours_at_their_batch_size_alone(tmp_path: Path) -> None:
    times = {"latency_ms": 10.0, "size_mb": 2.0, "batch_size": 1}
    listed = [
        {"name": "fp32", "run": "", "latency_ms": 40.0, "size_mb": 8.0, "batch_size": 1},
        {"name": "int8", "run": "", **times},
    ]
    (tmp_path / "rows.json").write_text(json.dumps({"title": "A table", "rows": listed}))
    ours = [record(bits, batch, latency_ms=4.0, size_mb=4.0) for batch in (1, 2) for bits in ("fp32", "int8")]
    made = Reference.read(tmp_path, found(*ours))
    assert made
    shown = made.table()
    once, twice = (dict(zip(shown.titles, row, strict=True)) for row in shown.rows if row[0] == "int8")
    assert (once["ms"], once["faster"]) == ("4.00 (10.0)", f"1.00x{WORSE} (4.00x)")
    assert (twice["batch"], twice["ms"], twice["faster"]) == ("2", "4.00 (–)", "1.00x (–)")
    assert once["size MB"] == twice["size MB"] == f"4.00{WORSE} (2.00)"


def test_what_did_not_run_is_a_row_all_the_same(tmp_path: Path) -> None:
    failed = record("int8", status="failed")
    cells = reference(tmp_path, record("fp32", top1=0.95, size_mb=8.0, latency_ms=4.0), failed).table().rows
    assert [row[0] for row in cells] == ["fp32", "int8 (failed)", "half the size of int8"]
    assert cells[1][1] == "– (88.00)"


def test_a_sweep_that_reproduces_nothing_has_no_such_table(tmp_path: Path) -> None:
    assert Reference.read(tmp_path, []) is None


@pytest.mark.integration
@pytest.mark.parametrize("name", ["lenet5_mnist", *more(*sorted({*experiments()} - {"lenet5_mnist"}))])
def test_every_row_of_the_presets_composes(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", [f"experiment={name}"], return_hydra_config=True)
        names = [row.name for row in config.hydra.sweeper.rows]
        assert len({*names}) == len(names)
        jobs = {
            row.name: compose("compress", [f"experiment={name}", *row.run.split()]) for row in config.hydra.sweeper.rows
        }
        for row in config.hydra.sweeper.rows:
            assert jobs[row.name].model.id == jobs[row.get("against", names[0])].model.id, (
                "another network's times and sizes"
            )
