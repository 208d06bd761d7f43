"""What the engines that run on torch share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qexp.engine.base import Run


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def numpy_call(module: Callable[..., Any]) -> Run:
    """A torch module as a function of NumPy arrays, without gradients."""
    import torch

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    return run


def operator_table(run: Run, x: np.ndarray) -> dict[str, Any]:
    """torch.profiler's table of one call, sorted by CPU memory, and the sum of all that its operators allocated in MiB.

    The sum counts positive self allocations only, as older tables do; what is freed again in between counts each time.
    """
    from torch.profiler import ProfilerActivity, profile

    run(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(x)
    averages = profiler.key_averages()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in averages)
    return {"text": averages.table(sort_by="self_cpu_memory_usage", row_limit=30), "allocated_mib": allocated / 2**20}
