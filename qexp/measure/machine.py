"""Describes the machine of a measurement. qexp.deploy copies this file to devices, which may have no psutil."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    import psutil
except ImportError:
    psutil = None  # type: ignore[assignment]

PACKAGES = (
    "qexp", "torch", "torchvision", "torchao", "onnx", "onnxruntime", "openvino", "executorch", "ai-edge-litert",
    "ncnn", "numpy",
)  # fmt: skip
CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# Instruction sets by which libraries choose their integer and bf16 kernels.
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


def physical_cores() -> int:
    """Number of cores that this process may use, without hyper-threads."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, _cores() or usable))


def place() -> dict[str, Any]:
    """What distinguishes this machine from others, on which results would differ."""
    return {"host": socket.gethostname(), "cpu": _cpu(_cpuinfo()), "cores": _cores()}


def environment(root: Path | None) -> dict[str, Any]:
    """CPU, memory, load, versions, and the commit of the repository `root`. What the system does not tell is None."""
    info = _cpuinfo()
    found = info.get("flags", info.get("Features", "")).split()
    return {
        **place(),
        "cpu_flags": [flag for flag in FLAGS if flag in found],
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.exists() else None,
        "load": psutil.getloadavg()[0] if psutil else os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory_gb": _memory_gb(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "commit": _commit(root) if root else None,
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            yield package, metadata.version(package)


def _cpu(info: dict[str, str]) -> str:
    return info.get("model name") or platform.processor() or platform.machine()


def _cores() -> int | None:
    if psutil:
        return psutil.cpu_count(logical=False)
    siblings = {file.read_text() for file in TOPOLOGY.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings) or None


def _memory_gb() -> float | None:
    if psutil:
        return psutil.virtual_memory().total / 1e9
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9 if hasattr(os, "sysconf") else None


def _cpuinfo() -> dict[str, str]:
    if not CPUINFO.exists():
        return {}
    first = CPUINFO.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}


# Git takes a tenth of a second, and the answer holds, because a process goes on running the code that it has imported.
@cache
def _commit(root: Path) -> str | None:
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
