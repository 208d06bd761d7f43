"""What the engines that run on torch share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qexp.engine.base import Forward
from qexp.types import Unsupported, UserError, nearest

DEVICES = ("cpu", "cuda")


def check_device(name: str, device: str) -> None:
    """Errors: Unsupported where this machine has no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Unsupported(f"{name} with device=cuda needs an NVIDIA GPU, which torch does not find here")


def known_device(device: str) -> str:
    """Errors: UserError for a device that is neither cpu nor cuda."""
    if device not in DEVICES:
        raise UserError(f"There is no device {device!r}. {nearest(device, DEVICES)}")
    return device


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def numpy_call(module: Callable[..., Any], device: str = "cpu") -> Forward:
    """A torch module as a function of NumPy arrays, without gradients; the way to the device and back is part of the call."""
    import torch

    def forward(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x).to(device)).cpu().numpy()

    return forward


def device_memory_mb(device: str) -> float | None:
    """Peak of torch's CUDA allocator in MB."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None


def operator_table(forward: Forward, x: np.ndarray) -> dict[str, Any]:
    """torch.profiler's table of one call, sorted by CPU memory, as text and as rows, and the sum of all that its operators
    allocated in MiB.

    The sum counts positive self allocations only, as older tables do; what is freed again in between counts each time.
    """
    from torch.profiler import ProfilerActivity, profile

    forward(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward(x)
    averages = profiler.key_averages()
    rows = [
        {
            "name": event.key, "calls": event.count, "cpu_time_us": event.cpu_time_total, "self_cpu_time_us": event.self_cpu_time_total,
            "cpu_memory_bytes": event.cpu_memory_usage, "self_cpu_memory_bytes": event.self_cpu_memory_usage,
        }
        for event in averages
    ]  # fmt: skip
    allocated = sum(max(0, row["self_cpu_memory_bytes"]) for row in rows)
    table = averages.table(sort_by="self_cpu_memory_usage", row_limit=30)
    return {"text": table, "rows": rows, "allocated_mib": allocated / 2**20}
