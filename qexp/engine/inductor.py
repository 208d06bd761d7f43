"""Inductor, the backend of torch.compile, with frozen weights.

It compiles ahead of time, into a package that loads at once, or at the first call.
"""

from __future__ import annotations

import logging
import platform
import shlex
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Forward, in_batches_of
from qexp.engine.torch_common import TorchEngine, check_device, known_device, numpy_call, set_threads
from qexp.types import Unsupported, UserError

# torch's own lowering of quantised linear layers copies a tensor in a way that torch warns of.
COPY_WARNING = "To copy construct from a tensor"
# A machine with CUDA's compiler but without a GPU is nothing to warn about.
logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: "No CUDA runtime" not in record.getMessage())


class Inductor(TorchEngine):
    """Runs machine code that a C++ compiler makes. Integer kernels exist for x86 processors only.

    A package is for this kind of processor, one batch size and, on the CPU, one number of threads.

    Raises:
        UserError: There is no device of this name.
    """

    name = "inductor"
    file = "model-batch{batch}-threads{threads}.aoti.pt2"
    packages = ("torch",)
    modules = ("torch._inductor.package",)

    def __init__(self, device: str, packaged: bool):
        self.device, self.packaged = known_device(device), packaged
        self.native = packaged
        self.spec = EngineSpec(placement="x86_inductor", half=("bfloat16", "float16"))
        if not packaged:
            self.file = "model.pt2"
        elif device != "cpu":
            self.file = f"model-batch{{batch}}.{device}.aoti.pt2"

    def check_machine(self) -> None:
        super().check_machine()
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        check_device(self.name, self.device)
        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError) as error:
            raise Unsupported("inductor needs a C++ compiler, and there is none: install g++ or set CXX") from error

    def check(self, artifact: Artifact) -> None:
        super().check(artifact)
        if artifact.has_qdq and (self.device != "cpu" or platform.machine() not in ("x86_64", "AMD64")):
            raise Unsupported("inductor has integer kernels for x86 processors only")

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        import torch
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401  (registers integer kernels)
        from torch._inductor import aot_compile
        from torch._inductor.package import package_aoti
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize/dequantize operators)
        from torch.export.passes import move_to_device_pass

        x = torch.zeros(batch, *artifact.data.input_shape)
        options = {
            "freezing": True, "cpp.threads": threads, "aot_inductor.metadata": {"batch": str(batch)},
            "aot_inductor.package": True,
            "aot_inductor.enable_line_tables": False,  # only debuggers need them, and they are most of a small package
            "cpp.cxx": compiler_without_paths(),
        }  # fmt: skip
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", COPY_WARNING)
            program = torch.export.export(torch.export.load(graph).module(), (x,))
            if self.device != "cpu":
                program = move_to_device_pass(program, self.device)
            assert program.example_inputs is not None
            try:
                made = aot_compile(program.module(check_guards=False), *program.example_inputs, options=options)
            except Exception as error:
                raise UserError(f"inductor cannot compile {artifact.model}: {str(error)[:600]}") from error
        assert isinstance(made, list)
        with file.open("w+b") as stream:
            # Without the sources, since their comments name files of this machine.
            package_aoti(stream, [part for part in made if not str(part).endswith(".cpp")])

    def import_libraries(self) -> None:
        super().import_libraries()
        if not self.packaged:
            import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401  (as in `write`)
            from torch.ao.quantization.fx import _decomposed  # noqa: F401

    def load(self, file: Path, threads: int) -> Forward:
        load = self.standalone() or self._load_to_compile_when_called
        return load(file, threads)

    def standalone(self) -> partial[Forward] | None:
        return partial(load_package, device=self.device) if self.packaged else None

    def _load_to_compile_when_called(self, file: Path, threads: int) -> Forward:
        """Load the graph, to be compiled for the batch size of the first call. Others are cut or filled up to that."""
        import torch
        from torch.export.passes import move_to_device_pass

        set_threads(threads)
        program = torch.export.load(file)
        if self.device != "cpu":
            program = move_to_device_pass(program, self.device)
        graph = program.module(check_guards=False)
        torch._inductor.config.freezing = True  # not among `options`, since the tracer reads it here too
        compiled = numpy_call(torch.compile(graph, dynamic=False), self.device)
        batch = 0

        def forward(x: np.ndarray) -> np.ndarray:
            nonlocal batch
            batch = batch or len(x)
            return in_batches_of(batch, compiled)(x)

        return forward


def load_package(file: Path, threads: int, device: str) -> Forward:
    import torch._inductor.package

    set_threads(threads)
    package = torch._inductor.aoti_load_package(str(file))
    return in_batches_of(int(package.get_metadata()["batch"]), numpy_call(package, device))


def compiler_without_paths() -> str:
    """The command of the C++ compiler, with options that keep paths of this machine out of error messages."""
    import torch
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    places = {torch.__path__[0]: "torch", cache_dir(): "generated"}
    return f"{get_cpp_compiler()} {shlex.join(f'-ffile-prefix-map={place}={name}' for place, name in places.items())}"
