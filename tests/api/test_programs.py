"""Programs and notebooks get what the command line gets: the same artifacts, figures, records and errors."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import qexp
from qexp.artifact import Artifact
from qexp.tracking.store import read_record
from qexp.types import UserError
from tests.api.nets import Small
from tests.commands import CHEAP, FEW_FORMATS, QUICK, RunCommand, metrics, records, without, write_images
from tests.documents import FENCE, ROOT

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_folder")]
IMAGES: dict[str, Any] = {"image_size": 16, "channels": 1, "calibration_images": 16}
ONE_FP32 = without("fp32_engines", "inductor", "openvino", "executorch", "litert", "ncnn", "torch_ao", "eager")
CHEAPEST = [*CHEAP, *ONE_FP32, FEW_FORMATS, "tracking=none"]  # accuracy and size alone
BRIEF = [*QUICK, FEW_FORMATS, "measure.parity.least_agreement=0"]
FILES = ("model.pt2", "model.onnx", "layers.csv")


THEIRS = [
    "model._target_=tests.api.nets.Small", "checkpoint=weights.pt", "data=folder", "data.root=pictures",
    *(f"data.{name}={value}" for name, value in IMAGES.items()), "outputs=command", "engine=onnxruntime", *CHEAPEST,
]  # fmt: skip


def compressed(network: Small) -> qexp.CompressedNetwork:
    """The network as a program compresses it, with its weights in a file for the command line."""
    torch.save(network.state_dict(), "weights.pt")
    return qexp.compress(network, "pictures", method="static", engine="onnxruntime", overrides=CHEAPEST, **IMAGES)


def test_a_program_makes_the_bytes_of_the_command_line(run: RunCommand) -> None:
    small = compressed(Small().eval())
    code, printed = run(*THEIRS, "method=static", "phase=compress")
    assert code == 0, printed
    (theirs,) = Path("command/artifacts").glob("[!.]*static*")
    assert Artifact.read(theirs).files == small.artifact.files
    assert (theirs / "model.pt2").read_bytes() == (small.artifact.folder / "model.pt2").read_bytes()
    assert "static int8" in repr(small) and "<b>Small</b>" in small._repr_html_()


@pytest.mark.thorough
def test_a_program_gets_the_figures_of_the_command_line_and_measures_once(run: RunCommand) -> None:
    network = Small().eval()
    small = compressed(network)
    table = qexp.compare([network, small], engines="onnxruntime")
    assert [record.params["method"] for record in table.records] == ["none", "static"]
    assert {record.command.split("(")[0] for record in table.records} == {"qexp.compare"}
    assert "Small" in str(table) and "<td" in table._repr_html_()

    code, printed = run("-m", *THEIRS, "method=none,static")
    assert code == 0, printed
    for ours, place in zip(table.records, ("0", "1"), strict=True):
        (file,) = Path("command/sweeps").glob(f"*/{place}/record.json")
        record = read_record(file)
        for name in ("top1", "top1_drop", "loss", "size_mb", "packed_size_mb", "agreement", "quantized_macs_share"):
            assert ours.metrics[name] == record.metrics[name], name
        stored = [[(Path(each.artifact) / name).read_bytes() for name in FILES] for each in (ours, record)]
        assert stored[0] == stored[1]
    assert small.artifact.folder.name == Path(table.records[1].artifact).name
    photo = next(Path("pictures/test").rglob("*.png"))
    assert small.predict(str(photo)) == qexp.load(record.artifact, "onnxruntime").predict(photo)

    again = qexp.compare([network, small], "pictures", engines="onnxruntime")
    assert all(record.reused for record in again.records)


def test_what_has_changed_since_is_not_compared(tmp_path: Path) -> None:
    network = Small().eval()
    small = compressed(network)
    with torch.no_grad():
        network.classifier.weight.mul_(2)
    with pytest.raises(qexp.UserError, match="Two different networks are called Small"):
        qexp.compare([network, small], "pictures")
    write_images(tmp_path / "more")
    next(Path("more/test").rglob("*.png")).unlink()
    with pytest.raises(qexp.UserError, match="These images of more.* are not those that the network was compressed"):
        qexp.compare([small], "more", engines="onnxruntime")


@pytest.mark.thorough
def test_tensors_of_a_dataset_are_measured_and_predicted_as_they_are() -> None:
    network = Small().eval()
    x = torch.randn(24, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    labels = network(x).argmax(1)
    labels[:3] = 1 - labels[:3]  # of 24 images, 21 are right
    data = {part: TensorDataset(x, labels) for part in ("train", "test")}
    fp32 = qexp.compress(network, data, method="none", engine="onnxruntime", overrides=CHEAPEST)
    table = qexp.compare([fp32], engines="onnxruntime")
    assert table.records[0].metrics["top1"] == 21 / 24
    with torch.no_grad():
        assert np.allclose(fp32.load().logits(x), network(x), atol=1e-5)  # type: ignore[arg-type]
    with pytest.raises(qexp.UserError, match="nothing says how an image becomes one"):
        fp32.predict(next(Path("pictures/test").rglob("*.png")))
    with pytest.raises(qexp.UserError, match="prepared as the dataset gives them, which a device does not have"):
        fp32.deploy("dist")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: qexp.compress(Small(), "pictures"), r"in training mode.* Call network.eval\(\) first"),
        (lambda: qexp.compress(Small().eval(), "pictures", obsever="mse"), "did you mean 'observer'"),
        (lambda: qexp.compress(Small().eval(), "picture"), "There is no folder .*picture. Give a folder"),
        (lambda: qexp.compress(Small().eval(), "pictures", image_size=16, tracking="none"), "cannot take images of 3x"),
        (lambda: qexp.compare([], "pictures"), "There is no network to compare"),
        (lambda: qexp.compare(Small().eval(), "pictures"), "takes a list of networks"),  # type: ignore[arg-type]
        (lambda: qexp.train(Small(), "pictures", trainer="ddp"), "trainer=ddp starts other processes"),
        (lambda: qexp.train(Small(), "pictures", epochs=0, image_size=16, channels=1), "recipe.epochs is 0"),
        (lambda: qexp.compare([Small().eval()]), "There are no images to compare the networks on"),
        (lambda: qexp.compare([Small().eval()], "pictures", bits=4), "bits is fixed by each network"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do_and_show_no_way_through_qexp(call: Any, message: str) -> None:
    with pytest.raises(qexp.UserError, match=message) as raised:
        call()
    shown = [frame for frame in traceback.extract_tb(raised.value.__traceback__) if "qexp/" in frame.filename]
    assert len([frame for frame in shown if "/tests/" not in frame.filename]) == 1
    assert raised.value.__cause__ is None and raised.value.__context__ is None


SCRIPT = """
import torch
import qexp
from qexp.measure import host_lock
from qexp.tracking.store import read_record
host_lock.HOST_LOCK = __import__("pathlib").Path("measure.lock")
class Net(torch.nn.Sequential):
    pass
torch.manual_seed(0)
network = Net(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1568, 2)).eval()
"""


@pytest.mark.thorough
def test_the_lines_of_the_readme_are_a_script_without_a_guard_in_an_empty_folder(own_folder: Path) -> None:
    (code,) = (text for language, text in FENCE.findall((ROOT / "README.md").read_text()) if "qexp.compress" in text)
    options = "".join(f", {name}={value}" for name, value in IMAGES.items()) + ", tracking='none'"
    code = code.replace("bits=8)", f"bits=8, engine='onnxruntime'{options})")
    code = code.replace('engines="auto"', f"engines='onnxruntime', overrides={BRIEF}")
    os.link(next(Path("pictures/test").rglob("*.png")), "photo.jpg")
    Path("script.py").write_text(SCRIPT + code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "static int8" in ended.stdout and ended.stdout.rstrip().splitlines()[-1] in ("dark", "light")
    assert Path("report.html").stat().st_size > 1e6 and Path("dist/infer.py").exists()
    assert len(records(own_folder)) == 3 and metrics(records(own_folder)[-1])["quantized_macs_share"] == 1


@pytest.mark.thorough
def test_the_notebook_runs(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "choose.ipynb", as_version=4)
    few = [*BRIEF, *without("engine", "inductor", "openvino", "executorch", "litert", "ncnn", "torch_ao")]
    for cell in notebook.cells:
        cell.source = cell.source.replace('engines="auto"', f'engines="auto", overrides={few}')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(own_folder)}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pages = [output["data"].get("text/html", "") for output in shown if output.output_type == "execute_result"]
    assert sum("<table>" in page for page in pages) == 2, "the comparison and its front"
    assert any("static int4" in page for page in pages) and any("for onnxruntime" in page for page in pages)
    assert not [output for output in shown if output.get("name") == "stderr" and "Error" in output.text]
    assert Path("dist/infer.py").exists() and Path("outputs/mlflow.db").exists()


@pytest.mark.thorough
def test_a_sweep_goes_through_lists_and_leaves_out_what_a_method_does_not_have() -> None:
    options = {"method": ["none", "static"], "observer": ["minmax", "mse"], "engine": "onnxruntime", **IMAGES}
    table = qexp.sweep(Small().eval(), "pictures", overrides=BRIEF, tracking="none", **options)
    rows = [(record.params["method"], record.config["method"].get("observer")) for record in table.records]
    assert rows == [("none", None), ("static", "minmax"), ("static", "mse")]
    frame = table.to_pandas()
    assert list(frame.status) == ["finished"] * 3 and (frame.top1 >= 0).all()
    assert {run.folder for run in table.front("size_mb").runs} <= {run.folder for run in table.runs}
    with pytest.raises(qexp.UserError, match="No run has the metric 'size'. did you mean 'size_mb'"):
        table.front("size")


def test_folders_of_artifacts_are_compared_too() -> None:
    small = compressed(Small().eval())
    folder = small.artifact.folder
    plain = qexp.compress(Small().eval(), "pictures", method="none", engine="onnxruntime", overrides=CHEAPEST, **IMAGES)
    table = qexp.compare(
        [plain.artifact.folder, str(folder)], engines="onnxruntime", overrides=[*CHEAPEST, "threads=1"]
    )
    assert [record.artifact for record in table.records] == [str(plain.artifact.folder), str(folder)]
    assert {record.status for record in table.records} == {"finished"}
    assert table.records[1].metrics["size_mb"] < table.records[0].metrics["size_mb"]
    for networks, data in (([folder], "pictures"), ([folder, Small().eval()], None)):
        with pytest.raises(UserError, match="either folders of artifacts or networks"):
            qexp.compare(networks, data)
