"""One convolution of a quantised network in integers, with every step between: what one_convolution.py prints.

The network is the ResNet-8 that comes with qexp, quantised by its method `static`; the two photographs come with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_sample_image
from torch.fx import GraphModule, Interpreter
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from qexp.data.base import ImageData
from qexp.data.cache import Decoded, Split
from qexp.data.pixels import to_arrays
from qexp.method.quantize.fake_quantize import FakeQuantize, quantizers
from qexp.method.quantize.numerics import Grid, quantize, sqnr_db
from qexp.method.quantize.placement import FUSED_ACTIVATIONS, WEIGHTED, layer_path
from qexp.model.base import build_network, load_weights, read_weights
from qexp.model.baseline import PACKAGED, Baseline
from qexp.types import EngineSpec

CONF = Path(__file__).parents[1] / "conf"
BASELINE = Baseline.read(PACKAGED / "resnet8-cifar10-jpeg")
LAYER = "stem.0"
Array = np.ndarray


class Photographs(ImageData):
    """To calibrate on, squares of china.jpg; to compute on, flower.jpg."""

    pretend = True  # the labels mean nothing

    def source_digest(self) -> str:
        return "scikit-learn"

    def decode(self) -> Decoded:
        china, flower = (load_sample_image(f"{name}.jpg") for name in ("china", "flower"))  # [427,640,3]
        squares = [china[top : top + 107, left : left + 107] for top in range(0, 320, 40) for left in range(0, 533, 40)]
        parts = {"train": np.stack(squares), "test": flower[None, :, 106:533]}
        small = {part: to_arrays(images, self.image_size, self.channels) for part, images in parts.items()}
        return Decoded(BASELINE.data.class_names, {part: Split(x, np.arange(len(x)) % 10) for part, x in small.items()})


@dataclass(frozen=True)
class Quantised:
    """A tensor as integers (int64) and the quantizer that calibration made for it: value = (integer - zero_point) * scale."""

    integers: Array
    quantizer: FakeQuantize

    @property
    def scale(self) -> Array:
        """[1], or [O] of a weight."""
        return self.quantizer.scale.double().numpy()

    @property
    def zero_point(self) -> int:
        return int(self.quantizer.zero_point[0])

    @property
    def grid(self) -> Grid:
        return self.quantizer.grid

    @property
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """low and high that the scale was computed from."""
        return self.quantizer.observer.range(self.grid)

    def limited(self, steps: Array) -> Array:
        """Whole steps from zero as integers of this tensor."""
        return np.clip(steps + self.zero_point, self.grid.quant_min, self.grid.quant_max).astype(np.int64)


@dataclass(frozen=True)
class Convolution:
    """In fp32 x[C,H,W], weight[O,C,3,3] and bias[O] with batch norm folded, y[O,H,W] after ReLU; qx, qweight, qy as integers."""

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
        """[C,H,W,3,3]: what each value of the result is computed from; outside of the picture lie zero points."""
        padded = np.pad(self.qx.integers, ((0, 0), (1, 1), (1, 1)), constant_values=self.qx.zero_point)
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))

    @property
    def products(self) -> Array:
        """[O,H,W,27]"""
        return np.einsum("chwij,ocij->ohwcij", self.windows, self.qweight.integers).reshape(*self.y.shape, -1)

    @property
    def correction(self) -> Array:
        """[O]: what the input's zero point adds to the sums."""
        return self.qx.zero_point * self.qweight.integers.sum((1, 2, 3))

    @property
    def integer_bias(self) -> Array:
        return np.rint(self.bias / (self.qx.scale * self.qweight.scale)).astype(np.int64)

    @property
    def accumulators(self) -> Array:
        return self.products.sum(-1) - self.correction[:, None, None] + self.integer_bias[:, None, None]

    @property
    def multiplier(self) -> Array:
        """[O]: steps of the result per step of an accumulator."""
        return self.qx.scale * self.qweight.scale / self.qy.scale

    @property
    def result(self) -> Array:
        return self.qy.limited(np.rint(self.accumulators * self.multiplier[:, None, None]))

    @property
    def values(self) -> Array:
        """What the integers of the result stand for; ReLU once more, for a result that was rounded before it."""
        return np.maximum(self.result - self.qy.zero_point, 0) * self.qy.scale

    @property
    def noise_db(self) -> float:
        """Signal to quantisation noise ratio of the whole layer."""
        return sqnr_db(torch.from_numpy(self.y), torch.from_numpy(self.values))

    @property
    def largest_product(self) -> int:
        """That there can be."""
        return self.qx.grid.quant_max * max(-self.qweight.grid.quant_min, self.qweight.grid.quant_max)

    @property
    def largest_sum(self) -> int:
        """Of K * K * C products, each as large as it can be."""
        return self.weight[0].size * self.largest_product


def fixed_point(multiplier: Array) -> tuple[Array, Array]:
    """stored (int32, at least 2^30) and shift: stored * 2^-shift is the multiplier."""
    fraction, exponent = np.frexp(multiplier)
    return np.rint(fraction * 2**31).astype(np.int64), 31 - exponent.astype(np.int64)


def shifted(product: Array, shift: Array) -> Array:
    """product * 2^-shift, rounded, in integers."""
    return (product + (1 << (shift - 1))) >> shift


def layer_and_result(graph: GraphModule) -> tuple[Any, Any]:
    """The layer's node and the one that rounds its result: after ReLU, unless there is one before."""
    layer = next(node for node in graph.graph.nodes if node.target in WEIGHTED and layer_path(node) == LAYER)
    (reader,) = layer.users
    return layer, next(iter(reader.users)) if reader.target in FUSED_ACTIVATIONS else reader


@cache
def convolution(bits: int = 8, before_activation: bool = False) -> Convolution:
    """The network's first convolution, quantised by `static` with these bits everywhere, on the flower."""
    network = build_network(OmegaConf.create(BASELINE.model)).eval()
    load_weights(network, read_weights(BASELINE.weights), str(BASELINE.folder))
    images = ["data=digits", f"data._target_={__name__}.Photographs", "data.name=photographs", "data.channels=3"]
    everywhere = [f"bits={bits}", f"method.first_last_bits={bits}", f"method.add_bits={bits}"]
    rounded = [f"method.quantize_before_activation={before_activation}", "method.reduce_range=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", ["model=resnet8", *images, "method=static", *everywhere, *rounded])
    data, method = instantiate(config.data), instantiate(config.method)
    data.spec = replace(data.open(), mean=BASELINE.data.mean, std=BASELINE.data.std)
    prepared = method.calibrated(network, data, method.resolve(EngineSpec()))
    layer, rounding = layer_and_result(prepared)
    of_x, of_weight, of_y = (quantizers(prepared)[node.target] for node in (*layer.args[:2], rounding))
    weight, bias = (prepared.get_parameter(node.target).detach() for node in (layer.args[1].args[0], layer.args[2]))
    qweight = quantize(of_weight.rows(weight), of_weight.scale[:, None], of_weight.zero_point[:, None], of_weight.grid)

    pixels = torch.from_numpy(data.splits["test"].images)
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
