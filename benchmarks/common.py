"""What the benchmarks share: the config of compress.py, and a description of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from qexp.measure.machine import environment, physical_cores  # noqa: E402
from qexp.places import CONF  # noqa: E402


def composed(options: list[str]) -> DictConfig:
    """Compose the config of compress.py with these options, and with a number for `threads`."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("compress", options)
    if config.threads == "auto":
        config.threads = physical_cores()
    return config


def machine() -> str:
    """Describe the machine in one line: processor, cores, load and versions."""
    found = environment(ROOT)
    cpu = f"{found['cpu']}, {found['cores']} cores ({', '.join(found['cpu_flags'])}), load {found['load']:.2f}"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{cpu}; Python {found['python']}, {versions}"
