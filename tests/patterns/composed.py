"""Random classifiers, composed of the parts that people's networks have, for tests that search for faults.

A network is a list of names of parts. Each part is built for the shape that it is given, images x[B,C,H,W] or tokens
x[B,N,D], so that any list makes a network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Shape = tuple[int, ...]  # of one image or of the tokens of one image


class Applied(nn.Module):
    """A function as a module, with modules that the function calls."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module):
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.inner)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, scale: bool, channels: int):
        super().__init__()
        self.inner = inner
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.5)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return x + (y if self.gamma is None else self.gamma * y)


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised at each call."""

    def forward(self, input: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, (self.weight - mean) / (std + 1e-5), self.bias, padding=1)


class Bare(nn.Module):
    """A convolution on a bare parameter."""

    def __init__(self, channels: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, channels, 3, 3) / (3 * channels**0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1)


class Attention(nn.Module):
    """Attention by products of matrices, with a bias for each pair of tokens."""

    def __init__(self, tokens: int, width: int, fused: bool, bias: bool):
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), fused
        self.bias = nn.Parameter(torch.randn(tokens, tokens) * 0.1) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        else:
            scores = (q @ k.transpose(-2, -1)) * (d // 2) ** -0.5
            mixed = (scores if self.bias is None else scores + self.bias).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, n, d))


class ClassToken(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Positions(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions


class TorchAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def _gate(c: int, curve: Callable[[Tensor], Tensor]) -> nn.Module:
    reduce, expand = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)
    return Applied(lambda x, r, e: x * curve(e(F.relu(r(x.mean((2, 3), keepdim=True))))), reduce, expand)


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def _halves(c: int) -> nn.Module:
    def apply(x: Tensor, conv: nn.Module) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([b, conv(a)], 1)

    return Applied(apply, nn.Conv2d(c // 2, c // 2, 3, padding=1))


def _shared(c: int, norms: bool) -> nn.Module:
    modules = [nn.Conv2d(c, c, 3, padding=1, bias=False), *([nn.BatchNorm2d(c), nn.BatchNorm2d(c)] if norms else [])]
    if norms:
        return Applied(lambda x, conv, one, two: two(conv(F.relu(one(conv(x))))), *modules)
    return Applied(lambda x, conv: conv(F.relu(conv(x))), *modules)


# Parts of images x[B,C,H,W], each made for C channels and side S. Those that change the shape stand in CHANGING.
IMAGES: dict[str, Callable[[int, int], nn.Module]] = {
    "conv": lambda c, s: nn.Conv2d(c, c, 3, padding=1),
    "conv bn": lambda c, s: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)),
    "conv bn relu": lambda c, s: nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
    "depthwise": lambda c, s: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.BatchNorm2d(c), nn.ReLU6()),
    "grouped": lambda c, s: nn.Conv2d(c, c, 3, padding="same", dilation=2, groups=2),
    "even same": lambda c, s: nn.Conv2d(c, c, 4, padding="same"),
    "circular": lambda c, s: nn.Conv2d(c, c, 3, padding=1, padding_mode="circular"),
    "shared": lambda c, s: _shared(c, False),
    "shared with norms": lambda c, s: _shared(c, True),
    "weight norm": lambda c, s: parametrizations.weight_norm(nn.Conv2d(c, c, 1)),
    "standardised": lambda c, s: Standardised(c, c, 3),
    "bare": lambda c, s: Bare(c),
    "bn": lambda c, s: nn.BatchNorm2d(c),
    "bn relu conv": lambda c, s: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 1)),
    "plain bn": lambda c, s: nn.BatchNorm2d(c, affine=False),
    "group norm": lambda c, s: nn.GroupNorm(2, c),
    "instance norm": lambda c, s: nn.InstanceNorm2d(c),
    "channel norm": lambda c, s: Applied(lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(c)),
    "relu": lambda c, s: nn.ReLU(),
    "silu": lambda c, s: nn.SiLU(),
    "hardswish": lambda c, s: nn.Hardswish(inplace=True),
    "hardsigmoid": lambda c, s: nn.Hardsigmoid(),
    "gelu": lambda c, s: nn.GELU(),
    "elu": lambda c, s: nn.ELU(),
    "prelu": lambda c, s: nn.PReLU(c),
    "leaky relu": lambda c, s: nn.LeakyReLU(0.1),
    "mish": lambda c, s: nn.Mish(),
    "softplus": lambda c, s: nn.Softplus(),
    "clamp": lambda c, s: Applied(lambda x: x.clamp(-1.5, 2)),
    "gate": lambda c, s: _gate(c, torch.sigmoid),
    "hard gate": lambda c, s: _gate(c, F.hardsigmoid),
    "spatial gate": lambda c, s: Applied(
        lambda x, m: x * torch.sigmoid(m(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))),
        nn.Conv2d(2, 1, 3, padding=1),
    ),
    "max pool": lambda c, s: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda c, s: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "shuffle": lambda c, s: Applied(_shuffle),
    "halves": lambda c, s: _halves(c),
    "split": lambda c, s: Applied(lambda x: torch.cat(x.split([1, x.shape[1] - 1], 1)[::-1], 1)),
    "roll": lambda c, s: Applied(lambda x: x.roll((1, 2), (2, 3))),
    "flip": lambda c, s: Applied(lambda x: x.flip(3)),
    "scale": lambda c, s: Applied(lambda x: x * 0.3),
    "shift": lambda c, s: Applied(lambda x: 1 - x / 2),
    "square": lambda c, s: Applied(lambda x: x * x),
    "stack": lambda c, s: Applied(lambda x, m: torch.stack([x, m(x)], 1).sum(1), nn.Conv2d(c, c, 1)),
    "pick": lambda c, s: Applied(lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1)]),
    "dropout": lambda c, s: nn.Dropout(0.3),
    "rescale": lambda c, s: Applied(lambda x: F.interpolate(F.interpolate(x, scale_factor=2), scale_factor=0.5)),
    "mask": lambda c, s: Applied(lambda x: x.masked_fill(torch.arange(s) % 3 == 0, 0.0)),
}
CHANGING: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[int, int], tuple[int, int]]]] = {
    "stride": (lambda c, s: nn.Conv2d(c, 2 * c, 3, 2, 1), lambda c, s: (2 * c, -(-s // 2))),
    "ceil pool": (lambda c, s: nn.MaxPool2d(2, 2, ceil_mode=True), lambda c, s: (c, -(-s // 2))),
    "reflect": (
        lambda c, s: Applied(lambda x: F.pad(x, (1, 0, 0, 1), mode="reflect")[:, :, :s, :s]), lambda c, s: (c, s),
    ),
    "pad": (
        lambda c, s: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(c, c, 3, 2)), lambda c, s: (c, (s + 2 - 3) // 2 + 1),
    ),
    "transposed": (
        lambda c, s: nn.Sequential(nn.ConvTranspose2d(c, c, 2, 2), nn.BatchNorm2d(c), nn.MaxPool2d(2)),
        lambda c, s: (c, s),
    ),
    "pixel shuffle": (
        lambda c, s: nn.Sequential(nn.Conv2d(c, 4 * c, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), lambda c, s: (c, s),
    ),
    "bilinear": (
        lambda c, s: Applied(lambda x: F.interpolate(x, (s + 1, s + 1), mode="bilinear")), lambda c, s: (c, s + 1),
    ),
    "concat": (
        lambda c, s: Applied(lambda x, m: torch.cat([x, F.relu(m(x))], 1), nn.Conv2d(c, c, 1)), lambda c, s: (2 * c, s),
    ),
}  # fmt: skip
# Parts of tokens x[B,N,D], each made for N and D, none of which changes the shape.
TOKENS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda n, d: nn.Linear(d, d),
    "mlp": lambda n, d: nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)),
    "gated mlp": lambda n, d: Applied(
        lambda x, a, b, o: o(F.silu(a(x)) * b(x)), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d, bias=False)
    ),
    "layer norm": lambda n, d: nn.LayerNorm(d),
    "rms norm": lambda n, d: nn.RMSNorm(d),
    "token norm": lambda n, d: Applied(lambda x, m: m(x.transpose(1, 2)).transpose(1, 2), nn.BatchNorm1d(d)),
    "attention": lambda n, d: Attention(n, d, fused=True, bias=False),
    "attention with a bias": lambda n, d: Attention(n, d, fused=True, bias=True),
    "own attention": lambda n, d: Attention(n, d, fused=False, bias=False),
    "own attention with a bias": lambda n, d: Attention(n, d, fused=False, bias=True),
    "torch attention": lambda n, d: TorchAttention(d),
    "encoder": lambda n, d: nn.TransformerEncoderLayer(d, 2, 2 * d, 0.1, batch_first=True, norm_first=True),
    "mixing": lambda n, d: Applied(lambda x, m: m(x.transpose(1, 2)).transpose(1, 2), nn.Linear(n, n)),
    "token conv": lambda n, d: Applied(
        lambda x, m: m(x.transpose(1, 2)).transpose(1, 2), nn.Conv1d(d, d, 3, padding=1, groups=d)
    ),
    "positions": lambda n, d: Positions(n, d),
    "token gelu": lambda n, d: nn.GELU(approximate="tanh"),
    "token roll": lambda n, d: Applied(lambda x: x.roll(1, 1)),
}
NESTED = ("residual ", "scaled residual ")  # before the name of a part that keeps the shape of images or tokens


class Composed(nn.Module):
    """A classifier of images x[B,C,S,S] into K classes.

    Args:
        images: Names of the parts after the first convolution, of IMAGES or CHANGING, with or without one of NESTED.
        tokens: Names of the parts after those, of TOKENS, with or without `residual `. None leaves images as they are.
        ending: How the features become a vector: `mean`, `view`, `first` (tokens only) or `max`.
    """

    def __init__(
        self, images: tuple[str, ...], tokens: tuple[str, ...] | None, ending: str, channels: int, size: int,
        num_classes: int,
    ):  # fmt: skip
        super().__init__()
        c, s = 8, size // 2
        parts: list[nn.Module] = [nn.Conv2d(channels, c, 3, 2, 1)]
        for name in images:
            part, (c, s) = _image_part(name, c, s)
            parts.append(part)
        self.images, self.ending = nn.Sequential(*parts), ending
        self.tokens = None
        if tokens is not None:
            n = s * s + 1
            self.tokens = nn.Sequential(ClassToken(c), *(_token_part(name, n, c) for name in tokens))
        features = c * s * s if ending == "view" and tokens is None else c * (s * s + 1) if ending == "view" else c
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.images(x)
        if self.tokens is not None:
            x = self.tokens(x.flatten(2).transpose(1, 2))
            pooled = {"mean": lambda: x.mean(1), "first": lambda: x[:, 0], "max": lambda: x.amax(1)}
        else:
            pooled = {
                "mean": lambda: x.mean((2, 3)), "first": lambda: F.adaptive_avg_pool2d(x, 1).flatten(1),
                "max": lambda: F.adaptive_max_pool2d(x, 1).squeeze(3).squeeze(2),
            }  # fmt: skip
        return self.head(x.reshape(x.size(0), -1) if self.ending == "view" else pooled[self.ending]())


def _image_part(name: str, c: int, s: int) -> tuple[nn.Module, tuple[int, int]]:
    if name in CHANGING:
        make, shape = CHANGING[name]
        return make(c, s), shape(c, s)
    for start in NESTED:
        if name.startswith(start):
            return Residual(IMAGES[name.removeprefix(start)](c, s), start == "scaled residual ", c), (c, s)
    return IMAGES[name](c, s), (c, s)


def _token_part(name: str, n: int, d: int) -> nn.Module:
    if name.startswith("residual "):
        return Residual(TOKENS[name.removeprefix("residual ")](n, d), False, d)
    return TOKENS[name](n, d)
