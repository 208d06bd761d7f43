"""force=true makes everything anew, once per sweep, and loses no record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qexp.artifact import Artifact, EngineSpec, Executable
from qexp.data.random import RandomData
from qexp.engine import base
from qexp.engine.base import Engine, Forward
from qexp.files import RECORDS, building_anew, mend
from qexp.method import artifacts
from qexp.method.artifacts import make_artifact
from tests import configured
from tests.commands import FEW_WINDOWS, PRETEND, RunCommand, fake

SOURCE = {"model": "small", "weights": "0123"}


class Writes(Engine):
    """Has a file of its own, which says how often it was written."""

    name = "writes"
    spec = EngineSpec()
    file = "own.txt"
    packages = ("numpy",)
    times = 0

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        type(self).times += 1
        file.write_text(str(self.times))

    def load(self, file: Path, threads: int) -> Forward:
        raise NotImplementedError


def now(folder: Path) -> int:
    mark = folder / "mark"
    mark.touch()
    return mark.stat().st_mtime_ns


@pytest.mark.thorough
def test_a_sweep_makes_each_artifact_anew_once_and_keeps_the_records(
    run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    write = artifacts.write_artifact

    def remember(*arguments: Any) -> None:
        made.append(arguments[5].name)
        write(*arguments)

    monkeypatch.setattr(artifacts, "write_artifact", remember)
    sweep = ["-m", *PRETEND, "method=none,static", "batch_size=1,2", *fake("Fake"), *FEW_WINDOWS, "tracking=none"]
    for more, expected in (([], 2), ([], 0), (["force=true"], 2), (["force=true"], 2)):
        made.clear()
        code, printed = run(*sweep, *more)
        assert code == 0, printed
        assert len(made) == len({*made}) == expected
    folders = [folder for folder in (tmp_path / "outputs" / "artifacts").iterdir() if not folder.name.startswith(".")]
    assert {folder.name for folder in folders} == {*made}
    assert [len([*(folder / RECORDS).glob("*.json")]) for folder in folders] == [2, 2], "one of each batch size"


@pytest.mark.integration
def test_an_artifact_of_before_is_made_anew_bit_for_bit(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    def make(since: int = 0) -> Artifact:
        return make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path, since)

    def inode(artifact: Artifact) -> int:
        return (artifact.folder / artifact.graph).stat().st_ino

    first = make()
    weights = torch.export.load(first.folder / first.graph).state_dict
    (first.folder / RECORDS).mkdir()
    (first.folder / RECORDS / "run.json").write_text("a record")
    before, begun = inode(first), now(tmp_path)
    again = make(begun)
    remade = inode(again)
    assert before != remade and again.key == first.key and inode(make(begun)) == inode(make()) == remade
    assert (again.folder / RECORDS / "run.json").read_text() == "a record"
    others = torch.export.load(again.folder / again.graph).state_dict
    assert all(torch.equal(weights[name], others[name]) for name in weights.keys() | others.keys())


def test_an_engines_file_is_written_again_where_it_is_old_or_its_code_has_changed(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    engine = Writes()

    def content(since: int = 0) -> str:
        lowered = engine.lower(Artifact.read(artifact.folder), 1, 1, since)
        assert [e.file for e in lowered.executables] == ["own.txt"]
        return (lowered.folder / "own.txt").read_text()

    assert [content(), content()] == ["1", "1"]
    begun = now(tmp_path)
    assert [content(begun), content(begun), content()] == ["2", "2", "2"]

    def changed(artifact: Artifact, executable: Executable) -> str:
        return "another"

    monkeypatch.setattr(base, "file_key", changed)
    assert [content(), content()] == ["3", "3"]


@pytest.mark.parametrize("there", ["old", "both"])
def test_a_kill_between_the_old_folder_and_the_new_one_loses_neither(tmp_path: Path, there: str) -> None:
    """The old folder was set aside already; the new one had its name, or not yet."""
    target = tmp_path / "artifact"
    for text in ("first", "second"):
        with building_anew(target, "records") as folder:
            (folder / "graph").write_text(text)
        (target / "records").mkdir(exist_ok=True)
        (target / "records" / text).touch()
    assert (target / "graph").read_text() == "second"
    assert sorted(file.name for file in (target / "records").iterdir()) == ["first", "second"]
    target.rename(tmp_path / ".artifact.old")
    if there == "both":
        target.mkdir()
        (target / "graph").write_text("third")
    mend(target, "records")
    assert [file.name for file in tmp_path.iterdir()] == ["artifact"]
    assert (target / "graph").read_text() == ("third" if there == "both" else "second")
    assert sorted(file.name for file in (target / "records").iterdir()) == ["first", "second"]
