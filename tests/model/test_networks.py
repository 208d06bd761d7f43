"""Every network of conf/model/: parameters counted by hand, outputs against independent implementations."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import vgg

from qexp.model.base import build_network
from qexp.model.mobilenet import STAGES
from qexp.model.resnet import ResidualBlock
from qexp.places import CONF
from tests import configured

MODELS = sorted(p.stem for p in (CONF / "model").glob("[!_]*.yaml"))
NEEDED = {
    "timm": ["model.name=test_vit", "data.image_size=32"],
    "torchvision": ["model.name=squeezenet1_1"],
    "custom": ["model._target_=qexp.model.lenet.LeNet5", "+model.in_channels=3", "+model.image_size=32"],
}


@functools.cache
def composed(name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"model={name}", *NEEDED.get(name, [])])


def model_config(name: str, classes: int = 10, channels: int = 3) -> DictConfig:
    config = copy.deepcopy(composed(name))
    config.data.channels, config.data.num_classes = channels, classes
    return config.model


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
    """Weights of a convolution without bias and of its batch norm."""
    return inputs // groups * outputs * kernel**2 + 2 * outputs


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def resnet_parameters(blocks: list[int], widths: list[int], bottleneck: bool, channels: int, classes: int) -> int:
    total, inputs = convolution(channels, widths[0], 3), widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        outputs = 4 * width if bottleneck else width
        for block in range(count):
            if bottleneck:
                total += convolution(inputs, width, 1) + convolution(width, width, 3) + convolution(width, outputs, 1)
            else:
                total += convolution(inputs, width, 3) + convolution(width, width, 3)
            if inputs != outputs or (stage > 0 and block == 0):
                total += convolution(inputs, outputs, 1)
            inputs = outputs
    return total + dense(inputs, classes)


def vgg_parameters(widths: list[int], channels: int, classes: int) -> int:
    total = sum(convolution(i, o, 3) for i, o in zip([channels, *widths], widths, strict=False))
    return total + dense(512, 4096) + dense(4096, 4096) + dense(4096, classes)


SMALL, LARGE = [16, 32, 64], [64, 128, 256, 512]
VGG19 = [64, 64, 128, 128, 256, 256, 256, 256, *[512] * 8]


@pytest.mark.parametrize(
    ("name", "classes", "channels", "expected"),
    [
        ("lenet5", 10, 1, 61_706),  # LeCun's network as REFERENCE R2 has it
        ("lenet5", 10, 1, 25 * 6 + 6 + 25 * 6 * 16 + 16 + dense(25 * 16, 120) + dense(120, 84) + dense(84, 10)),
        ("vgg19", 100, 3, vgg_parameters(VGG19, 3, 100)),
        ("vgg16", 10, 3, vgg_parameters([64, 64, 128, 128, 256, 256, 256, *[512] * 6], 3, 10)),
        ("vgg13", 10, 1, vgg_parameters([64, 64, 128, 128, 256, 256, *[512] * 4], 1, 10)),
        ("vgg11", 10, 3, vgg_parameters([64, 128, 256, 256, *[512] * 4], 3, 10)),
        ("resnet8", 10, 3, resnet_parameters([1, 1, 1], SMALL, False, 3, 10)),
        ("resnet20", 10, 3, resnet_parameters([3, 3, 3], SMALL, False, 3, 10)),
        ("resnet20", 10, 3, 272_474),
        ("resnet32", 10, 3, resnet_parameters([5, 5, 5], SMALL, False, 3, 10)),
        ("resnet44", 10, 3, resnet_parameters([7, 7, 7], SMALL, False, 3, 10)),
        ("resnet56", 10, 3, resnet_parameters([9, 9, 9], SMALL, False, 3, 10)),
        ("resnet18", 10, 3, 11_173_962),  # the figure of other people's CIFAR versions
        ("resnet18", 10, 3, resnet_parameters([2, 2, 2, 2], LARGE, False, 3, 10)),
        ("resnet34", 100, 3, resnet_parameters([3, 4, 6, 3], LARGE, False, 3, 100)),
        ("resnet50", 10, 3, 23_520_842),
        ("resnet50", 10, 1, resnet_parameters([3, 4, 6, 3], LARGE, True, 1, 10)),
    ],
)
def test_parameter_counts(name: str, classes: int, channels: int, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(build_network(model_config(name, classes, channels))) == expected


@pytest.mark.parametrize(
    ("name", "classes", "millions", "digits"),
    [("resnet34", 100, 21.3, 1), ("vgg19", 100, 39, 0), ("resnet8", 10, 0.078, 3)],
)
def test_published_sizes(name: str, classes: int, millions: float, digits: int) -> None:
    with torch.device("meta"):
        assert round(parameters(build_network(model_config(name, classes))) / 1e6, digits) == millions


@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_images_to_logits(name: str) -> None:
    with torch.device("meta"):
        network = build_network(model_config(name, classes=7)).eval()
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "channels"), [("lenet5", 40, 1), ("vgg11", 64, 1), ("resnet8", 28, 1), ("mobilenet_v2", 48, 1)]
)
def test_other_image_sizes(name: str, size: int, channels: int) -> None:
    config = model_config(name, classes=7, channels=channels)
    if "image_size" in config:
        config.image_size = size
    with torch.device("meta"):
        assert build_network(config).eval()(torch.zeros(2, channels, size, size)).shape == (2, 7)


def shaken(network: nn.Module) -> nn.Module:
    """The network in inference mode, with batch statistics that are not 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network.eval()


def conv_bn(x: Tensor, conv: nn.Module, bn: nn.Module, stride: int) -> Tensor:
    x = functional.conv2d(x, conv.weight, None, stride, conv.kernel_size[0] // 2)  # type: ignore[arg-type,index]
    mean, var = bn.running_mean[:, None, None], bn.running_var[:, None, None]  # type: ignore[index]
    return (x - mean) / torch.sqrt(var + 1e-5) * bn.weight[:, None, None] + bn.bias[:, None, None]  # type: ignore[index]


@pytest.mark.parametrize(
    ("inputs", "stride", "bottleneck"), [(8, 1, False), (4, 2, False), (8, 2, False), (8, 2, True), (32, 1, True)]
)
def test_residual_block_by_hand(inputs: int, stride: int, bottleneck: bool) -> None:
    torch.manual_seed(0)
    block = shaken(ResidualBlock(inputs, 8, stride, bottleneck))
    x = torch.randn(2, inputs, 8, 8)
    layers = [m for m in block.body if not isinstance(m, nn.ReLU)]  # type: ignore[union-attr]
    pairs = list(zip(layers[::2], layers[1::2], strict=True))
    strides = [1, stride, 1] if bottleneck else [stride, 1]
    y = x
    for i, ((conv, bn), step) in enumerate(zip(pairs, strides, strict=True)):
        y = conv_bn(y, conv, bn, step)
        y = y.clamp(min=0) if i < len(pairs) - 1 else y
    changed = stride != 1 or inputs != (32 if bottleneck else 8)
    shortcut = conv_bn(x, block.shortcut[0], block.shortcut[1], stride) if changed else x  # type: ignore[index]
    torch.testing.assert_close(block(x), (y + shortcut).clamp(min=0), rtol=1e-4, atol=1e-4)


def copied(ours: nn.Module, theirs: nn.Module) -> None:
    """Our weights in another implementation whose tensors come in the same order."""
    state = theirs.state_dict()
    theirs.load_state_dict(dict(zip(state, ours.state_dict().values(), strict=True)))


def test_resnet18_against_torchvision() -> None:
    ours = shaken(build_network(model_config("resnet18")))
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # the stem for small images
    copied(ours, theirs)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-3)


def test_mobilenet_against_torchvision() -> None:
    ours = shaken(configured.network("mobilenet_v2"))
    theirs = torchvision.models.MobileNetV2(10, inverted_residual_setting=[list(stage) for stage in STAGES])
    theirs.features[0][0].stride = (1, 1)
    copied(ours, theirs)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-3)


def test_vgg_features_against_torchvision() -> None:
    ours = shaken(configured.network("vgg11").features)
    theirs = vgg.make_layers(vgg.cfgs["A"], batch_norm=True)
    names = [
        name for name in theirs.state_dict() if name in ours.state_dict()
    ]  # theirs have biases, which are 0 after init
    theirs.load_state_dict({name: ours.state_dict()[name] for name in names}, strict=False)
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvision_without_auxiliary_logits(name: str) -> None:
    config = model_config("torchvision", classes=7)
    config.name = name
    with torch.device("meta"):
        network = build_network(config)
        assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 7)
