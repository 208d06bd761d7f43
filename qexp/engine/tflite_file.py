"""Writes `.tflite` files, which are flatbuffers, with the classes of their schema that LiteRT's package brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from qexp.engine.exported import Grid

ALIGNMENT = 16  # bytes; what the schema asks of the data of tensors
IDENTIFIER = b"TFL3"
TYPES = {np.dtype(np.float32): "FLOAT32", np.dtype(np.int8): "INT8", np.dtype(np.int32): "INT32"}
# The kind of options of each operator that has any.
OPTIONS = {
    "ADD": "AddOptions", "AVERAGE_POOL_2D": "Pool2DOptions", "BATCH_MATMUL": "BatchMatMulOptions",
    "CONCATENATION": "ConcatenationOptions", "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "DIV": "DivOptions", "FULLY_CONNECTED": "FullyConnectedOptions",
    "GELU": "GeluOptions", "LEAKY_RELU": "LeakyReluOptions", "MAX_POOL_2D": "Pool2DOptions", "MEAN": "ReducerOptions",
    "MUL": "MulOptions", "REDUCE_MAX": "ReducerOptions", "RESHAPE": "ReshapeOptions", "SOFTMAX": "SoftmaxOptions",
    "STRIDED_SLICE": "StridedSliceOptions", "SUB": "SubOptions", "SUM": "ReducerOptions",
}  # fmt: skip
# The version of each operator that came with integers, so that older runtimes refuse a file instead of misreading it.
INTEGER_VERSIONS = {
    "ADD": 2, "AVERAGE_POOL_2D": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4, "MAX_POOL_2D": 2, "MEAN": 2, "MUL": 2, "PAD": 2, "PADV2": 2, "QUANTIZE": 2, "REDUCE_MAX": 2,
    "RELU": 2, "RELU6": 2, "STRIDED_SLICE": 2, "SUB": 2, "TRANSPOSE": 2,
}  # fmt: skip


class _Buffer(schema.BufferT):
    """Bytes that begin at a multiple of ALIGNMENT in the file. The schema's own class does not align them."""

    def Pack(self, builder: Any) -> Any:
        data = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class TfliteFile:
    """A `.tflite` in the making. Tensors are known by their number."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers = [_Buffer()]  # the first one stands for tensors that are computed
        self.operators: list[Any] = []
        self.codes: dict[tuple[str, int], int] = {}

    def tensor(self, shape: Sequence[int], dtype: type[np.generic], grid: Grid | None = None, name: str = "") -> int:
        """Add a tensor that is computed.

        Args:
            shape: Its shape as it lies in memory.
            dtype: float32, int8 or int32.
            grid: What its integers stand for, with the axis as it lies in memory.
            name: What tools call it.
        """
        made = schema.TensorT()
        made.shape, made.hasRank = [int(side) for side in shape], True
        made.type = getattr(schema.TensorType, TYPES[np.dtype(dtype)])
        made.name, made.buffer = name or f"t{len(self.tensors)}", 0
        if grid is not None:
            quantization = schema.QuantizationParametersT()
            quantization.scale, quantization.zeroPoint = grid.scale.tolist(), grid.zero.tolist()
            quantization.quantizedDimension = grid.axis
            made.quantization = quantization
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, values: np.ndarray, grid: Grid | None = None, name: str = "") -> int:
        """Add a tensor with fixed values."""
        made = self.tensor(values.shape, values.dtype.type, grid, name)
        buffer = _Buffer()
        buffer.data = np.ascontiguousarray(values).tobytes()
        self.tensors[made].buffer = len(self.buffers)
        self.buffers.append(buffer)
        return made

    def operator(self, kind: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        """Add an operator, and give the number of its output.

        Args:
            kind: Its name in the schema, such as `CONV_2D`.
            inputs: Numbers of its inputs. -1 leaves one out.
            output: Number of its output.
            **options: Its options by their names in the schema.
        """
        made = schema.OperatorT()
        integers = self.tensors[inputs[0]].type == schema.TensorType.INT8
        version = INTEGER_VERSIONS.get(kind, 1) if integers else 1
        made.opcodeIndex = self.codes.setdefault((kind, version), len(self.codes))
        made.inputs, made.outputs = list(inputs), [output]
        if kind in OPTIONS:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, OPTIONS[kind])
            made.builtinOptions = getattr(schema, f"{OPTIONS[kind]}T")()
            for name, value in options.items():
                setattr(made.builtinOptions, name, value)
        self.operators.append(made)
        return output

    def save(self, file: Path, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Write the file, whose operators compute the outputs from the inputs."""
        model, graph = schema.ModelT(), schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self.tensors, self.operators, "main"
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model.version, model.subgraphs, model.buffers, model.description = 3, [graph], self.buffers, "qexp"
        model.operatorCodes = [_code(kind, version) for kind, version in self.codes]
        builder = flatbuffers.Builder(1024 + sum(len(buffer.data or b"") + 64 for buffer in self.buffers))
        builder.Finish(model.Pack(builder), IDENTIFIER)
        file.write_bytes(builder.Output())


def _code(kind: str, version: int) -> Any:
    made = schema.OperatorCodeT()
    number = getattr(schema.BuiltinOperator, kind)
    # Readers of the first schema know 127 operators in a byte, and 127 stands for all later ones.
    made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), version
    return made
