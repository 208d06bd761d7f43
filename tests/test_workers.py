"""How many processes run the tests that pytest is asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_xdist_auto_num_workers

THIS = str(Path(__file__))


@pytest.mark.parametrize(
    ("asked", "workers"),
    [
        ([], 3),
        ([str(Path(__file__).parent)], 3),
        ([THIS, str(Path(__file__).parent)], 3),
        ([THIS], 0),
        ([f"{THIS}::test_named_files_and_tests_have_no_workers[asked0-3]"], 0),
    ],
)
def test_named_files_and_tests_have_no_workers(asked: list[str], workers: int) -> None:
    config: Any = SimpleNamespace(option=SimpleNamespace(file_or_dir=asked))
    assert pytest_xdist_auto_num_workers(config) == workers
