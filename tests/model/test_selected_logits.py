"""A network that answers with some of its logits, and what is said where it has others than the data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from qexp.model.outputs import network_for
from qexp.types import DataSpec, Preprocessing, UserError

HOW = Preprocessing(3, (8, 8), (0.0,) * 3, (1.0,) * 3)
OWN = (1, 5, 8)


class Net(nn.Module):
    """x[B,3,8,8] -> logits[B,K], or with them in a tuple."""

    def __init__(self, num_classes: int, several: bool = False):
        super().__init__()
        self.head, self.several = nn.Linear(192, num_classes), several

    def forward(self, x: Tensor) -> Any:
        logits = self.head(x.flatten(1))
        return (x, logits) if self.several else logits


def spec(*names: str, logits: tuple[int, ...] = (), outputs: int = 0) -> DataSpec:
    return DataSpec("toy", names, HOW, "", logits=logits, outputs=outputs)


def network(data: DataSpec, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    node = {"_target_": f"{__name__}.Net", "id": "net", "num_classes": 10, **options}
    return network_for(OmegaConf.create(node), data).eval()


@pytest.mark.parametrize("several", [False, True])
def test_the_selected_logits_are_those_of_the_whole_network(several: bool) -> None:
    x, whole = torch.randn(2, 3, 8, 8), network(spec(*"0123456789"))
    chosen = network(spec("a", "b", "c", logits=OWN, outputs=10), several=several)
    assert torch.equal(chosen(x), whole(x)[:, list(OWN)]) and torch.equal(copy.deepcopy(chosen)(x), chosen(x))
    assert chosen.state_dict().keys() == whole.state_dict().keys() and type(chosen).__name__ == "Net"
    exported = torch.export.export(chosen, (x,)).module()
    assert torch.equal(exported(x), chosen(x))


def test_a_network_of_another_number_of_logits_is_refused(tmp_path: Path) -> None:
    """One more, such as for the background, would shift every class."""
    with pytest.raises(UserError, match=r"gives \(2, 11\) .* it must give logits of shape \(2, 10\)"):
        network(spec("a", "b", "c", logits=OWN, outputs=10), num_classes=11)


def test_wordnet_ids_and_a_thousand_logits_recommend_data_classes() -> None:
    with pytest.raises(UserError, match=r"2 classes.*data\.classes=imagenet"):
        network(spec("n01440764", "n01443537"), num_classes=1000)
    for names, outputs in ((("n01440764", "cat"), 1000), (("n01440764", "n01443537"), 999)):
        with pytest.raises(UserError) as caught:
            network(spec(*names), num_classes=outputs)
        assert "imagenet" not in str(caught.value)
