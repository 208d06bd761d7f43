from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compress
from qexp.data.random import RandomData
from qexp.measure import base
from qexp.model.resnet import ResNet
from tests.commands import Run, write_images


@pytest.fixture
def pretend_data(tmp_path: Path) -> RandomData:
    """64 pretend images of 3x16x16 in 10 classes, opened."""
    data = RandomData(images=64, num_classes=10, name="random", image_size=16, channels=3, cache_dir=str(tmp_path), calibration_images=32)
    data.open()
    return data


@pytest.fixture
def network() -> nn.Module:
    """A small residual network with batch norms that do something, in eval mode."""
    torch.manual_seed(0)
    made = ResNet([1, 1], [8, 16], num_classes=10)
    with torch.no_grad():
        made.train()
        for _ in range(3):
            made(torch.randn(16, 3, 16, 16) * 2 + 0.5)
    return made.eval()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes that differ in brightness."""
    return write_images(tmp_path / "pictures")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call an entry script's main with the given overrides, outputs below tmp_path; exit code and everything printed.

    No time is checked here, so nobody has to wait until this machine measures nothing else.
    """
    monkeypatch.setattr(base, "HOST_LOCK", tmp_path / "measure.lock")

    def call(*overrides: str, script: Any = compress) -> tuple[int, str]:
        outputs = [] if any(o.startswith("outputs=") for o in overrides) else [f"outputs={tmp_path / 'outputs'}"]
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *overrides, *outputs])
        code: Any = 0
        try:
            script.main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        message = code if isinstance(code, str) else ""  # sys.exit prints a text only when the interpreter ends
        return (code if isinstance(code, int) else 1), out + err + message

    return call
