"""What people see of runs in MLflow's pages: descriptions, links, and views with columns and charts already chosen.

A view is a tag of the experiment, which the page reads when the view's key is in the address. MLflow's own button
"Share" makes such a tag too, as seen in MLflow 3.17. A page that does not know a tag or a key shows its own columns and
charts.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from qexp.records import Record
from qexp.types import digest

TAG_LENGTH = 8000  # characters that MLflow accepts in a tag
VIEW = "mlflow.sharedViewState."  # the name of a view's tag, before its key
EVERYTHING = "qexp"  # the key of the view of all sweeps
NOT_SUMMARIES = "tags.`qexp.kind` != 'sweep'"
PARAMS = {"model": 110, "label": 120, "engine": 110, "batch_size": 90}  # columns and their widths in pixels
COLUMNS = (
    "top1", "top1_drop", "size_mb", "size_ratio", "latency_ms", "speedup", "speedup_vs_best_fp32", "memory_mb",
    "quantized_macs_share",
)  # fmt: skip
LEAST_WIDTH, LETTER_WIDTH = 90, 9  # pixels of a metric's column, whose title is the metric's name
CLOUDS = (("latency_ms", "top1"), ("size_mb", "top1"))  # horizontal and vertical metric of charts with a point per run
BARS = ("latency_ms", "size_mb", "speedup", "memory_mb")  # metrics of charts with a bar per run


def view_tag(name: str, search: str, options: list[str], created_ms: int, metrics: Sequence[str] = ()) -> str:
    """The value of a view's tag. The view lists runs in the order of their jobs, and compares compressed networks.

    Args:
        name: Name of the view.
        search: MLflow's filter that finds the runs.
        options: Options in which the runs differ. Each has a column.
        created_ms: Unix time in milliseconds at which the view was made.
        metrics: Metrics that only their measures' own files know. Each has a column and a chart.
    """
    columns = {f"params.`{name}`": 110 for name in options}
    columns |= {f"metrics.`{name}`": max(LEAST_WIDTH, LETTER_WIDTH * len(name)) for name in (*COLUMNS, *metrics)}
    columns |= {f"params.`{name}`": width for name, width in PARAMS.items()}  # last, because the runs' names tell them
    columns |= {"attributes.`Dataset`": 200}
    run_name, own, others = "attributes.`Run Name`", "qexp", "metrics"
    clouds = [
        {
            "type": "SCATTER",
            "xaxis": {"key": x, "type": "METRIC"},
            "yaxis": {"key": y, "type": "METRIC"},
            "runsCountToCompare": 100,
        }
        for x, y in CLOUDS
    ]
    charts = [*clouds, *({"type": "BAR", "metricKey": name, "runsCountToCompare": 20} for name in (*BARS, *metrics))]
    common = {"metricSectionId": own, "deleted": False, "isGenerated": False}
    state = {
        "searchFilter": search,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [*columns],
        "columnOrder": [run_name, *columns],
        "columnWidths": {run_name: 270, **columns},
        "compareRunCharts": [{**chart, **common, "uuid": f"{own}-{index}"} for index, chart in enumerate(charts)],
        # MLflow adds charts of all other metrics to its own section, which starts folded.
        "compareRunSections": [
            {"uuid": own, "name": "Compression", "display": True, "isReordered": True},
            {"uuid": others, "name": "Model metrics", "display": False, "isReordered": False},
        ],
    }
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": packed})


def view_key(sweep: str) -> str:
    """The key of the view of a sweep, made of characters that MLflow takes."""
    return digest(sweep)[:16]


def view_page(experiment: str, key: str) -> str:
    """Where the charts of a view are, after the server's address."""
    choices = {"viewStateShareKey": key, "compareRunsMode": "CHART", "workflowType": "machine_learning"}
    return f"/#/experiments/{experiment}/runs?{urlencode(choices)}"


def compare_page(experiment: str, runs: list[str]) -> str:
    """Where MLflow sets runs side by side, after the server's address."""
    chosen = {"runs": json.dumps(runs), "experiments": json.dumps([experiment]), "workflowType": "machine_learning"}
    return f"/#/compare-runs?{urlencode(chosen, quote_via=quote)}"


def file_page(experiment: str, run: str, file: str) -> str:
    """Where MLflow shows a file of a run, after the server's address."""
    return f"/#/experiments/{experiment}/runs/{run}/artifacts/{file}"


def described(markdown: str, links: dict[str, str]) -> str:
    """Write the description of a run, which is also a tag of limited length.

    Args:
        markdown: Tables. They are cut at the end of a line if MLflow would not accept all of the description.
        links: Addresses of pages by title. Very long addresses are left out.
    """
    room = [f"[{title}]({page})" for title, page in links.items() if len(page) < TAG_LENGTH // 4]
    head = " · ".join(room) + "\n\n" if room else ""
    if len(head) + len(markdown) > TAG_LENGTH:
        cut = "\n\nThe rest is in the artifact results.md."
        markdown = markdown[: TAG_LENGTH - len(head) - len(cut)].rpartition("\n")[0] + cut
    return head + markdown


def swept_options(records: list[Record]) -> list[str]:
    """Find the parameters in which the runs differ, and the options in which runs of the same method differ.

    Returns:
        Their names in MLflow, sorted.
    """
    found = {
        name for name in ("data", "image_size", "threads", "seed") if len({r.params.get(name) for r in records}) > 1
    }
    by_method: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record.params.get("method"), []).append(flatten({"method": record.config.get("method")}))
    for configs in by_method.values():
        names = {name for config in configs for name in config}
        found |= {name for name in names if len({str(config.get(name)) for config in configs}) > 1}
    return sorted(found)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries, with keys joined by dots. None is left out, because MLflow has no null."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
