"""Networks of timm and torchvision: their arguments, and pretrained weights from files that a person put there."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from qexp.data.opening import open_data
from qexp.jobs.artifact_factory import trained_network
from qexp.model.base import build_network
from qexp.model.pretrained import SECONDS, note_of, weights_digest
from qexp.places import CONF
from qexp.types import UserError

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"  # torchvision's file
GREY = "data.channels=1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's empty folder of weights, on a machine without network and with nothing of Hugging Face's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def unreachable(request: Any, timeout: float) -> None:
        assert timeout == SECONDS
        raise OSError("Name or service not known")

    monkeypatch.setattr("qexp.model.pretrained.urlopen", unreachable)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@functools.cache
def composed(model: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        small = ["data=random", "data.images=8", "data.image_size=64", "data.num_classes=7"]
        return compose("compress", [model, *small])


def config_of(model: str, *overrides: str) -> DictConfig:
    """The config of compress.py. Composing it once is a matter of time."""
    config = copy.deepcopy(composed(model))
    OmegaConf.set_struct(config, False)
    config.merge_with_dotlist([override.removeprefix("+") for override in overrides])
    return config


def built(*overrides: str) -> Any:
    return build_network(config_of(*overrides).model)


def message(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        built(*overrides)
    return str(caught.value)


def library(name: str) -> list[str]:
    return [f"model={name}", "model.name=" + {"timm": "test_resnet", "torchvision": "squeezenet1_1"}[name]]


def put_squeezenet(hub: Path) -> dict[str, Tensor]:
    torch.save(weights := models.squeezenet1_1().state_dict(), hub / SQUEEZENET)
    return weights


def put_timm(file: Path, name: str) -> dict[str, Tensor]:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights := timm.create_model(name).state_dict(), file)
    return weights


def others(network: nn.Module, weights: dict[str, Tensor]) -> set[str]:
    """Names of those weights of the network that are not among these."""
    return {name for name, t in network.state_dict().items() if not torch.equal(t, weights[name].reshape(t.shape))}


def test_images_of_timm() -> None:
    """test_vit cuts the image into squares of 16 pixels and has a position for each and one for the class."""
    vit = built("model=timm", "model.name=test_vit", GREY)
    assert vit.pos_embed.shape[1] == (64 // 16) ** 2 + 1
    assert built("model=timm", "model.name=test_vit", "+model.img_size=32").pos_embed.shape[1] == 5
    resnet = built("model=timm", "model.name=test_resnet.r160_in1k", GREY)
    for network in (vit, resnet):
        assert network.eval()(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_further_arguments() -> None:
    dropping = built("model=timm", "model.name=test_vit", "+model.drop_path_rate=0.1")
    assert max(getattr(module, "drop_prob", 0) for module in dropping.modules()) == pytest.approx(0.1)
    assert "VisionTransformer.__init__() got an unexpected keyword argument 'dropp'" in message(
        "model=timm", "model.name=test_vit", "+model.dropp=0.1"
    )
    squeezenet = built(*library("torchvision"), "+model.dropout=0.9")
    assert [module.p for module in squeezenet.modules() if isinstance(module, nn.Dropout)] == [0.9]
    assert message(*library("torchvision"), "+model.dropp=0.9").endswith("unexpected keyword argument 'dropp'")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_vitt", r"timm has no network 'test_vitt': did you mean 'test_vit'.*list_models\(\) lists all"),
        ("convnext_tiny_in22ft1k", "did you mean 'convnext_tiny.fb_in22k_ft_in1k'?"),  # its name until 2022
        ("resnet18.a1", "timm has no weights 'resnet18.a1': did you mean .*'resnet18.a1_in1k'.* Known: "),
    ],
)
def test_unknown_names_of_timm(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        built("model=timm", f"model.name={name}")


def test_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert message(*library("timm")) == "timm is not installed: pip install qexp[timm]"


@pytest.mark.parametrize(
    ("overrides", "what", "file"),
    [
        (library("torchvision"), f"Download https://\\S+/{SQUEEZENET} elsewhere", SQUEEZENET),
        (
            library("timm"),
            r"Download model.safetensors of timm/test_resnet.r160_in1k \(Hugging Face\) elsewhere",
            "test_resnet.r160_in1k.safetensors",
        ),
        # One of those that are on the web alone.
        (["model=timm", "model.name=gcvit_xxtiny"], r"Download https://\S+/gcvit_\S+\.pth elsewhere", "gcvit_xxtiny"),
    ],
)
def test_without_network_it_says_which_file_to_put_where(hub: Path, overrides: list[str], what: str, file: str) -> None:
    text = message(*overrides, "model.pretrained=true")
    assert "\n" not in text and str(hub / file) in text and "checkpoint=FILE" in text
    with pytest.raises(UserError, match=what):
        built(*overrides, "model.pretrained=true")


def test_timm_has_no_weights(hub: Path) -> None:
    assert "no pretrained weights of coatnet_0_224, under any tag" in message(
        "model=timm", "model.name=coatnet_0_224", "model.pretrained=true"
    )


def test_torchvision_with_its_classes_and_with_others(hub: Path) -> None:
    weights = put_squeezenet(hub)
    same = built(*library("torchvision"), "data.num_classes=1000", "model.pretrained=true")
    assert not others(same, weights)
    assert note_of(same) == "pretrained (SqueezeNet1_1_Weights.IMAGENET1K_V1)"
    fewer = built(*library("torchvision"), "model.pretrained=true")
    body = {name: tensor for name, tensor in fewer.state_dict().items() if not name.startswith("classifier.1.")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in body.items()) and len(body) == len(weights) - 2
    assert "except classifier.1, untrained for these classes: accuracy is chance" in note_of(fewer)


def test_a_file_of_another_network(hub: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, hub / SQUEEZENET)
    text = message(*library("torchvision"), "model.pretrained=true")
    assert text.startswith(f"The pretrained weights in {hub / SQUEEZENET} do not fit") and "Missing key" in text
    put_timm(hub / "test_resnet.r160_in1k.safetensors", "test_vit")
    text = message(*library("timm"), "model.pretrained=true")
    assert text.startswith(f"The pretrained weights in {hub}") and "do not fit timm/test_resnet" in text
    (hub / "test_resnet.r160_in1k.safetensors").write_bytes(b"<html>Not found</html>")
    assert message(*library("timm"), "model.pretrained=true").startswith(f"The pretrained weights in {hub}")


@pytest.mark.thorough
def test_weights_for_a_transformed_input(hub: Path) -> None:
    weights = models.googlenet(aux_logits=True, init_weights=False).state_dict()  # with its auxiliary heads
    torch.save(weights, hub / Path(models.GoogLeNet_Weights.DEFAULT.url).name)
    asked = ["model=torchvision", "model.name=googlenet", "model.pretrained=true", "data.num_classes=1000"]
    assert "Give +model.transform_input=true too" in message(*asked)
    network = built(*asked, "+model.transform_input=true")
    assert network.transform_input and not others(network, weights)


@pytest.mark.parametrize("place", ["hub/checkpoints/test_vit.r160_in1k.safetensors", "hf"])
def test_timm_with_its_classes_and_with_others(hub: Path, tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    if place == "hf":  # as Hugging Face keeps what it has downloaded
        repository = file / "models--timm--test_vit.r160_in1k"
        file = repository / "snapshots" / "abc" / "model.safetensors"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
    weights = put_timm(file, "test_vit")
    vit = ["model=timm", "model.name=test_vit", "model.pretrained=true"]
    same = built(*vit, "data.num_classes=1000", "data.image_size=160")
    assert not others(same, weights) and note_of(same) == "pretrained (test_vit.r160_in1k)"
    grey = built(*vit, GREY)
    torch.testing.assert_close(grey.blocks[0].mlp.fc1.weight, weights["blocks.0.mlp.fc1.weight"])
    torch.testing.assert_close(
        grey.patch_embed.proj.weight,
        weights["patch_embed.proj.weight"].sum(1, keepdim=True),
    )
    assert "except head, untrained" in note_of(grey)


def source(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    config = config_of(*library("timm"), f"outputs={tmp_path}", *overrides)
    _, where, notes = trained_network(config, open_data(config))
    return where, notes


def test_what_a_record_says_of_them_and_what_decides_the_key(hub: Path, tmp_path: Path) -> None:
    file = hub / "test_resnet.r160_in1k.safetensors"
    weights = put_timm(file, "test_resnet")
    pretrained, notes = source(tmp_path, "model.pretrained=true")
    assert pretrained["weights"].startswith("pretrained ") and "fc, untrained" in notes["weights"]
    assert source(tmp_path, "model.pretrained=true")[0] == pretrained
    assert source(tmp_path, "model.pretrained=true", "seed=1")[0] != pretrained, "its head is random"
    whole = ["model.pretrained=true", "data.num_classes=1000"]
    one, notes = source(tmp_path, *whole)
    assert source(tmp_path, *whole, "seed=1")[0] == one and "untrained" not in notes["weights"]
    save_file({name: tensor * 2 for name, tensor in weights.items()}, file)
    assert source(tmp_path, *whole)[0] != one


def test_a_given_checkpoint_takes_their_place(hub: Path, tmp_path: Path) -> None:
    """The pretrained file is not even needed then, and the key is that of the same checkpoint without them."""
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "own.pth")
    for given in ("checkpoint=random", f"checkpoint={tmp_path}/own.pth"):
        assert source(tmp_path, given, "model.pretrained=true") == source(tmp_path, given)


def test_the_digest_depends_on_names_and_values() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    first = weights_digest(network)
    assert weights_digest(nn.Sequential(nn.BatchNorm2d(2))) == first != weights_digest(nn.BatchNorm2d(2))
    network.get_buffer("0.num_batches_tracked").add_(1)
    assert weights_digest(network) != first
