"""benchmarks/survey.py: its networks have sane signals, and a small part of it runs here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


class Scaled(nn.Module):
    """A residual branch that begins at nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.gamma * self.norm(self.conv(x))).mean((2, 3)))


def test_nothing_begins_at_nothing() -> None:
    from survey_network import strengthen

    network = Scaled()
    kept = {name: value.clone() for name, value in network.named_parameters()}
    strengthen(network)
    assert (network.gamma == 1).all() and (network.norm.weight == 1).all()
    assert 0.2 < float(network.head.weight.detach().std()) < 0.8, "a half, which keeps the variance of four inputs"
    for name in ("conv.weight", "conv.bias", "norm.bias", "head.bias"):
        assert torch.equal(network.get_parameter(name), kept[name])


def test_batch_norms_have_seen_the_images() -> None:
    from survey_network import show

    network, images = Scaled().eval(), torch.randn(64, 3, 4, 4) * 3 + 1
    show(network, images)
    with torch.no_grad():
        seen = network.conv(images)
    torch.testing.assert_close(network.norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.norm.running_var, seen.var((0, 2, 3)), rtol=2e-2, atol=0)
    assert not network.training and network.norm.momentum == 0.1


def result(network: str, engine: str, status: str = "finished", **figures: Any) -> dict[str, Any]:
    given = {"int8_share": 1.0, "signal_to_noise_db": 30.0} | figures if status == "finished" else figures
    return {
        "network": network, "method": "static", "engine": engine, "size": 64, "status": status, "seconds": 2.0,
        "reason": "", **given,
    }  # fmt: skip


def test_the_page_has_a_row_for_each_network_and_every_reason_once() -> None:
    from survey_table import survey_table

    results = [
        result("a/one", "eager", int8_share=0.5),
        result("a/one", "openvino", "failed", reason="it is\n odd"),
        result("b/two", "eager", signal_to_noise_db=12.34),
        result("b/two", "openvino", "failed", reason="it is odd"),
        result("a/one", "executorch", "unsupported", reason="no kernels"),
        result("b/two", "executorch", "unsupported", reason="no kernels"),
    ]
    page = survey_table(results, OmegaConf.create({"images": 8, "calibration_images": 4}), "a machine")
    assert "| a/one | 64 | 50 | 30.0 | failed (1) | 6 |" in page
    assert "| b/two | 64 | 100 | 12.3 | failed (1) | 6 |" in page
    assert "| static | OpenVINO | 0 of 1 | 0 of 1 |" in page
    assert page.count("it is odd") == 1 and "`static` on ExecuTorch is unsupported: no kernels." in page


@pytest.mark.integration
@pytest.mark.thorough
def test_a_part_of_the_survey(tmp_path: Path) -> None:
    """Attention and plain convolutions, in integers on two engines, and again without computing anything."""
    options = [
        "networks=[timm/test_vit,torchvision/squeezenet1_1]", "methods=[static]",
        "engines=[eager,onnxruntime]", "images=16", "calibration_images=16",
        f"folder={tmp_path}", f"table={tmp_path / 'survey.md'}",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "benchmarks" / "survey.py"), *options]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 4 and all(r["status"] == "finished" for r in results), first.stdout
    for r in results:
        assert r["int8_share"] > 0.9 and math.isfinite(r["signal_to_noise_db"])
        assert r["signal_to_noise_db"] > (12 if "vit" not in r["network"] else 6), r
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert " dB, " in first.stdout and " dB, " not in again.stdout
    assert "| timm/test_vit | 64 |" in (tmp_path / "survey.md").read_text()
