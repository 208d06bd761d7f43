"""ExecuTorch with the XNNPACK delegate, which phones and boards use. Here its own runtime runs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Engine, Forward, in_batches_of
from qexp.tracing import without_stack_traces
from qexp.types import UserError, first_line

if TYPE_CHECKING:
    from torch.fx import GraphModule


class ExecuTorch(Engine):
    """Runs a program that is made for one batch size.

    In half precision, XNNPACK keeps the weights of convolutions in fp32 in the file, and layer norms compute in fp32:
    ExecuTorch's own in float16 (version 1.5.1) is off by half of its result for 256 channels, and not a number where
    the values are large. Convolutions over one dimension become those over two, as XNNPACK has no others.
    """

    name = "executorch"
    spec = EngineSpec(placement="xnnpack", activation="int8", half=("float16",))
    file = "model-batch{batch}.pte"
    packages = ("executorch",)
    modules = ("executorch.runtime",)
    carries_code = False

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize/dequantize operators)

        network = torch.export.load(graph).module()
        norms_in_fp32(network)
        in_two_dimensions(network)
        try:
            with torch.no_grad(), without_stack_traces():
                program = torch.export.export(network, (torch.zeros(batch, *artifact.data.input_shape),))
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        except Exception as error:
            raise UserError(f"executorch cannot lower {artifact.model}: {first_line(error)[:300]}") from error
        file.write_bytes(lowered.buffer)

    def load(self, file: Path, threads: int) -> Forward:
        return self.standalone()(file, threads)

    def standalone(self) -> partial[Forward]:
        return partial(load_program)


def norms_in_fp32(network: GraphModule) -> None:
    """Let the layer norms of an exported graph in half precision compute in fp32."""
    import torch

    aten = torch.ops.aten
    for norm in network.graph.find_nodes(op="call_function", target=aten.layer_norm.default):
        dtype = norm.meta["val"].dtype
        if dtype == torch.float32:
            continue
        with network.graph.inserting_before(norm):
            for given in norm.all_input_nodes:
                norm.replace_input_with(given, network.graph.call_function(aten.to.dtype, (given, torch.float32)))
        with network.graph.inserting_after(norm):
            rounded = network.graph.call_function(aten.to.dtype, (norm, dtype))
        norm.replace_all_uses_with(rounded, lambda user, made=rounded: user is not made)
    network.recompile()


def in_two_dimensions(network: GraphModule) -> None:
    """Let the 1-d convolutions of an exported graph compute images of height 1.

    ExecuTorch does the same on its own, but as if the result of each was an integer where integers are made of it
    later, and then its runtime refuses a convolution in floating point (version 1.5.1).
    """
    import torch

    aten, graph = torch.ops.aten, network.graph
    for conv in [node for node in graph.nodes if node.target in (aten.conv1d.default, aten.conv1d.padding)]:
        given: list[Any] = [*conv.args, *(None, [1], [0], [1])[len(conv.args) - 2 :]]
        x, weight, bias, stride, padding, dilation, *groups = given
        named = isinstance(padding, str)
        with graph.inserting_before(conv):
            image, kernel = (graph.call_function(aten.unsqueeze.default, (tensor, 2)) for tensor in (x, weight))
            sides = padding if named else [0, *padding]
            options = (image, kernel, bias, [1, *stride], sides, [1, *dilation], *groups)
            made = graph.call_function(aten.conv2d.padding if named else aten.conv2d.default, options)
            conv.replace_all_uses_with(graph.call_function(aten.squeeze.dim, (made, 2)))
        graph.erase_node(conv)
    network.recompile()


def load_program(file: Path, threads: int) -> Forward:
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(file)
    method = program.load_method("forward")
    assert method is not None
    batch = method.metadata.input_tensor_meta(0).sizes()[0]

    def forward(x: np.ndarray) -> np.ndarray:
        return method.execute([torch.from_numpy(x)])[0].numpy().copy()

    return in_batches_of(batch, forward)
