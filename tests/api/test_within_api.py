"""qexp.within gives a program what the command finds: the answer, the trials, and the network itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qexp
from qexp.tracking.store import read_records
from tests.api.nets import Small
from tests.commands import FEW_FORMATS, FEW_WINDOWS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_folder")]
IMAGES: dict[str, Any] = {"image_size": 16, "channels": 1, "calibration_images": 16}
LIMITS = {"drop": 100, "engines": ["onnxruntime"], "methods": ["none", "static"]}
BRIEF = [*FEW_WINDOWS, FEW_FORMATS, "tracking=none", "measure.parity=null"]


def test_the_network_that_holds_limits_is_found_and_deployed() -> None:
    network = Small().eval()
    asked: dict[str, Any] = {"limits": LIMITS, "minimise": "size_mb", "overrides": BRIEF, **IMAGES}
    with pytest.raises(qexp.UserError, match="whether these weights were trained.*validation_seen=accept"):
        qexp.within(network, "pictures", **asked)
    found = qexp.within(network, "pictures", validation_seen="accept", **asked)
    tried = {row.name: row.values["size_mb"] for row in found.answer.rows if row.holds}
    assert found.answer.chosen == min(tried, key=tried.__getitem__) == "static int8 on onnxruntime"
    assert "may have been trained on the validation images" in str(found) and found.answer.sentence in str(found)
    assert "<table" in found._repr_html_() and "| tried |" in found._repr_markdown_()
    assert found.network is not None
    assert found.network.artifact.folder == Path(found.answer.artifact)
    made = qexp.compress(network, "pictures", method="static", engine="onnxruntime", overrides=BRIEF, **IMAGES)
    assert made.artifact.files == found.network.artifact.files
    picture = next(Path("pictures/test").rglob("*.png"))
    assert found.network.predict(picture) == made.predict(picture)
    assert (found.network.deploy("dist") / "infer.py").exists()
    record = read_records(found.trials.folder)[-1]
    assert "may have been trained on the validation images" in record.notes["validation"]


def test_limits_that_make_no_sense_are_refused() -> None:
    for limits, message in (
        (["drop"], "limits=.* must be a dict"),
        ({"drop": -1}, "limits.drop=-1 is out of range"),
        ({"drp": 1}, "drp"),
    ):
        with pytest.raises(qexp.UserError, match=message):
            qexp.within(Small().eval(), "pictures", limits=limits, validation_seen="accept", overrides=BRIEF, **IMAGES)  # type: ignore[arg-type]
