"""Records on disk: what was written is read back, and a failing write harms nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qexp.records import Record
from qexp.tracking import store
from qexp.tracking.nowhere import Nowhere
from qexp.tracking.store import read_records, write_record
from qexp.types import DataSpec, UserError

MakeRecord = Callable[..., Record]


def test_a_record_is_read_back_as_it_was(record: MakeRecord, tmp_path: Path) -> None:
    written = record(status="failed", reason='it said "no",\nthen nothing')
    write_record(written, tmp_path / "monday" / "0")
    assert read_records(tmp_path / "monday") == [written]
    assert (tmp_path / "monday" / "0" / "layers.csv").read_text() == "layer,kind\nfc,linear"
    values = json.loads((tmp_path / "monday" / "0" / "record.json").read_text())
    assert values["measurements"][1] == {
        "name": "latency_ms", "value": 2.5, "unit": "ms", "kind": "measured", "samples": [2.25, 2.5, 2.75],
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "monday" / "0").iterdir()) == ["layers.csv", "record.json"]


def test_records_come_in_the_order_of_their_jobs(record: MakeRecord, tmp_path: Path) -> None:
    for job in (10, 2, 0, 1):
        write_record(record(key=str(job)), tmp_path / str(job))
    (tmp_path / "3").mkdir()  # a job without a record
    assert [r.key for r in read_records(tmp_path)] == ["0", "1", "2", "10"]
    assert read_records(tmp_path / "nothing") == []


def test_a_folder_that_cannot_be_made_is_an_error_of_the_users(record: MakeRecord, tmp_path: Path) -> None:
    (tmp_path / "0").write_text("a file in its place")
    with pytest.raises(UserError, match=r"Cannot write .*/0: .*outputs="):
        write_record(record(), tmp_path / "0")
    assert (tmp_path / "0").read_text() == "a file in its place"


def test_a_full_disk_keeps_the_old_record(record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = record(key="old")
    write_record(old, tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qexp.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_record(record(key="new"), tmp_path)
    assert read_records(tmp_path) == [old]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layers.csv", "record.json"]


def test_texts_that_cannot_be_written_keep_the_old_record(record: MakeRecord, tmp_path: Path) -> None:
    old = record(key="old")
    write_record(old, tmp_path)
    (tmp_path / "more.txt").mkdir()
    with pytest.raises(UserError, match="Cannot write"):
        write_record(record(key="new", texts={"more.txt": "text"}), tmp_path)
    assert read_records(tmp_path) == [old]


def test_without_tracking_nothing_is_written(record: MakeRecord, pets: DataSpec, tmp_path: Path) -> None:
    nowhere = Nowhere()
    nowhere.prepare()
    nowhere.log(record(), tmp_path)
    assert nowhere.log_sweep("monday", [record()], "table", [tmp_path / "results.md"]) == nowhere.address() == ""
    assert nowhere.training_logger(tmp_path, "run", {}, pets, "pictures") is False
    assert list(tmp_path.iterdir()) == []
    assert store.read_records(tmp_path) == []
