"""Classic torch.ao integer kernels through TorchScript, for comparison with older work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qexp.engine.base import Engine, Forward
from qexp.engine.torch_common import numpy_call, operator_table, set_threads
from qexp.types import EngineSpec, UserError, nearest

KERNELS = ("x86", "fbgemm", "onednn", "qnnpack")


class TorchAo(Engine):
    name = "torch_ao"
    file = "model.ts"
    packages = ("torch",)
    modules = ("torch.jit",)

    def __init__(self, kernels: str):
        if kernels not in KERNELS:
            raise UserError(f"There are no kernels {kernels!r}. {nearest(kernels, KERNELS)}")
        self.kernels = kernels
        self.spec = EngineSpec(("torchscript",), kernels=kernels)

    def load(self, file: Path, threads: int) -> Forward:
        return load_script(file, threads, self.kernels)

    def standalone(self) -> tuple[tuple[Callable[..., Any], ...], dict[str, Any]]:
        return (set_threads, numpy_call, load_script), {"kernels": self.kernels}

    def operators(self, run: Forward, x: np.ndarray) -> dict[str, Any]:
        return operator_table(run, x)


def load_script(file: Path, threads: int, kernels: str) -> Forward:
    import torch.jit

    set_threads(threads)
    torch.backends.quantized.engine = kernels
    return numpy_call(torch.jit.load(str(file)))
