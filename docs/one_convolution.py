"""Prints the numbers of docs/one_convolution.md, which follows one value of a convolution through integer arithmetic.

    uv run python docs/one_convolution.py

tests/test_docs.py compares what it prints with that page.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from integer_convolution import BASELINE, Array, Convolution, Quantised, convolution, fixed_point, shifted

from qexp.model.base import read_weights

CHANNEL, ROW, COLUMN = 11, 13, 14  # position of the value that is followed
NEGATIVE = 5  # a channel that ReLU sets to 0 at that position
HERE, THERE = (CHANNEL, ROW, COLUMN), (NEGATIVE, ROW, COLUMN)
WINDOW = (
    slice(None),
    slice(ROW - 1, ROW + 2),
    slice(COLUMN - 1, COLUMN + 2),
)  # the part of the input that it is computed from


def side_by_side(numbers: Array, form: str) -> str:
    """Lay out numbers[3,3,3] as three squares: red, green and blue."""
    return "\n".join(
        "   |   ".join(" ".join(f"{v:{form}}" for v in numbers[channel, row]) for channel in range(3))
        for row in range(3)
    )


def table(*rows: tuple[object, ...]) -> str:
    """Lay out rows as columns, the first of them flush left and the others flush right."""
    cells = [[f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells
    )


def side_by_name(columns: Iterable[dict[str, object]]) -> list[tuple[object, ...]]:
    """Make table rows of two columns that have the same names."""
    first, second = columns
    return [(name, first[name], second[name]) for name in first]


def picture(c: Convolution) -> str:
    how = BASELINE.data.preprocessing
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (how.mean, how.std))
    return "\n".join([
        "pixels (red | green | blue)", side_by_side(c.pixels[WINDOW], "4d"),
        f"x = (pixel / 255 - mean) / std with mean {mean} and std {std}", side_by_side(c.x[WINDOW], "7.4f"),
    ])  # fmt: skip


def scales(c: Convolution) -> str:
    def row(name: str, tensor: Quantised, index: int = 0) -> tuple[object, ...]:
        observer: Any = tensor.quantizer.observer
        ranges = (
            f"{low[index]:.4f} to {high[index]:.4f}" for low, high in ((observer.low, observer.high), tensor.range)
        )
        return (
            name,
            *ranges,
            f"{tensor.grid.quant_min} to {tensor.grid.quant_max}",
            float(tensor.scale[index]),
            tensor.zero_point,
        )

    (low, high), scale = (float(end) for end in c.qx.range), c.qx.scale[0]
    return "\n".join([
        table(
            ("tensor", "seen", "range", "integers", "scale", "zero_point"),
            row("input", c.qx), row(f"weight, channel {CHANNEL}", c.qweight, CHANNEL), row("result", c.qy),
        ),
        f"scale of the input = ({high:.4f} - ({low:.4f})) / 255 = {scale:.6g}",
        f"zero_point of the input = 0 - ({low:.4f}) / {scale:.6g} = {-low / scale:.2f}, rounded {c.qx.zero_point}",
        f"scale of the weight = {abs(c.weight[CHANNEL]).max():.4f} / 127 = {c.qweight.scale[CHANNEL]:.6g}",
    ])  # fmt: skip


def input_integers(c: Convolution) -> str:
    integers = c.qx.integers[WINDOW]
    back = (integers - c.qx.zero_point) * c.qx.scale
    return "\n".join([
        "round(x / scale) + zero_point", side_by_side(integers, "4d"),
        "(integer - zero_point) * scale", side_by_side(back, "7.4f"),
        f"largest difference from x: {abs(back - c.x[WINDOW]).max():.4f} (half a step is {c.qx.scale[0] / 2:.4f})",
    ])  # fmt: skip


def weights(c: Convolution) -> str:
    trained = read_weights(BASELINE.weights)
    first = float(trained["stem.0.weight"][CHANNEL, 0, 0, 0])
    gamma, beta, mean, variance = (
        float(trained[f"stem.1.{name}"][CHANNEL]) for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / (variance + 1e-5) ** 0.5
    return "\n".join([
        f"gamma / sqrt(variance + 1e-05) = {gamma:.4f} / sqrt({variance:.4f} + 1e-05) = {factor:.4f}",
        f"bias: beta - mean * {factor:.4f} = {beta:.4f} - {mean:.4f} * {factor:.4f} = {c.bias[CHANNEL]:.4f}",
        f"weight * {factor:.4f}; the first is {first:.4f} * {factor:.4f} = {c.weight[CHANNEL, 0, 0, 0]:.4f}",
        side_by_side(c.weight[CHANNEL], "7.4f"),
        f"round(weight / scale), scale {c.qweight.scale[CHANNEL]:.6g}", side_by_side(c.qweight.integers[CHANNEL], "4d"),
    ])  # fmt: skip


def accumulation(c: Convolution) -> str:
    total = int(c.qweight.integers[CHANNEL].sum())
    accumulator, scale = int(c.accumulators[HERE]), float(c.qx.scale[0] * c.qweight.scale[CHANNEL])
    return "\n".join([
        "input integer * weight integer", side_by_side(c.products[HERE].reshape(3, 3, 3), "6d"),
        table(
            ("sum of the 27 products", int(c.products[HERE].sum())),
            (f"- zero_point * sum of the weights = - {c.qx.zero_point} * ({total})", -int(c.correction[CHANNEL])),
            (f"+ bias = round({c.bias[CHANNEL]:.4f} / {scale:.6g})", int(c.integer_bias[CHANNEL])),
            ("= accumulator", accumulator),
        ),
        f"it stands for {accumulator} * {scale:.6g} = {accumulator * scale:.4f}; the fp32 network has {c.y[HERE]:.4f}",
    ])  # fmt: skip


def requantisation(c: Convolution) -> str:
    accumulator, multiplier, result = c.accumulators[HERE], c.multiplier[CHANNEL], c.result[HERE]
    stored, shift = fixed_point(multiplier)
    steps = shifted(accumulator * stored, shift)
    return "\n".join([
        f"multiplier = {c.qx.scale[0]:.6g} * {c.qweight.scale[CHANNEL]:.6g} / {c.qy.scale[0]:.6g} = {multiplier:.6g}",
        f"floating point:   {accumulator} * {multiplier:.6g} = {accumulator * multiplier:.3f}, "
        f"rounded {round(accumulator * multiplier)}",
        f"fixed point:      {multiplier:.6g} = {stored} / 2^{shift}",
        f"                  ({accumulator} * {stored} + 2^{shift - 1}) >> {shift} = {steps}",
        f"result:           clamp({steps} + {c.qy.zero_point}, 0, 255) = {result}",
        f"it stands for     ({result} - {c.qy.zero_point}) * {c.qy.scale[0]:.6g} = {c.values[HERE]:.4f}",
        f"the fp32 network  {c.y[HERE]:.4f}, {abs(c.values[HERE] - c.y[HERE]) / c.qy.scale[0]:.2f} steps away",
    ])  # fmt: skip


def relu(c: Convolution) -> str:
    accumulator, multiplier, y = c.accumulators[THERE], c.multiplier[NEGATIVE], c.y[THERE]
    steps = round(accumulator * multiplier)
    return "\n".join([
        f"accumulator {accumulator}, stands for {accumulator * multiplier * c.qy.scale[0]:.4f}",
        f"{accumulator} * {multiplier:.6g} = {accumulator * multiplier:.3f}, rounded {steps}",
        f"clamp({steps} + {c.qy.zero_point}, 0, 255) = {c.result[THERE]}; the fp32 network has {y:.4f}",
    ])  # fmt: skip


def largest(values: Array) -> int:
    return int(abs(values).max())


def signed_bits(most: int) -> int:
    """The bits of integers from -most to most."""
    return most.bit_length() + 1


def bit_widths(c: Convolution) -> str:
    product, total, bias = c.largest_product, c.largest_sum, largest(c.integer_bias)
    stored, _ = fixed_point(c.multiplier)
    accumulator = signed_bits(total + bias)
    return table(
        ("step", "held in", "largest possible", "bits", "largest here"),
        ("input integer", "uint8", 255, 8, largest(c.qx.integers)),
        ("weight integer", "int8", 127, 8, largest(c.qweight.integers)),
        ("product", "int16", product, signed_bits(product), largest(c.products)),
        ("sum of 27 products", "int32", total, signed_bits(total), largest(c.products.sum(-1))),
        ("zero point correction", "int32", total, signed_bits(total), largest(c.correction)),
        ("bias", "int32", "", "", bias),
        ("accumulator", "int32", f"{total} + bias", accumulator, largest(c.accumulators)),
        ("stored multiplier", "int32", 2**31 - 1, 32, largest(stored)),
        ("accumulator * multiplier", "int64", "", accumulator + 31, largest(c.accumulators * stored[:, None, None])),
        ("result", "uint8", 255, 8, largest(c.result)),
    )


def four_bits(*both: Convolution) -> str:
    def column(c: Convolution) -> dict[str, object]:
        return {
            "input integers": f"0 to {c.qx.grid.quant_max}", "input scale": float(c.qx.scale[0]),
            "input zero_point": c.qx.zero_point,
            "weight integers": f"{c.qweight.grid.quant_min} to {c.qweight.grid.quant_max}",
            "weight scale": float(c.qweight.scale[CHANNEL]), "range of the result": f"0 to {float(c.qy.range[1]):.4f}",
            "result scale": float(c.qy.scale[0]), "sum of products": c.products[HERE].sum(),
            "zero point correction": -c.correction[CHANNEL], "bias": c.integer_bias[CHANNEL],
            "accumulator": c.accumulators[HERE], "multiplier": float(c.multiplier[CHANNEL]), "result": c.result[HERE],
            "it stands for": f"{c.values[HERE]:.4f}", "the fp32 network": f"{c.y[HERE]:.4f}",
            "signal to noise of the layer, dB": f"{c.noise_db:.1f}",
            "largest possible product": c.largest_product, "its bits": signed_bits(c.largest_product),
            "largest possible sum": c.largest_sum, "bits of the sum": signed_bits(c.largest_sum),
            "largest accumulator here": largest(c.accumulators),
        }  # fmt: skip

    return table(("", "8 bits", "4 bits"), *side_by_name(column(c) for c in both))


def pairs(c: Convolution) -> str:
    sums = c.products[..., :26].reshape(*c.y.shape, 13, 2).sum(-1)
    lost = (sums - sums.clip(-(2**15), 2**15 - 1)).sum(-1)
    wrong = c.qy.limited(((c.accumulators - lost) * c.multiplier[:, None, None]).round()) - c.result
    return table(
        ("largest int16", 2**15 - 1),
        ("largest possible sum of two products", 2 * 255 * 127),
        ("the same with weights from -63 to 63", 2 * 255 * 63),
        ("largest sum of two neighbours here", largest(sums)),
        (
            "results with one that does not fit",
            f"{((sums < -(2**15)) | (sums > 2**15 - 1)).any(-1).sum()} of {c.y.size}",
        ),
        ("results that would be wrong", (wrong != 0).sum()),
        ("by up to, in steps", largest(wrong)),
    )


def activation(*both: Convolution) -> str:
    def column(c: Convolution) -> dict[str, object]:
        return {
            "result scale": float(c.qy.scale[0]), "result zero_point": c.qy.zero_point,
            f"channel {CHANNEL}": c.result[HERE],
            "stands for": f"{c.values[HERE]:.4f}", f"channel {NEGATIVE}": c.result[THERE],
            f"channel {NEGATIVE} after ReLU": max(c.result[THERE], c.qy.zero_point),
            "signal to noise of the layer, dB": f"{c.noise_db:.1f}",
        }  # fmt: skip

    return table(("", "rounded after ReLU", "before ReLU"), *side_by_name(column(c) for c in both))


def sections() -> dict[str, str]:
    """The text of every section, by title."""
    eight, four, before = convolution(), convolution(bits=4), convolution(before_activation=True)
    return {
        "The picture": picture(eight), "Range, scale and zero point": scales(eight),
        "The input as integers": input_integers(eight), "The weights as integers": weights(eight),
        "Products and accumulator": accumulation(eight), "Requantisation": requantisation(eight),
        "ReLU is a clamp": relu(eight), "Bits at every step": bit_widths(eight),
        "The same at 4 bits": four_bits(eight, four),
        "Pairs of products on x86": pairs(eight), "Rounding after or before the activation": activation(eight, before),
    }  # fmt: skip


if __name__ == "__main__":
    for title, text in sections().items():
        print(f"{title}\n\n{text}\n")
