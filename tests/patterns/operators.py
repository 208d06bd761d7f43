"""Classifiers with operators that are more than a convolution with a batch norm and ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.patterns.weights import cb


class Blur(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        k = torch.tensor([1.0, 2.0, 1.0])
        k = k[:, None] * k[None]
        self.register_buffer("filt", (k / k.sum())[None, None].repeat(c, 1, 1, 1))
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=self.c)


class AntiAliased(nn.Module):
    """Fixed blur filters in buffers (anti-aliased CNNs)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.a, self.b = cb(1, 16), cb(16, 32)
        self.p1, self.p2 = Blur(16), Blur(32)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.p1(F.relu(self.a(x)))
        x = self.p2(F.relu(self.b(x)))
        return self.fc(x.mean((2, 3)))


class TinyViT(nn.Module):
    """torch's own encoder layers, class token, learned positions."""

    def __init__(self, num_classes: int = 10, dim: int = 48, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 7, 7)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.0, batch_first=True, norm_first=True, activation="gelu")
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for b in self.blocks:
            x = b(x)
        return self.head(self.norm(x)[:, 0])


class Attn(nn.Module):
    """Own attention: one linear for q, k and v, F.scaled_dot_product_attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.h = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.h, d // self.h).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class SdpaViT(nn.Module):
    def __init__(self, num_classes: int = 10, dim: int = 48, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 7, 7)
        self.pos = nn.Parameter(torch.randn(1, 16, dim) * 0.02)
        self.n1 = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.n2 = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.at = nn.ModuleList(Attn(dim, heads) for _ in range(depth))
        self.ml = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        for n1, n2, a, m in zip(self.n1, self.n2, self.at, self.ml, strict=True):
            x = x + a(n1(x))
            x = x + m(n2(x))
        return self.head(self.norm(x).mean(1))


class ClassToken(nn.Module):
    """A class token that modules change before it meets the images (PiT)."""

    def __init__(self, num_classes: int = 10, dim: int = 48) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 7, 7)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.attn = Attn(dim, 4)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        cls = self.fc(self.norm(self.cls.expand(x.shape[0], -1, -1)))
        return self.head(self.attn(torch.cat([cls, x], 1))[:, 0])


class EvenSame(nn.Module):
    """padding='same' with even kernels, a dilated one, and a norm."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 16, 4, padding="same")
        self.n1 = nn.BatchNorm2d(16)
        self.c2 = nn.Conv2d(16, 32, 3, padding="same", dilation=2, bias=False)
        self.n2 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.n1(self.c1(x))), 2)
        x = F.max_pool2d(F.relu(self.n2(self.c2(x))), 2)
        return self.fc(x.mean((2, 3)))


class CeilPools(nn.Module):
    """Pools with ceil_mode, padding and count_include_pad."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.a = cb(1, 16)
        self.b = cb(16, 32)
        self.p1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.p2 = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.p3 = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
        self.fc = nn.Linear(32 * 25, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.p2(self.p1(F.relu(self.a(x))))
        x = self.p3(F.relu(self.b(x)))
        return self.fc(torch.flatten(x, 1))


class Shuffle(nn.Module):
    """Channel split, depthwise and grouped convolutions, channel shuffle."""

    def __init__(self, num_classes: int = 10, groups=2) -> None:
        super().__init__()
        self.stem = cb(1, 32, 3, 2)
        self.pw = cb(16, 16, 1)
        self.dw = cb(16, 16, 3, groups=16)
        self.g = cb(32, 32, 3, 2, groups=4)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = x.chunk(2, 1)
        x = torch.cat([a, F.relu(self.dw(F.relu(self.pw(b))))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(self.g(x)).mean((2, 3)))


class FixedView(nn.Module):
    """The flattened size stands in forward."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.a, self.b = cb(1, 16, 3, 2), cb(16, 32, 3, 2)
        self.f1 = nn.Linear(32 * 49, 64)
        self.f2 = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x)))).view(-1, 32 * 7 * 7)
        return self.f2(F.relu(self.f1(x)))


class Groups(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 32, 3, 2, 1)
        self.na = nn.GroupNorm(8, 32)
        self.b = nn.Conv2d(32, 48, 3, 2, 1)
        self.nb = nn.GroupNorm(8, 48)
        self.act = nn.PReLU(48)
        self.fc = nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.na(self.a(x)))
        return self.fc(self.act(self.nb(self.b(x))).mean((2, 3)))


class Gate(nn.Module):
    """Spatial attention by a convolution with one output channel, squeeze and excite, a transposed convolution."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.a = cb(1, 16, 3, 2)
        self.s = nn.Conv2d(2, 1, 7, padding=3)
        self.sn = nn.BatchNorm2d(1)
        self.r, self.e = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.un = nn.BatchNorm2d(16)
        self.b = cb(16, 32, 3, 2)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.a(x))
        m = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        x = x * torch.sigmoid(self.sn(self.s(m)))
        x = x * F.hardsigmoid(self.e(F.relu(self.r(F.adaptive_avg_pool2d(x, 1)))))
        x = F.leaky_relu(self.un(self.up(x)), 0.1)
        return self.fc(F.relu6(self.b(x)).mean((2, 3)))


class NextBlock(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.n = nn.LayerNorm(d)
        self.f1, self.f2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.gamma = nn.Parameter(torch.full((d,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dw(x).permute(0, 2, 3, 1)
        y = self.gamma * self.f2(F.gelu(self.f1(self.n(y))))
        return x + y.permute(0, 3, 1, 2)


class Next(nn.Module):
    """ConvNeXt: layer scale in a bare parameter, norms over the last axis."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 4, 4)
        self.b1, self.b2 = NextBlock(24), NextBlock(24)
        self.n = nn.LayerNorm(24)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.n(self.b2(self.b1(self.stem(x))).mean((2, 3))))
