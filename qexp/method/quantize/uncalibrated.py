"""What happens to a network that is converted without calibration: shown, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from qexp.data.base import ImageData
from qexp.method.base import Compressed
from qexp.method.graph import example_input
from qexp.method.quantize.base import Quantization, observe
from qexp.method.quantize.fake_quantize import WeightFakeQuantize, quantizers
from qexp.types import EngineSpec, UserError


class Uncalibrated(Quantization):
    """Leaves every activation at the scale 1 and the zero point 0 that its observer began with, as classic flows do where calibration
    was forgotten."""

    name = "uncalibrated"

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        """Errors: UserError, always, with the share of validation images that such a network gets right."""
        folded = self.folded(network, data)
        prepared = prepare_pt2e(folded, self.placement(folded, engine_spec))
        observe(prepared, example_input(data), self.calibration_batch)  # weights are there without images
        blind = [each for each in quantizers(prepared).values() if not isinstance(each, WeightFakeQuantize)]
        for each in quantizers(prepared).values():
            each.fix()
        for each in blind:
            each.scale, each.zero_point = torch.ones_like(each.scale), torch.zeros_like(each.zero_point)
        shares = [right(model, data, self.calibration_batch) for model in (prepared, network)]
        raise UserError(
            f"Not calibrated: {len(blind)} activations have scale 1 and zero point 0. Such a network gets {shares[0]:.4f} of the "
            f"{len(data.validation_indices)} validation images right, and {shares[1]:.4f} in fp32. Give method=static: it calibrates."
        )


def right(model: Callable[[Tensor], Tensor], data: ImageData, batch: int) -> float:
    """Share of the validation images that the model gets right."""
    split, found = data.splits["train"], 0
    with torch.no_grad():
        for chosen in torch.from_numpy(data.validation_indices).split(batch):
            logits = model(data.normalise(torch.from_numpy(split.images[chosen.numpy()])))
            found += int((logits.argmax(1) == torch.from_numpy(split.labels[chosen.numpy()])).sum())
    return found / len(data.validation_indices)
