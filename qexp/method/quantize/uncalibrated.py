"""Shows what happens to a network that is converted without calibration, and refuses it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed
from qexp.method.graph import example_input
from qexp.method.quantize.accuracy_control import right
from qexp.method.quantize.base import Quantization, observe
from qexp.method.quantize.fake_quantize import WeightFakeQuantize, quantizers
from qexp.types import UserError


class Uncalibrated(Quantization):
    """Leaves every activation at scale 1 and zero point 0, where its observer began.

    Classic flows do the same if calibration is forgotten.
    """

    name = "uncalibrated"
    calibrates = False

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        """Refuse the network.

        Raises:
            UserError: Always. The message says what share of the validation images such a network gets right.
        """
        prepared = self.prepared(network, data, engine_spec)
        observe(prepared, example_input(data), self.calibration_batch)  # zeros are enough to observe the weights
        blind = [each for each in quantizers(prepared).values() if not isinstance(each, WeightFakeQuantize)]
        for each in quantizers(prepared).values():
            each.fix()
        for each in blind:
            each.scale, each.zero_point = torch.ones_like(each.scale), torch.zeros_like(each.zero_point)
        shares = [right(model, data, self.calibration_batch) for model in (prepared, network)]
        raise UserError(
            f"Not calibrated: {len(blind)} activations have scale 1 and zero point 0. Such a network gets "
            f"{shares[0]:.4f} of the {len(data.validation_indices)} validation images right, and {shares[1]:.4f} in "
            "fp32. Give method=static: it calibrates."
        )
