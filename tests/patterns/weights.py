"""Classifiers whose weights and norms are shared, computed, bare or unusual."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cb(i: int, o: int, k: int = 3, s: int = 1, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False, **options), nn.BatchNorm2d(o))


class SharedConvTwoNorms(nn.Module):
    """One convolution applied twice, a batch norm of its own each time (recurrent networks such as CORnet-S)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = cb(1, 16, 3, 2)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for n in self.norms:
            x = F.relu(n(self.conv(x)) + x)
        return self.fc(x.mean((2, 3)))


class Positions(nn.Module):
    """Adds a convolution, which other modules may have too, to its input."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"conv": conv})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner["conv"](x)


class SeveralNames(nn.Module):
    """One convolution that several modules have as their own (the position encoding of CoaT)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = cb(1, 16, 3, 2)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.blocks = nn.Sequential(Positions(self.conv), nn.ReLU(), Positions(self.conv))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class SharedConvOneNorm(nn.Module):
    """One convolution applied at two scales, a batch norm after one of them only."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = cb(1, 16, 3, 2)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a = F.relu(self.norm(self.conv(x))).mean((2, 3))
        b = F.relu(self.conv(F.avg_pool2d(x, 2))).mean((2, 3))
        return self.fc(torch.cat([a, b], 1))


class PlainNorms(nn.Module):
    """Batch norms without weights of their own (affine=False), after convolution and linear."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 16, 3, 2, 1)
        self.b1 = nn.BatchNorm2d(16, affine=False)
        self.c2 = nn.Conv2d(16, 32, 3, 2, 1)
        self.b2 = nn.BatchNorm2d(32, affine=False)
        self.f1 = nn.Linear(32, 32)
        self.b3 = nn.BatchNorm1d(32, affine=False)
        self.f2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = F.relu(self.b2(self.c2(x)))
        x = F.relu(self.b3(self.f1(x.mean((2, 3)))))
        return self.f2(x)


class NoStats(nn.Module):
    """track_running_stats=False: statistics of the batch at inference too."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 16, 3, 2, 1)
        self.b1 = nn.BatchNorm2d(16, track_running_stats=False)
        self.c2 = nn.Conv2d(16, 32, 3, 2, 1)
        self.b2 = nn.BatchNorm2d(32, track_running_stats=False)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = F.relu(self.b2(self.c2(x)))
        return self.fc(x.mean((2, 3)))


class NormAct(nn.BatchNorm2d):
    """Norm and activation in one module, as timm's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class NormActs(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
        self.n1 = NormAct(16)
        self.c2 = nn.Conv2d(16, 32, 3, 2, 1, bias=False)
        self.n2 = NormAct(32)
        self.c3 = nn.Conv2d(32, 32, 3, 2, 1, bias=False)
        self.n3 = NormAct(32)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.n3(self.c3(self.n2(self.c2(self.n1(self.c1(x)))))).mean((2, 3)))


class LinearNorm(nn.Module):
    """Linear and BatchNorm1d; mixing over tokens too, where the norm is over another axis than the linear layer's."""

    def __init__(self, num_classes: int = 10, tokens: bool = False) -> None:
        super().__init__()
        self.tokens = tokens
        self.c = nn.Conv2d(1, 16, 4, 4)
        self.t = nn.Linear(49, 49)
        self.tn = nn.BatchNorm1d(16)
        self.f1 = nn.Linear(16 * 49, 64)
        self.n1 = nn.BatchNorm1d(64)
        self.f2 = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(x)).flatten(2)
        if self.tokens:
            x = F.relu(self.tn(self.t(x)))
        return self.f2(F.relu(self.n1(self.f1(x.flatten(1)))))


class WeightNorm(nn.Module):
    def __init__(self, num_classes: int = 10, kind: str = "new", norm: bool = True) -> None:
        super().__init__()
        wn = {
            "new": nn.utils.parametrizations.weight_norm,
            "old": nn.utils.weight_norm,
            "spectral": nn.utils.parametrizations.spectral_norm,
        }[kind]
        self.c1 = wn(nn.Conv2d(1, 16, 3, 2, 1))
        self.b1 = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.c2 = wn(nn.Conv2d(16, 32, 3, 2, 1))
        self.b2 = nn.BatchNorm2d(32) if norm else nn.Identity()
        self.fc = wn(nn.Linear(32, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = F.relu(self.b2(self.c2(x)))
        return self.fc(x.mean((2, 3)))


class StdConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-10).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Module):
    """Weight standardisation and group norm (BiT)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.c1 = StdConv(1, 16, 3, 2, 1)
        self.n1 = nn.GroupNorm(4, 16)
        self.c2 = StdConv(16, 32, 3, 2, 1)
        self.n2 = nn.GroupNorm(4, 32)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n1(self.c1(x)))
        x = F.relu(self.n2(self.c2(x)))
        return self.fc(x.mean((2, 3)))


class Functional(nn.Module):
    """Weights are parameters of the network itself."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 1, 3, 3) / 3)
        self.w2 = nn.Parameter(torch.randn(32, 16, 3, 3) / 12)
        self.w3 = nn.Parameter(torch.randn(num_classes, 32) / 6)
        self.b3 = nn.Parameter(torch.zeros(num_classes))
        self.n1, self.n2 = nn.BatchNorm2d(16), nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n1(F.conv2d(input=x, weight=self.w1, stride=2, padding=1)))
        x = F.relu(self.n2(F.conv2d(input=x, weight=self.w2, stride=2, padding=1)))
        return F.linear(x.mean((2, 3)), weight=self.w3, bias=self.b3)


class Simple(nn.Module):
    """A usual small network; answer: what it returns."""

    def __init__(self, num_classes: int = 10, answer: str = "logits", extra: int = 0, aux: bool = False) -> None:
        super().__init__()
        self.a, self.b = cb(1, 16, 3, 2), cb(16, 32, 3, 2)
        self.fc = nn.Linear(32, num_classes + extra)
        self.answer = answer
        self.aux = nn.Linear(16, num_classes) if aux else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        x = F.relu(self.b(y)).mean((2, 3))
        z = self.fc(x)
        if self.aux is not None and self.training:
            return z, self.aux(y.mean((2, 3)))
        return {"logits": z, "tuple": (z, x), "dict": {"logits": z}, "softmax": z.softmax(1), "log": z.log_softmax(1)}[
            self.answer
        ]


class OwnNormalisation(nn.Module):
    """Takes pixels of 0..1 and normalises them itself with constants."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1307]).view(1, 1, 1))
        self.register_buffer("std", torch.tensor([0.3081]).view(1, 1, 1))
        self.a, self.b = cb(1, 16, 3, 2), cb(16, 32, 3, 2)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))
