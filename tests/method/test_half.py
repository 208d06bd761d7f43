"""Half precision: batch norms are folded in fp32, then everything is rounded once; engines say in which format."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.types import UserError
from tests import configured
from tests.method.training import SOURCE

WANTS = EngineSpec(half=("bfloat16", "float16"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_the_folded_ones_rounded_once(dtype: torch.dtype, pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    convolution, norm, linear = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4 * 14 * 14, 10)
    network = nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), linear)
    network(torch.randn(32, 3, 16, 16) * 3 + 1)
    network.eval()
    assert norm.running_var is not None and norm.running_mean is not None
    method = configured.method("half", dtype=str(dtype).removeprefix("torch."))
    artifact = make_artifact(method, network, pretend_data, WANTS, SOURCE, tmp_path)
    values = torch.export.load(artifact.folder / artifact.graph).state_dict.values()

    with torch.no_grad():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        expected = {
            (4, 3, 3, 3): convolution.weight.double() * scale[:, None, None, None],
            (4,): norm.bias.double() - norm.running_mean.double() * scale,
            (10, 4 * 14 * 14): linear.weight.double(),
            (10,): linear.bias.double(),
        }
    assert {tuple(value.shape) for value in values} == set(expected) and {value.dtype for value in values} == {dtype}
    digits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    for value in values:
        exact = expected[tuple(value.shape)]
        smallest = 2.0**-14  # below it float16 has fewer digits
        assert ((value.double() - exact).abs() <= 1.01 * 2.0**-digits * exact.abs().clamp(min=smallest)).all()


def test_the_network_itself_is_not_changed(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    before = copy.deepcopy(network.state_dict())
    make_artifact(configured.method("half"), network, pretend_data, WANTS, SOURCE, tmp_path)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.integration
def test_a_file_is_about_half_as_large(pretend_data: RandomData, tmp_path: Path) -> None:
    wide = configured.network("resnet8", blocks=[1, 1], widths=[64, 128]).eval()
    half, full = (
        make_artifact(method, wide, pretend_data, WANTS, SOURCE, tmp_path)
        for method in (configured.method("half"), configured.method("none"))
    )
    sizes = [(artifact.folder / artifact.graph).stat().st_size for artifact in (half, full)]
    assert 0.48 < sizes[0] / sizes[1] < 0.55
    weights = sum(p.numel() for p in wide.parameters() if p.ndim > 1)
    assert half.packed_bytes == 2 * weights + 4 * (full.parameters - weights)


@pytest.mark.parametrize(
    ("engine_spec", "dtype", "chosen"),
    [
        (WANTS, "auto", "bfloat16"),
        (WANTS, "float16", "float16"),
        (EngineSpec(half=("float16", "bfloat16")), "auto", "float16"),
    ],
)
def test_auto_takes_the_format_that_the_engine_favours(engine_spec: EngineSpec, dtype: str, chosen: str) -> None:
    assert configured.method("half", dtype=dtype).resolve(engine_spec).half == (chosen,)


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no half precision 'bfloat'. did you mean 'bfloat16'"):
        configured.method("half", dtype="bfloat")


class Casting(nn.Module):
    """Computes in float32 on purpose, and goes back to the type of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x)
        with torch.autocast(x.device.type, enabled=False):
            normal = y.float() / y.float().square().mean((1, 2, 3), keepdim=True).sqrt()
        ramp = torch.arange(y.shape[-1], dtype=torch.float32, device=x.device) / 16
        return self.linear((normal.to(y.dtype) * ramp.type_as(y)).mean((2, 3)))


def test_casts_to_float32_become_casts_to_half_precision(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Casting().eval()
    artifact = make_artifact(
        configured.method("half", dtype="bfloat16"), network, pretend_data, WANTS, SOURCE, tmp_path
    )
    graph = torch.export.load(artifact.folder / artifact.graph).module()
    x = pretend_data.calibration()[:8]
    with torch.no_grad():
        expected, found = network.double()(x.double()), graph(x)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()  # bfloat16 has 8 bits
