"""Exports leave out what they would look up in vain, and torch's setting is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from qexp.data.random import RandomData
from qexp.method.graph import trace
from qexp.tracing import without_stack_traces
from qexp.types import UserError


def test_operators_have_no_lines_of_python(pretend_data: RandomData) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    usual = torch.export.export(network, (torch.zeros(2, 3, 16, 16),))
    assert any(node.stack_trace for node in usual.graph.nodes), "torch looks them up by default"
    assert not any(node.stack_trace for node in trace(network, pretend_data).graph.nodes)
    assert not fx.config.do_not_emit_stack_traces


def test_the_setting_comes_back_after_an_error(pretend_data: RandomData, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    for before in (False, True):
        monkeypatch.setattr(fx.config, "do_not_emit_stack_traces", before)
        with pytest.raises(UserError, match=r"torch\.export cannot trace"):
            trace(Untraceable(), pretend_data)
        with without_stack_traces():
            assert fx.config.do_not_emit_stack_traces
        assert fx.config.do_not_emit_stack_traces == before
