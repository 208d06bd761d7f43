"""How many processes run the tests that pytest is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_xdist_auto_num_workers

THIS = Path(__file__)


@pytest.mark.parametrize(
    ("asked", "marks", "workers"),
    [
        ([], "", 3),
        ([], "not integration", 2),
        ([THIS.parent], "", 3),
        ([THIS, THIS.parent], "", 3),
        ([THIS], "", 0),
        ([f"{THIS}::test_named_files_and_tests_have_no_workers"], "", 0),
    ],
)
def test_named_files_and_tests_have_no_workers(
    asked: list[Path | str], marks: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    config: Any = SimpleNamespace(option=SimpleNamespace(file_or_dir=[*map(str, asked)], markexpr=marks))
    assert pytest_xdist_auto_num_workers(config) == workers
