"""The classic integer kernels of torch.ao, run through TorchScript for comparison with older work."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qexp.artifact import EngineSpec
from qexp.engine.base import Forward
from qexp.engine.torch_common import TorchEngine, numpy_call, set_threads
from qexp.types import UserError, nearest

KERNELS = ("x86", "fbgemm", "onednn", "qnnpack")


class TorchAo(TorchEngine):
    """Runs TorchScript with one family of integer kernels.

    Raises:
        UserError: There are no kernels of this name.
    """

    name = "torch_ao"
    file = "model.ts"
    packages = ("torch",)

    def __init__(self, kernels: str):
        if kernels not in KERNELS:
            raise UserError(f"There are no kernels {kernels!r}. {nearest(kernels, KERNELS)}")
        self.kernels = kernels
        self.spec = EngineSpec(("torchscript",), kernels=kernels)

    def load(self, file: Path, threads: int) -> Forward:
        return self.standalone()(file, threads)

    def standalone(self) -> partial[Forward]:
        return partial(load_script, kernels=self.kernels)


def load_script(file: Path, threads: int, kernels: str) -> Forward:
    import torch.jit

    set_threads(threads)
    torch.backends.quantized.engine = kernels
    return numpy_call(torch.jit.load(str(file)))
