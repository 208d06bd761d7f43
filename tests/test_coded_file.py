"""Coded files give back the plain ones byte for byte, whatever engine reads them."""

from __future__ import annotations

import mmap
import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qexp.coded_file import (
    Piece,
    code_weights,
    coded_bytes,
    decoded,
    graph_pieces,
    is_coded,
    onnx_pieces,
    write_coded,
    zeros_share,
)
from qexp.coding import encode
from qexp.engine.onnxruntime import OnnxRuntime
from qexp.engine.openvino import OpenVino
from qexp.method.graph import save_graph
from qexp.onnx_file import write_onnx
from qexp.types import UserError
from tests import configured


class Net(nn.Module):
    """Weights of several sizes, one that is used twice, and whole numbers among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.linear = nn.Linear(32, 10)
        with torch.no_grad():
            self.second.weight.mul_(self.second.weight > 0.02)
            self.first.weight.copy_((self.first.weight * 20).round() / 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The network plain and coded."""
    folder = tmp_path_factory.mktemp("files")
    shapes = ({0: torch.export.Dim("batch")},)
    for name, coded in (("plain.pt2", False), ("coded.pt2", True)):
        save_graph(
            torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes), folder / name, coded
        )
    return folder / "plain.pt2", folder / "coded.pt2"


def images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8), dtype=np.float32)


def test_bytes_come_back(tmp_path: Path, files: tuple[Path, Path]) -> None:
    original = files[0].read_bytes()
    copy = tmp_path / "copy"
    copy.write_bytes(original)
    write_coded(copy, graph_pieces(files[0]))
    assert is_coded(copy) and len(copy.read_bytes()) < 0.8 * len(original)
    with decoded(copy) as plain:
        assert plain != copy and plain.name == copy.name and plain.read_bytes() == original


def test_a_plain_file_is_read_as_it_is(files: tuple[Path, Path]) -> None:
    with decoded(files[0]) as plain:
        assert not is_coded(files[0]) and plain == files[0]
    assert files[0].exists()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_decoded_file_is_gone_afterwards(
    in_memory: bool, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.delattr("os.memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="loading fails"), decoded(files[1]) as plain:
        assert plain.parents[1] == tmp_path and plain.read_bytes()[:2] == b"PK"
        assert plain.is_symlink() == (in_memory and hasattr(os, "memfd_create"))
        raise RuntimeError("loading fails")
    assert not plain.is_symlink() and [*tmp_path.iterdir()] == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is resident")
def test_a_decoded_file_counts_as_memory_of_this_process(files: tuple[Path, Path]) -> None:
    with decoded(files[1]) as plain:
        place = f"/memfd:{plain.name}"
        lines = Path("/proc/self/smaps").read_text().split(place, 1)[1].splitlines()
        resident = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
        assert resident == -(-plain.stat().st_size // mmap.PAGESIZE) * mmap.PAGESIZE // 1024
    assert place not in Path("/proc/self/smaps").read_text()


@pytest.mark.parametrize("name", ["model.pte", "model.aoti.pt2", "model.pt2.zip"])
def test_formats_in_which_weights_do_not_lie_plainly_stay(name: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(files[0].read_bytes())
    code_weights(tmp_path / name)
    assert (tmp_path / name).read_bytes() == files[0].read_bytes()


def test_arrays_lie_where_pieces_say(network: nn.Module, files: tuple[Path, Path]) -> None:
    data = files[0].read_bytes()
    held = {data[piece.offset : piece.offset + piece.size] for piece in graph_pieces(files[0])}
    floats = [value for value in network.state_dict().values() if value.dtype == torch.float32]
    assert held == {value.numpy().tobytes() for value in floats}


def test_zeros_are_those_of_the_layers(network: nn.Module, files: tuple[Path, Path]) -> None:
    layers = np.concatenate([value.numpy().reshape(-1) for value in network.state_dict().values() if value.ndim > 1])
    assert [zeros_share(file) for file in files] == [float((layers == 0).mean())] * 2 and (layers == 0).mean() > 0.1


def test_the_function_is_the_same_in_every_bit(network: nn.Module, files: tuple[Path, Path]) -> None:
    x = images()
    with torch.inference_mode():
        expected = torch.export.load(files[0]).module()(torch.from_numpy(x)).numpy()
    assert (configured.engine("eager").open(files[1], 1)(x) == expected).all()
    assert np.allclose(expected, network(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize(
    "engine", [configured.engine("onnxruntime"), configured.engine("openvino")], ids=lambda engine: engine.name
)
def test_a_coded_onnx_file_is_loaded_as_the_plain_one(
    engine: OnnxRuntime | OpenVino, files: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, small = tmp_path / "plain.onnx", tmp_path / "coded.onnx"
    write_onnx(files[0], (3, 8, 8), whole)
    small.write_bytes(whole.read_bytes())
    code_weights(small)
    assert is_coded(small) and not is_coded(whole) and small.stat().st_size < 0.7 * whole.stat().st_size
    with decoded(small) as plain:
        assert plain.read_bytes() == whole.read_bytes()
    assert (engine.open(small, 1)(images()) == engine.load(whole, 1)(images())).all()


@pytest.mark.integration
def test_pieces_of_onnx_are_its_initializers(files: tuple[Path, Path], tmp_path: Path) -> None:
    write_onnx(files[0], (3, 8, 8), tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    expected = [
        onnx.numpy_helper.to_array(c) for c in onnx.load(tmp_path / "m.onnx").graph.initializer if c.data_type == 1
    ]
    found = [np.frombuffer(data, np.float32, p.size // 4, p.offset) for p in onnx_pieces(tmp_path / "m.onnx")]
    assert len(found) == len(expected) > 3 and all(
        (a == b.reshape(-1)).all() for a, b in zip(found, expected, strict=True)
    )


def test_weights_are_counted_as_they_are_stored(files: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(files[0]) as archive:
        whole = sum(entry.file_size for entry in archive.infolist() if "/weight_" in entry.filename)
    assert whole / 4 < coded_bytes(files[1]) < 0.6 * whole


@pytest.mark.parametrize("damage", ["cut", "index", "graph", "array", "swapped"])
def test_a_damaged_file_is_refused(damage: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(files[1].read_bytes())
    if damage == "cut":
        data = data[:-10]
    elif damage == "swapped":  # every part is whole, but two belong elsewhere
        values = np.random.default_rng(0).standard_normal(1000).round().astype(np.float32)
        file, codes = tmp_path / "two", [encode(array.reshape(1, -1)) for array in (values, np.roll(values, 500))]
        file.write_bytes(values.tobytes() + np.roll(values, 500).tobytes())
        write_coded(file, [Piece(0, 4000, 1), Piece(4000, 4000, 1)])
        data = bytearray(file.read_bytes().replace(b"".join(codes), codes[1] + codes[0]))
        assert len(codes[0]) == len(codes[1]) and data != file.read_bytes()
    else:
        data[{"index": 30, "graph": len(data) // 2, "array": -20}[damage]] ^= 1
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(data)
    with pytest.raises(UserError, match="damaged"), decoded(broken):
        pass
