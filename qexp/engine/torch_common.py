"""What the engines that run on torch share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qexp.engine.base import Engine, Forward
from qexp.types import Unsupported, UserError, nearest

DEVICES = ("cpu", "cuda")


class TorchEngine(Engine):
    """Profiles with torch's own profiler, and reads the memory of torch's CUDA allocator."""

    device = "cpu"

    def operators(self, file: Path, threads: int, forward: Forward, x: np.ndarray) -> dict[str, Any]:
        return operator_table(forward, x)

    def device_memory_mb(self) -> float | None:
        import torch

        return torch.cuda.max_memory_allocated() / 1e6 if self.device == "cuda" else None


def check_device(name: str, device: str) -> None:
    """Check that this machine has a device.

    Raises:
        Unsupported: It does not. The message begins with `name`, the name of the engine.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Unsupported(f"{name} with device=cuda needs an NVIDIA GPU, which torch does not find here")


def known_device(device: str) -> str:
    """Return the device if it is `cpu` or `cuda`.

    Raises:
        UserError: It is neither.
    """
    if device not in DEVICES:
        raise UserError(f"There is no device {device!r}. {nearest(device, DEVICES)}")
    return device


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def numpy_call(module: Callable[..., Any], device: str = "cpu") -> Forward:
    """Make a torch module a function of NumPy arrays, without gradients.

    A call includes copying the images to the device and the result back.
    """
    import torch

    def forward(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x).to(device)).cpu().numpy()

    return forward


def operator_table(forward: Forward, x: np.ndarray) -> dict[str, Any]:
    """Profile one call by operator with torch.profiler.

    The sum of allocations has only the positive ones of each operator itself, as older tables do. Memory that is freed
    and allocated again counts each time.

    Args:
        forward: The network as a function.
        x: Images x[B,C,H,W] float32.

    Returns:
        `text` (a table, sorted by CPU memory), `rows` (the same as data) and `allocated_mib` (the sum of allocations).
    """
    from torch.profiler import ProfilerActivity, profile

    forward(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward(x)
    averages = profiler.key_averages()
    rows = [
        {
            "name": event.key, "calls": event.count,
            "cpu_time_us": event.cpu_time_total, "self_cpu_time_us": event.self_cpu_time_total,
            "cpu_memory_bytes": event.cpu_memory_usage, "self_cpu_memory_bytes": event.self_cpu_memory_usage,
        }
        for event in averages
    ]  # fmt: skip
    allocated = sum(max(0, row["self_cpu_memory_bytes"]) for row in rows)
    table = averages.table(sort_by="self_cpu_memory_usage", row_limit=30)
    return {"text": table, "rows": rows, "allocated_mib": allocated / 2**20}
