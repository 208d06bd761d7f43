"""A new measurement is one Python file and one yaml.

Tables, the page, MLflow and searches then know what it says of its metrics.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import pytest

from qexp.metrics import METRICS, Metric, metrics_of
from qexp.tracking.mlflow_pages import view_tag
from qexp.tracking.store import read_records
from tests.commands import FEW_WINDOWS, PRETEND, RunCommand, fake, records
from tests.measure.cache_misses import CacheMisses

FILES = {
    "cache_misses": "cache_misses: {_target_: tests.measure.cache_misses.CacheMisses, per_image: 100}\n",
    "mine": "defaults: [default, cache_misses, _self_]\n",
}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Cheap runs that count misses."""
    (tmp_path / "conf" / "measure").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "conf" / "measure" / f"{name}.yaml").write_text(text)
    place = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "measure=mine", "tracking=none"]
    return ["-m", *PRETEND, *fake("Fake"), *FEW_WINDOWS, *place, "report.formats=[md,html]"]


@pytest.mark.thorough
def test_its_metrics_are_in_tables_and_on_the_page(run: RunCommand, command: list[str], tmp_path: Path) -> None:
    code, printed = run(*command, "batch_size=1,2")
    assert code == 0 and re.search(r"┃ +misses ┃ +surprise ┃$", printed, re.M), printed
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    titles, _, *rows = (sweep / "results.md").read_text().splitlines()
    assert titles.endswith("| misses | surprise |")
    assert [row.split(" | ")[-2:] for row in rows[:2]] == [["100", "25 % |"], ["200", "25 % |"]]
    found = re.search(r'id="data">(.*?)</script>', (sweep / "report.html").read_text(), re.S)
    assert found
    data = json.loads(found[1])
    (column,) = (column for column in data["columns"] if column["key"] == "cache_misses")
    assert column["title"] == "misses" and column["cells"] == ["100", "200"] and not column.get("hidden")
    assert data["metrics"]["cache_misses"]["title"] == "cache misses of one call, misses"
    assert "machine" in data["metrics"]["cache_misses"]["same"] and "machine" not in data["metrics"]["surprise"]["same"]
    assert "cache_misses" in data["costs"] and "cache_misses" in data["curves"] and "surprise" not in data["curves"]
    assert metrics_of(read_records(sweep))["cache_misses"] == CacheMisses.metrics[0]
    described = {m["name"] for record in records(tmp_path) for m in record["measurements"] if "description" in m}
    assert described == {"cache_misses", "surprise"}, "the table knows the others"


@pytest.mark.thorough
def test_a_search_knows_its_directions_and_what_is_taken_on_test_images(
    run: RunCommand, command: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")

    def search(objective: str) -> tuple[int, str]:
        words = ["hydra/sweeper=optuna", "hydra.sweeper.trials=2", "batch_size=1,2"]
        return run(*command, *words, f"+hydra.sweeper.objectives.{objective}")

    for objective, message in (
        ("cache_misses=maximize", "cache_misses=maximize would look for the worst: give minimize"),
        ("surprise=minimize", "surprise is taken on the test images, which choose nothing: use val_surprise"),
    ):
        code, printed = search(objective)
        assert code == 1 and message in printed and "Traceback" not in printed, printed
    assert not (tmp_path / "outputs" / "sweeps").exists() or not records(tmp_path)
    code, printed = search("cache_misses=minimize")
    assert code == 0 and "misses ↓" in printed, printed
    (file,) = (tmp_path / "outputs").rglob("search.json")
    assert [best["values"] for best in json.loads(file.read_text())["best"]] == [[100]]


def test_mlflow_has_a_column_and_a_chart_of_it() -> None:
    packed = json.loads(view_tag("sweep", "", [], 0, ["cache_misses"]))["state"].partition(";")[2]
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert "metrics.`cache_misses`" in state["selectedColumns"]
    assert "cache_misses" in [chart.get("metricKey") for chart in state["compareRunCharts"]]


def test_a_name_of_the_table_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="memory_mb is a metric of qexp.metrics already"):
        Metric("memory_mb", "GB").of(1.0)
    assert METRICS["memory_mb"].of(1.0).description == {}
