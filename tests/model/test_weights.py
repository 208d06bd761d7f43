"""Weights from other people's files and the Baseline folder: what is read, and what is refused with which message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qexp.model.base import load_weights, read_weights
from qexp.model.baseline import Baseline, check_space, find_baseline
from qexp.types import DataSpec, Preprocessing, UserError

DATA = DataSpec("toy", ("a", "b"), Preprocessing(1, (32, 32), (0.5,), (0.2,)), "0")


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


class Wrapped(nn.Module):
    """A network whose own names begin as Lightning's wrapper does."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small(2)


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def assert_same(network: nn.Module, weights: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_safetensors(tmp_path: Path) -> None:
    weights = small(1).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    network = small()
    load_weights(network, read_weights(tmp_path / "w.safetensors"), "w")
    assert_same(network, weights)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "network.", "network._orig_mod.", "module._orig_mod."])
def test_torch_files(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    weights = small(1).state_dict()
    saved: Any = prefixed(prefix, weights)
    torch.save({wrapper: saved, "epoch": 3} if wrapper else saved, tmp_path / "w.pth")
    network = small()
    load_weights(network, read_weights(tmp_path / "w.pth"), "w")
    assert_same(network, weights)


@pytest.mark.parametrize("prefix", ["", "network.", "module."])
def test_a_network_with_a_wrappers_name(prefix: str) -> None:
    weights = Wrapped().state_dict()
    network = Wrapped()
    nn.init.zeros_(network.network[0].weight)  # type: ignore[index,arg-type]
    load_weights(network, prefixed(prefix, weights), "w")
    assert_same(network, weights)


def test_without_step_counters() -> None:
    weights = {
        name: tensor for name, tensor in small(1).state_dict().items() if not name.endswith("num_batches_tracked")
    }
    network = small()
    load_weights(network, weights, "w")
    for name, tensor in weights.items():
        assert torch.equal(network.state_dict()[name], tensor)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.pt", None, "There is no checkpoint file"),
        ("text.pt", b"hello, world", "damaged|no checkpoint"),
        ("empty.pt", b"", "truncated or no checkpoint"),
        ("text.safetensors", b"hello, world", "truncated or no checkpoint"),
        ("empty.safetensors", b"", "truncated or no checkpoint"),
        ("module.pt", small(), "holds Python objects"),
        ("evil.pt", {"state_dict": Evil()}, "holds Python objects"),
        ("list.pt", [torch.zeros(2)], "not a state dict"),
        ("nothing.pt", {}, "not a state dict"),
        ("mixed.pt", {"a": torch.zeros(2), "epoch": 3}, "not a state dict"),
    ],
)
def test_refused_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, expected: str
) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError, match=expected) as caught:
        read_weights(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 400
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(small().state_dict(), file)
    else:
        save_file(small().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="truncated or no checkpoint"):
        read_weights(file)


def test_mismatch_is_listed() -> None:
    weights = {**small().state_dict(), **{f"extra{i}": torch.zeros(1) for i in range(62)}}
    weights["3.weight"] = torch.zeros(100, 8)
    del weights["0.bias"]
    with pytest.raises(UserError) as caught:
        load_weights(small(), weights, "w.pt")
    lines = str(caught.value).splitlines()
    assert lines[0] == "The weights in w.pt do not fit this model:"
    assert lines[1] == "  missing (1): 0.bias"
    assert lines[2].startswith("  unexpected (62): extra0, extra1") and lines[2].endswith("extra9 and 52 more")
    assert lines[3] == "  of another shape (1): 3.weight (100, 8) instead of (2, 8)"


def baseline(
    folder: Path, created: str = "2026-01-01T00:00:00+00:00", model: str = "small", data: DataSpec = DATA
) -> Baseline:
    return Baseline(
        folder,
        {"id": model},
        data,
        {"epochs": 1},
        0,
        {"val_top1": 0.5},
        created,
        "python train.py",
        1.0,
        {"python": "3"},
    )


def test_baseline_round_trip(tmp_path: Path) -> None:
    weights = small().state_dict()
    written = baseline(tmp_path / "b").write(weights)
    assert Baseline.read(tmp_path / "b") == written
    written.check()
    network = small(1)
    load_weights(network, read_weights(written.weights), "b")
    assert_same(network, weights)
    assert sorted(p.name for p in written.folder.iterdir()) == ["manifest.json", "model.safetensors"]


def test_baseline_with_tied_weights(tmp_path: Path) -> None:
    weights = small().state_dict()
    weights["tied"] = weights["3.weight"]
    read = read_weights(baseline(tmp_path / "b").write(weights).weights)
    assert torch.equal(read["tied"], read["3.weight"])


def test_tampered_weights(tmp_path: Path) -> None:
    written = baseline(tmp_path / "b").write(small().state_dict())
    content = bytearray(written.weights.read_bytes())
    content[-1] ^= 1
    written.weights.write_bytes(content)
    with pytest.raises(UserError, match="missing or damaged.*Train again: python train.py"):
        written.check()
    written.weights.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        written.check()


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '"text"', "{}", '{"format": 1}', '{"format": 99}', '{"format": 1, "data": {"name": 1}}']
)
def test_wrong_manifests(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="no manifest of a baseline.*Give a folder that train.py wrote"):
        Baseline.read(tmp_path)


def test_find_baseline(tmp_path: Path) -> None:
    for i, (created, model) in enumerate([("2026-01-03", "other"), ("2026-01-02", "small"), ("2026-01-01", "small")]):
        baseline(tmp_path / str(i), created, model).write(small().state_dict())
    found = find_baseline(tmp_path, "small", "toy", seed=0)
    assert found is not None and found.folder == tmp_path / "1"
    assert find_baseline(tmp_path, "small", "elsewhere", seed=0) is None
    assert find_baseline(tmp_path / "nowhere", "small", "toy", seed=0) is None


@pytest.mark.parametrize(("seed", "expected"), [(0, "2"), (1, "1"), (7, "3")])
def test_a_baseline_of_the_seed_is_taken_before_newer_ones(tmp_path: Path, seed: int, expected: str) -> None:
    for i, trained_with in enumerate([0, 1, 0, 2]):
        replace(baseline(tmp_path / str(i), f"2026-01-0{i + 1}", "small"), seed=trained_with).write(
            small().state_dict()
        )
    found = find_baseline(tmp_path, "small", "toy", seed)
    assert found is not None and found.folder == tmp_path / expected


def test_check_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(tmp_path / "new" / "folder", small())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write to .*file.*outputs=FOLDER"):
        check_space(tmp_path / "file" / "folder", small())
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(UserError, match="has 1 MB free, and this training needs up to 10 MB"):
        check_space(tmp_path, small())
