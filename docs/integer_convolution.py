"""Computes one convolution of a quantised network in integers, with all the steps that one_convolution.py prints.

The network is the ResNet-8 that comes with qexp, quantised by its method `static`. The two photographs come with
scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_sample_image
from torch.fx import GraphModule, Interpreter
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.data.pixels import to_arrays
from qexp.data.store import Listing
from qexp.method.layers import is_weighted, layer_name
from qexp.method.quantize.fake_quantize import FakeQuantize, quantizers
from qexp.method.quantize.numerics import Grid, quantize, sqnr_db
from qexp.method.quantize.placement import FUSED_ACTIVATIONS
from qexp.model.base import build_network, load_weights, read_weights
from qexp.model.baseline import PACKAGED, Baseline
from qexp.places import CONF

BASELINE = Baseline.read(PACKAGED / "resnet8-cifar10-jpeg")
LAYER = "stem.0"
Array = np.ndarray


class Photographs(ImageData):
    """Squares of china.jpg for calibration, and flower.jpg to compute on."""

    pretend = True  # the labels mean nothing

    def source_digest(self) -> str:
        return "scikit-learn"

    def listing(self) -> Listing:
        labels = {"train": np.arange(8 * 14) % 10, "test": np.zeros(1, int)}
        return Listing(BASELINE.data.class_names, labels)

    def decode(self, part: str, indices: Array) -> Array:
        china, flower = (load_sample_image(f"{name}.jpg") for name in ("china", "flower"))  # [427,640,3]
        squares = [china[top : top + 107, left : left + 107] for top in range(0, 320, 40) for left in range(0, 533, 40)]
        parts = {"train": np.stack(squares), "test": flower[None, :, 106:533]}
        return to_arrays(parts[part][indices], self.how)


@dataclass(frozen=True)
class Quantised:
    """A quantised tensor, whose values are (integer - zero_point) * scale.

    Attributes:
        integers: The integers, in int64.
        quantizer: The quantizer that calibration made for the tensor.
    """

    integers: Array
    quantizer: FakeQuantize

    @property
    def scale(self) -> Array:
        """scale[1], or scale[O] of a weight."""
        return self.quantizer.scale.double().numpy()

    @property
    def zero_point(self) -> int:
        return int(self.quantizer.zero_point[0])

    @property
    def grid(self) -> Grid:
        return self.quantizer.grid

    @property
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The bounds, low and high, from which the scale was computed."""
        return self.quantizer.observer.range(self.grid)

    def limited(self, steps: Array) -> Array:
        """Turn whole steps from zero into integers of this tensor, clipped to its grid."""
        return np.clip(steps + self.zero_point, self.grid.quant_min, self.grid.quant_max).astype(np.int64)


@dataclass(frozen=True)
class Convolution:
    """A convolution in fp32 and in integers.

    Attributes:
        pixels: pixels[C,H,W] uint8 of the picture.
        x: The input x[C,H,W] in fp32.
        weight: weight[O,C,3,3] in fp32, with batch norm folded.
        bias: bias[O] in fp32, with batch norm folded.
        y: The result y[O,H,W] in fp32, after ReLU.
        qx: The input as integers.
        qweight: The weight as integers.
        qy: The result as integers.
    """

    pixels: Array
    x: Array
    weight: Array
    bias: Array
    y: Array
    qx: Quantised
    qweight: Quantised
    qy: Quantised

    @property
    def windows(self) -> Array:
        """windows[C,H,W,3,3]: what each value of the result is computed from, with zero points outside the picture."""
        padded = np.pad(self.qx.integers, ((0, 0), (1, 1), (1, 1)), constant_values=self.qx.zero_point)
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))

    @property
    def products(self) -> Array:
        """products[O,H,W,27] of the integers of the input and of the weight."""
        return np.einsum("chwij,ocij->ohwcij", self.windows, self.qweight.integers).reshape(*self.y.shape, -1)

    @property
    def correction(self) -> Array:
        """correction[O]: what the input's zero point adds to the sums of the products."""
        return self.qx.zero_point * self.qweight.integers.sum((1, 2, 3))

    @property
    def integer_bias(self) -> Array:
        return np.rint(self.bias / (self.qx.scale * self.qweight.scale)).astype(np.int64)

    @property
    def accumulators(self) -> Array:
        return self.products.sum(-1) - self.correction[:, None, None] + self.integer_bias[:, None, None]

    @property
    def multiplier(self) -> Array:
        """multiplier[O]: steps of the result per step of an accumulator."""
        return self.qx.scale * self.qweight.scale / self.qy.scale

    @property
    def result(self) -> Array:
        return self.qy.limited(np.rint(self.accumulators * self.multiplier[:, None, None]))

    @property
    def values(self) -> Array:
        """The values of the result's integers. ReLU is applied once more, for a result that was rounded before it."""
        return np.maximum(self.result - self.qy.zero_point, 0) * self.qy.scale

    @property
    def noise_db(self) -> float:
        """Signal-to-quantisation-noise ratio of the whole layer, in dB."""
        return sqnr_db(torch.from_numpy(self.y), torch.from_numpy(self.values))

    @property
    def largest_product(self) -> int:
        """The largest product that is possible."""
        return self.qx.grid.quant_max * max(-self.qweight.grid.quant_min, self.qweight.grid.quant_max)

    @property
    def largest_sum(self) -> int:
        """The largest possible sum of K * K * C products, each of them as large as it can be."""
        return self.weight[0].size * self.largest_product


def fixed_point(multiplier: Array) -> tuple[Array, Array]:
    """Return `stored` (int32, at least 2^30) and `shift`, such that stored * 2^-shift is the multiplier."""
    fraction, exponent = np.frexp(multiplier)
    return np.rint(fraction * 2**31).astype(np.int64), 31 - exponent.astype(np.int64)


def shifted(product: Array, shift: Array) -> Array:
    """Compute product * 2^-shift in integers, rounded."""
    return (product + (1 << (shift - 1))) >> shift


def layer_and_result(graph: GraphModule) -> tuple[Any, Any]:
    """Find the layer's node and the node that rounds its result, which is after ReLU unless there is one before it."""
    layer = next(node for node in graph.graph.nodes if is_weighted(node) and layer_name(node) == LAYER)
    (reader,) = layer.users
    return layer, next(iter(reader.users)) if reader.target in FUSED_ACTIVATIONS else reader


@cache
def convolution(bits: int = 8, before_activation: bool = False) -> Convolution:
    """Quantise the network with `static`, and compute its first convolution on the flower.

    Args:
        bits: Bits of all weights and activations.
        before_activation: Whether results are rounded before the activation function, not after it.
    """
    network = build_network(OmegaConf.create(BASELINE.model)).eval()
    load_weights(network, read_weights(BASELINE.weights), str(BASELINE.folder))
    images = ["data=digits", f"data._target_={__name__}.Photographs", "data.name=photographs", "data.channels=3"]
    everywhere = [f"bits={bits}", f"method.first_last_bits={bits}", f"method.add_bits={bits}"]
    rounded = [f"method.quantize_before_activation={before_activation}", "method.reduce_range=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", ["model=resnet8", *images, "method=static", *everywhere, *rounded])
    data, method = instantiate(config.data), instantiate(config.method)
    data.spec = replace(data.open(), preprocessing=BASELINE.data.preprocessing)
    prepared = method.calibrated(network, data, method.resolve(EngineSpec()))
    layer, rounding = layer_and_result(prepared)
    of_x, of_weight, of_y = (quantizers(prepared)[node.target] for node in (*layer.args[:2], rounding))
    weight, bias = (prepared.get_parameter(node.target).detach() for node in (layer.args[1].args[0], layer.args[2]))
    qweight = quantize(of_weight.rows(weight), of_weight.scale[:, None], of_weight.zero_point[:, None], of_weight.grid)

    pixels = torch.from_numpy(data.pixels("test", np.arange(1)))
    x = data.normalise(pixels)
    converted = convert_pt2e(prepared)
    recorder = Interpreter(converted, garbage_collect_values=False)
    with torch.no_grad():
        y = network.get_submodule("stem")(x)
        recorder.run(x)
    layer, rounding = layer_and_result(converted)
    qx, qy = (recorder.env[node][0].long().numpy() for node in (layer.args[0].args[0], rounding))
    return Convolution(
        pixels[0].permute(2, 0, 1).numpy(), x[0].numpy(), weight.numpy(), bias.numpy(), y[0].numpy(),
        Quantised(qx, of_x), Quantised(qweight.reshape(weight.shape).long().numpy(), of_weight), Quantised(qy, of_y),
    )  # fmt: skip
