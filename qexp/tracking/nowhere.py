"""No tracking beyond the records on disk (`tracking=none`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qexp.records import Record
from qexp.types import DataSpec


class Nowhere:
    def prepare(self) -> None:
        pass

    def training_logger(self, folder: Path, run_name: str, params: dict[str, Any], data: DataSpec, source: str) -> Any:
        return False  # tells Lightning to use no logger

    def log(self, record: Record, folder: Path) -> None:
        pass

    def log_sweep(self, sweep: str, records: list[Record], markdown: str, files: list[Path]) -> str:
        return ""

    def address(self, page: str = "") -> str:
        return ""
