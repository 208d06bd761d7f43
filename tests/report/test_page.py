"""In a real browser, report.html loads alone; sorting, filtering, hovering and choosing axes do what they say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexp.report.pareto import pareto_front
from qexp.report.runs import Run, grouped
from qexp.report.write import Style, write_report
from tests.report.support import record

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"),
]
METHODS = {  # labels, sizes and times
    "none": ("fp32", 1.0, 1.0), "static": ("static int8", 0.25, 0.3), "dynamic": ("dynamic int8", 0.25, 0.6),
    "half": ("bf16", 0.5, 0.7),
}  # fmt: skip
EVIL = "</script><script>window.broken = true</script><img src=x onerror='window.broken = true'>"
LAYERS = """layer,kind,parameters,macs,weight,activation,weight_sqnr_db,input_sqnr_db,output_sqnr_db
stem,conv2d,432,9,int8,uint8,40,inf,
head,linear,650,9,int4,uint8,20,30,15
"""
SENSITIVITY = """layer,weight_bits,activation_bits,loss_change_nats,sqnr_db
stem,8,8,0.001,40
stem,4,4,0.1,20
head,8,8,-0.001,41
head,4,4,0.2,inf
"""


def synthetic(count: int, folder: Path) -> list[Run]:
    """Runs with random numbers: 3 models, 4 methods, 3 engines, 3 batch sizes, 2 machines, some that failed."""
    rng = np.random.default_rng(count)
    runs = []
    for index in range(count):
        model, method = f"net{rng.integers(3)}", str(rng.choice([*METHODS]))
        batch, engine, host = (
            rng.choice(values) for values in ([1, 8, 32], ["eager", "onnxruntime", "openvino"], ["desk", "board"])
        )
        label, size, speed = METHODS[method]
        top1 = 0.9 - 0.05 * rng.random()
        ms = float(np.exp(rng.normal()) * batch * speed)
        known = {
            "top1": top1, "top1_low": top1 - 0.01, "top1_high": top1 + 0.01, "top1_drop": 0.9 - top1,
            "size_mb": size * (1 + rng.random()), "latency_ms": ms, "latency_low_ms": 0.9 * ms,
            "latency_high_ms": 1.2 * ms,
            "memory_mb": 20 * rng.random(), "mcnemar_p": rng.random(),
        }  # fmt: skip
        failed = index % 17 == 3
        ended = {"status": "failed", "reason": EVIL} if failed else known
        made = record(label, int(batch), model, **ended)  # type: ignore[arg-type]
        made.params.update(engine=str(engine), method=method)
        name = f"{model} · {label} · {engine} · batch {batch}"
        place = folder / "sweeps" / "monday" / str(index)
        made = replace(
            made, label=name, environment={"host": str(host), "cores": 2}, command=f"python compress.py seed={index}"
        )
        runs.append(Run(made, place))
    first = runs[0].record
    numbers = ("calls", "self_cpu_time_us", "cpu_time_us", "self_cpu_memory_bytes", "cpu_memory_bytes")
    operators = [{"name": f"op{i}"} | dict.fromkeys(numbers, i) for i in range(30)]
    texts = {"layers.csv": LAYERS, "sensitivity.csv": SENSITIVITY, "operators.json": json.dumps(operators)}
    runs[0] = replace(runs[0], record=replace(first, texts=texts, notes={"energy_mj_per_image": "no counter"}))
    runs[0].folder.mkdir(parents=True)
    Image.new("RGB", (40, 30), "white").save(runs[0].folder / "layer-head.png")
    return runs


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, Service(DRIVER))
    yield started
    started.quit()


class Page:
    """A report of so many runs, opened."""

    def __init__(self, driver: Any, runs: list[Run], file: Path):
        self.driver, self.runs, self.file = driver, runs, file
        self.open()

    def open(self) -> None:
        self.driver.get(self.file.as_uri())
        self.wait("document.body.dataset.ready === 'true'")

    def wait(self, condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 120, 0.1).until(
            lambda driver: driver.execute_script(f"return {condition}"), condition
        )

    def js(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(f"return {code}", *values)

    def choose(self, name: str, value: str) -> None:
        script = (
            "const chosen = document.getElementById(arguments[0]); chosen.value = arguments[1];"
            "chosen.dispatchEvent(new Event('change'))"
        )
        self.driver.execute_script(script, name, value)

    def tick(self, facet: str, value: str) -> None:
        self.find(f".facet[data-name={facet}] summary").click()
        self.find(f".facet[data-name={facet}] input[value='{value}']").click()

    def find(self, selector: str) -> Any:
        found = self.driver.find_element("css selector", selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        return found

    @property
    def points(self) -> list[int]:
        """Ids of the runs that the plot shows."""
        return sorted(self.js("document.getElementById('pareto-plot').data.flatMap(trace => trace.customdata ?? [])"))

    @property
    def rows(self) -> list[int]:
        """Ids of the runs on this page of the table."""
        return [
            int(i)
            for i in self.js("[...document.querySelectorAll('#table tbody tr[data-id]')].map(line => line.dataset.id)")
        ]

    @property
    def console(self) -> list[dict[str, Any]]:
        return list(self.driver.get_log("browser"))


def finished(runs: list[Run], **names: Any) -> list[int]:
    wanted = names | {"status": "finished"}
    return [i for i, run in enumerate(runs) if all(run.names[name] == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def made(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    runs = synthetic(60, folder)
    write_report(runs, folder, "sweep monday", Style(("html",)))
    return Page(driver, runs, folder / "report.html")


@pytest.fixture
def page(made: Page) -> Page:
    made.open()
    return made


def test_it_loads_alone_and_without_an_error(page: Page) -> None:
    assert page.console == []
    loaded = page.js("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith(("blob:", "data:")) for name in loaded)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?https?:", page.file.read_text())
    assert page.js("document.getElementById('count').textContent") == "60 of 60 runs"
    assert page.points == finished(page.runs)
    assert page.js("window.broken") is None, "texts of records are no HTML"
    assert EVIL in page.js("document.getElementById('unfinished-list').textContent")


def test_a_click_on_a_title_sorts(page: Page) -> None:
    def shown() -> list[float]:
        return [page.runs[i].record.metrics.get("latency_ms", float("inf")) for i in page.rows]

    for way in ("ascending", "descending"):
        header = next(
            h for h in page.driver.find_elements("css selector", "#runs .dt-scroll-headInner th") if h.text == "ms"
        )
        header.click()
        page.wait(
            f"document.querySelector('#runs .dt-scroll-headInner th[aria-sort={way}]')?.innerText.trim() === 'ms'"
        )
        everything = [run.record.metrics["latency_ms"] for run in page.runs if run.record.status == "finished"]
        times = [ms for ms in shown() if ms != float("inf")]
        assert len(page.rows) == 25 and len(times) > 20
        assert times == sorted(everything, reverse=way == "descending")[: len(times)]


def test_filters_narrow_the_table_and_all_plots(page: Page) -> None:
    page.tick("engine", "openvino")
    page.tick("model", "net1")
    wanted = finished(page.runs, engine="openvino", model="net1")
    assert page.points == wanted and 0 < len(wanted) < 25
    everyone = [
        i for i, run in enumerate(page.runs) if run.names["engine"] == "openvino" and run.names["model"] == "net1"
    ]
    assert sorted(page.rows) == everyone
    assert page.js("document.getElementById('count').textContent") == f"{len(everyone)} of 60 runs"
    page.find("#reset").click()
    assert page.points == finished(page.runs)
    page.find("#words").send_keys("net2 bf16")
    assert page.points == finished(page.runs, model="net2", label="bf16")


def test_hovering_shows_the_run(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.choose("x", "size_mb")
    page.tick("model", "net1")
    page.find("#pareto h2").click()
    point = page.driver.find_elements("css selector", "#pareto-plot .scatterlayer .trace .point")[-1]
    ActionChains(page.driver).move_to_element(page.find("#pareto h2")).move_to_element(point).perform()
    page.wait("document.querySelector('#pareto-plot .hoverlayer').textContent.includes('net1')")
    text = page.js("document.querySelector('#pareto-plot .hoverlayer').textContent")
    assert "size on disk" in text and "latency" in text


@pytest.mark.parametrize(("x", "y"), [("latency_ms", "top1"), ("size_mb", "top1"), ("memory_mb", "top1")])
def test_axes_and_their_fronts_are_those_of_python(page: Page, x: str, y: str) -> None:
    page.choose("x", x)
    page.choose("y", y)
    assert page.js("document.getElementById('pareto-plot').layout.yaxis.title.text") == "top-1 accuracy, %"
    rows = [page.runs[i] for i in finished(page.runs)]
    same = ["data", "image_size"] + ["batch_size", "threads", "machine", "device"] * (x != "size_mb")
    expected = set()
    for members in grouped(rows, same).values():
        front = pareto_front([run.record.metrics[x] for run in members], [run.record.metrics[y] for run in members])
        expected.add(tuple(page.runs.index(members[i]) for i in front))
    assert {
        tuple(front) for front in page.js("qexp.fronts().map(front => front.map(point => point.row.id))")
    } == expected
    points = "data.filter(trace => trace.customdata).flatMap(trace => trace.x.map((x, i) => [trace.customdata[i], x]))"
    drawn = page.js(f"document.getElementById('pareto-plot').{points}")
    assert {i: pytest.approx(value, rel=1e-6) for i, value in drawn} == {
        i: page.runs[i].record.metrics[x] for i in finished(page.runs)
    }


def test_a_click_on_a_row_shows_the_run_with_its_command(page: Page) -> None:
    assert page.js("qexp.state.chosen") == 0, "the first with something to look at"
    for plot, bars in (("layers-plot", 2), ("sensitivity-plot", 2)):
        assert page.js("document.getElementById(arguments[0]).data.filter(t => t.type === 'bar').length", plot) == bars
    page.find(".pictures img")  # which is loaded when it is looked at
    page.wait("document.querySelector('.pictures img').naturalWidth === 40")
    assert "op29" in page.js("document.getElementById('detail').textContent")
    line = page.find("#table tbody tr[data-id='4']")
    line.click()
    assert page.js("document.querySelector('#detail pre').textContent") == "python compress.py seed=4"
    assert page.js("document.querySelector('#table tr.chosen').dataset.id") == "4"
    page.find("[data-copy]").click()
    assert page.console == []


def test_it_follows_the_theme_and_fits_narrow_windows(page: Page) -> None:
    colours = []
    for theme in ("light", "dark"):
        page.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        )
        page.wait(f"matchMedia('(prefers-color-scheme: {theme})').matches")
        text = "getComputedStyle(document.documentElement).getPropertyValue('--text').trim()"
        page.wait(f"document.getElementById('pareto-plot').layout.font.color === {text}")
        colours.append(page.js("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    try:
        for width in (420, 1400):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            page.wait(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_500_runs_stay_light(driver: Any, tmp_path: Path) -> None:
    """As the page's weight tells: how long it takes is no matter of tests."""
    runs = synthetic(500, tmp_path)
    write_report(runs, tmp_path, "many", Style(("html",)))
    page = Page(driver, runs, tmp_path / "report.html")
    assert page.file.stat().st_size < 8e6
    assert page.points == finished(runs) and len(page.rows) == 25
    assert page.js("document.querySelectorAll('*').length") < 15_000
    page.tick("engine", "eager")
    assert page.points == finished(runs, engine="eager")
    assert page.console == []
