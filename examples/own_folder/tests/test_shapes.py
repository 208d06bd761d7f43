"""Run with `python -m pytest`, after `pip install pytest`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from shapes.images import draw
from shapes.network import ShapesNet
from shapes.short_mantissa import rounded

from qexp.places import CONF


def test_an_image_is_always_the_same_and_unlike_all_others() -> None:
    images = [draw(part, index) for part in ("train", "test") for index in range(50)]
    assert np.array_equal(images[7], draw("train", 7))
    assert len({image.tobytes() for image in images}) == 100


def test_a_triangle_covers_half_of_what_a_square_does() -> None:
    area = np.array([(draw("train", index) > 90).sum() for index in range(300)])
    assert 0.4 < np.median(area[2::3]) / np.median(area[1::3]) < 0.6


def test_the_network_gives_a_logit_for_each_class() -> None:
    network = ShapesNet(num_classes=3, in_channels=1, width=4)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("mantissa_bits", [0, 3, 7])
def test_weights_are_rounded_to_the_nearest_number_with_that_mantissa(mantissa_bits: int) -> None:
    weight = torch.randn(1000, dtype=torch.float64)
    step = 2.0 ** (torch.floor(torch.log2(abs(weight))) - mantissa_bits)
    assert torch.equal(rounded(weight, mantissa_bits), torch.round(weight / step) * step)


def test_conf_describes_all_of_them() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", ["experiment=shapes", "method=short_mantissa"])
    assert instantiate(config.method).options["mantissa_bits"] == config.method.mantissa_bits
    assert instantiate(config.data).name == "shapes" and config.model.id == "shapes_net"
