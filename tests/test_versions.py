"""There is one version, and what earlier versions wrote is read, or refused by name.

tests/samples/0.1.0 holds what that version wrote: an artifact of the example of `qexp init` and the record of its run.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import qexp
from qexp.artifact import Artifact
from qexp.model.baseline import Baseline
from qexp.places import EXAMPLE
from qexp.tracking.store import read_record
from qexp.types import UserError

ROOT = Path(__file__).parents[1]
SAMPLES = Path(__file__).parent / "samples" / "0.1.0"
BASELINES = sorted((ROOT / "qexp" / "baselines").iterdir())
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_pyproject_alone_says_the_version_and_other_files_repeat_it() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert f"\n## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


def test_an_artifact_of_an_earlier_version_predicts_what_its_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from shapes.images import draw

    record = read_record(SAMPLES / "record.json")
    classes = np.arange(600) % 3
    network = qexp.load(SAMPLES / "artifact", engine="onnxruntime", threads=1)
    logits = network.logits(np.stack([draw("test", index) for index in range(600)]))
    right = (logits.argmax(1) == classes).sum()
    assert abs(right - 600 * record.metrics["top1"]) < 1.5, "an engine may round a tie in its own way"


@pytest.mark.parametrize("folder", BASELINES, ids=lambda folder: folder.name)
def test_baselines_of_an_earlier_version_are_read(folder: Path) -> None:
    assert Baseline.read(folder).weights.is_file()


def of_the_future(source: Path, target: Path) -> None:
    """Write a description as a later version may, with a field that this one does not know."""
    values: dict[str, Any] = json.loads(source.read_text())
    versions = values["versions"] if "versions" in values else values["environment"]["versions"]
    versions["qexp"] = "99.0.0"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(values | {"not_yet_known": 1}))


@pytest.mark.parametrize("kind", ["record", "artifact", "baseline"])
def test_what_a_later_version_wrote_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    source, name, read = {
        "record": (SAMPLES / "record.json", "record.json", lambda: read_record(folder / "record.json")),
        "artifact": (SAMPLES / "artifact/artifact.json", "artifact.json", lambda: Artifact.read(folder)),
        "baseline": (BASELINES[0] / "manifest.json", "manifest.json", lambda: Baseline.read(folder)),
    }[kind]
    of_the_future(source, folder / name)
    with pytest.raises(UserError) as raised:
        read()
    own = metadata.version("qexp")
    told = f"not_yet_known'. qexp 99.0.0 wrote it, and this is qexp {own}. What pip install qexp==99.0.0"
    assert told in str(raised.value)


@pytest.mark.parametrize("damaged", ["[]", "{", '{"versions": 3}', '{"environment": []}'])
def test_what_no_version_wrote_is_refused_too(damaged: str, tmp_path: Path) -> None:
    for name, read in {"artifact.json": Artifact.read, "manifest.json": Baseline.read}.items():
        (tmp_path / name).write_text(damaged)
        with pytest.raises(UserError, match="holds no artifact|is no manifest"):
            read(tmp_path)
    (tmp_path / "record.json").write_text(damaged)
    with pytest.raises(UserError, match="holds no record of this version of qexp"):
        read_record(tmp_path / "record.json")


def test_a_changed_file_of_an_artifact_is_named(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "artifact", tmp_path / "artifact")
    (tmp_path / "artifact" / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="model.onnx"):
        qexp.load(tmp_path / "artifact", engine="onnxruntime")
