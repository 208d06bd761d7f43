"""What is rewritten in a graph before ExecuTorch gets it computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qexp.engine.executorch import in_two_dimensions


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3}, {"kernel_size": 3, "padding": 1, "groups": 8}, {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": "same", "dilation": 2, "bias": False}, {"kernel_size": 2, "padding": "valid"},
        {"kernel_size": 5, "padding": 2, "stride": 3, "groups": 2},
    ],
)  # fmt: skip
def test_convolutions_over_one_dimension_become_those_over_two(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv1d(8, 16, **options)).eval(), torch.randn(2, 8, 17)
    graph = torch.export.export(network, (x,)).module()
    assert isinstance(graph, torch.fx.GraphModule)
    in_two_dimensions(graph)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert not any("conv1d" in target for target in targets) and any("conv2d" in target for target in targets)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x))
