"""PyTorch without a compiler, the fp32 baseline and the reference that defines the accuracy of a Q/DQ graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qexp.artifact import EngineSpec
from qexp.engine.base import Forward
from qexp.engine.torch_common import TorchEngine, check_device, known_device, numpy_call, set_threads


class Eager(TorchEngine):
    """Runs the exported graph itself, on the CPU or on a CUDA GPU.

    Raises:
        UserError: There is no device of this name.
    """

    name = "eager"
    spec = EngineSpec(half=("bfloat16", "float16"))
    file = "model.pt2"
    packages = ("torch",)
    modules = ("torch", "torch.ao.quantization.fx._decomposed")  # the latter registers quantize and dequantize
    runs_simulated = True
    thread_safe = True

    def __init__(self, device: str):
        self.device = known_device(device)

    def check_machine(self) -> None:
        super().check_machine()
        check_device(self.name, self.device)

    def import_libraries(self) -> None:
        import io

        import torch

        super().import_libraries()
        # The first torch.export.load imports 200 MB of modules, which are the library's cost and not the network's.
        archive = io.BytesIO()
        torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), archive)
        archive.seek(0)
        torch.export.load(archive).module()(torch.zeros(1))

    def load(self, file: Path, threads: int) -> Forward:
        return self.standalone()(file, threads)

    def standalone(self) -> partial[Forward]:
        return partial(load_graph, device=self.device)


def load_graph(file: Path, threads: int, device: str) -> Forward:
    import torch
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize/dequantize operators)
    from torch.export.passes import move_to_device_pass

    set_threads(threads)
    program = torch.export.load(file)
    return numpy_call((move_to_device_pass(program, device) if device != "cpu" else program).module(), device)
