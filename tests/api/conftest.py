"""Where programs run in tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from qexp.measure import host_lock
from tests.commands import write_images


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures that a program runs in, where nobody waits until this machine measures nothing else."""
    write_images(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(host_lock, "HOST_LOCK", tmp_path / "measure.lock")
    return tmp_path
