"""PP-LiteSeg-T (arXiv 2204.02681), BiSeNetV2 (arXiv 2004.02147), Fast-SCNN (arXiv 1902.04502) up to their last features, at stride 8.

As their papers have them, but for the training losses (no auxiliary heads), BiSeNetV2's batch norm of a single pooled value, and
region means of equal size where adaptive pooling would have unequal ones.
"""
# Letters: N batch, C channel, H height, W width.
# mypy: warn-return-any=False, disallow-untyped-calls=False

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from front.blocks import ConvBn, ConvBnRelu, Pyramid, pool_regions, resize

# ---------------------------------------------------------------------------------------------------------------------
# PP-LiteSeg-T


class Stdc(nn.Module):
    """Short-term dense concatenation (arXiv 2104.13188): four convolutions of falling width, joined."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = channels // 2, channels // 4, channels // 8
        self.first = ConvBnRelu(channels_in, half, 1)
        self.down = ConvBn(half, half, stride=2, groups=half) if stride == 2 else nn.Identity()
        self.skip = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.rest = nn.ModuleList([ConvBnRelu(half, quarter), ConvBnRelu(quarter, eighth), ConvBnRelu(eighth, eighth)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        found = [self.skip(first)]
        x = self.down(first)
        for conv in self.rest:
            x = conv(x)
            found.append(x)
        return torch.cat(found, 1)


class SimplePyramid(nn.Module):
    """SPPM: means of 1, 4 and 16 regions, added."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ConvBnRelu(channels_in, channels, 1) for _ in range(3))
        self.out = ConvBnRelu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        found = [resize(conv(pool_regions(x, bins)), x) for conv, bins in zip(self.scales, (1, 2, 4), strict=True)]
        return self.out(found[0] + found[1] + found[2])


class SpatialFusion(nn.Module):
    """UAFM with spatial attention: one weight a cell says how much comes from the deeper features."""

    def __init__(self, channels_side: int, channels_deep: int, channels_out: int) -> None:
        super().__init__()
        self.side = ConvBnRelu(channels_side, channels_deep)
        self.weigh = nn.Sequential(ConvBnRelu(4, 2), ConvBn(2, 1))
        self.out = ConvBnRelu(channels_deep, channels_out)

    def forward(self, side: Tensor, deep: Tensor) -> Tensor:
        side = self.side(side)
        deep = resize(deep, side)
        seen = [
            f(t) for t in (side, deep) for f in (lambda v: v.mean(1, keepdim=True), lambda v: v.amax(1, keepdim=True))
        ]
        weight = self.weigh(torch.cat(seen, 1)).sigmoid()
        return self.out(side * weight + deep * (1 - weight))


class PpLiteSegT(nn.Module):
    """(N,3,H,W) -> (N,64,H/8,W/8): STDC1 to stride 32, SPPM, two fusions."""

    channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBnRelu(3, 32, stride=2), ConvBnRelu(32, 64, stride=2))
        widths = (64, 256, 512, 1024)
        self.stages = nn.ModuleList(
            nn.Sequential(Stdc(c_in, c_out, stride=2), Stdc(c_out, c_out, stride=1)) for c_in, c_out in pairwise(widths)
        )
        self.context = SimplePyramid(1024, 128)
        self.fuse32 = SpatialFusion(1024, 128, 128)
        self.fuse16 = SpatialFusion(512, 128, 64)
        self.fuse8 = SpatialFusion(256, 64, 32)
        self.head = ConvBnRelu(32, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        x = self.fuse32(found[2], self.context(found[2]))
        x = self.fuse8(found[0], self.fuse16(found[1], x))
        return self.head(x)


# ---------------------------------------------------------------------------------------------------------------------
# BiSeNetV2


class GatherExpand(nn.Module):
    """Its semantic branch's block: 3x3, depthwise to six times the channels, 1x1; two depthwise ones where it halves the size."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        wide = 6 * channels_in
        down = [ConvBn(channels_in, wide, stride=2, groups=channels_in)] if stride == 2 else []
        last = wide if down else channels_in
        self.body = nn.Sequential(
            ConvBnRelu(channels_in, channels_in),
            *down,
            ConvBnRelu(last, wide, groups=last),
            ConvBn(wide, channels, 1),
        )
        skip = [ConvBn(channels_in, channels_in, stride=2, groups=channels_in), ConvBn(channels_in, channels, 1)]
        self.skip = nn.Sequential(*skip) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class Stem(nn.Module):
    """To stride 4 two ways: convolutions, and a maximum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBnRelu(3, channels, stride=2)
        self.left = nn.Sequential(ConvBnRelu(channels, channels // 2, 1), ConvBnRelu(channels // 2, channels, stride=2))
        self.out = ConvBnRelu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out(torch.cat([self.left(x), F.max_pool2d(x, 3, 2, 1)], 1))


class Context(nn.Module):
    """The mean of all cells, added to each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())
        self.out = ConvBnRelu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.mean(x.mean((2, 3), keepdim=True)))


class Aggregation(nn.Module):
    """Bilateral guided aggregation: each branch gates the other, at its own scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail = nn.Sequential(
            ConvBn(channels, channels, groups=channels), nn.Conv2d(channels, channels, 1, bias=False)
        )
        self.detail_down = nn.Sequential(ConvBn(channels, channels, stride=2), nn.AvgPool2d(3, 2, 1))
        self.deep = nn.Sequential(
            ConvBn(channels, channels, groups=channels), nn.Conv2d(channels, channels, 1, bias=False)
        )
        self.deep_up = ConvBn(channels, channels)
        self.out = ConvBn(channels, channels)

    def forward(self, detail: Tensor, deep: Tensor) -> Tensor:
        fine = self.detail(detail) * resize(self.deep_up(deep), detail).sigmoid()
        coarse = self.detail_down(detail) * self.deep(deep).sigmoid()
        return self.out(fine + resize(coarse, detail))


class BiSeNetV2(nn.Module):
    """(N,3,H,W) -> (N,1024,H/8,W/8): a wide shallow branch and a narrow deep one, aggregated."""

    channels = 1024

    def __init__(self) -> None:
        super().__init__()
        self.detail = nn.Sequential(
            ConvBnRelu(3, 64, stride=2),
            ConvBnRelu(64, 64),
            ConvBnRelu(64, 64, stride=2),
            *(ConvBnRelu(64, 64) for _ in range(2)),
            ConvBnRelu(64, 128, stride=2),
            *(ConvBnRelu(128, 128) for _ in range(2)),
        )
        widths = (16, 32, 64, 128)
        stages = (
            (
                GatherExpand(c_in, c_out, stride=2),
                *(GatherExpand(c_out, c_out, stride=1) for _ in range(3 if c_out == 128 else 1)),
            )
            for c_in, c_out in pairwise(widths)
        )
        self.deep = nn.Sequential(Stem(16), *(block for stage in stages for block in stage), Context(128))
        self.join = Aggregation(128)
        self.head = ConvBnRelu(128, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(self.detail(x), self.deep(x)))


# ---------------------------------------------------------------------------------------------------------------------
# Fast-SCNN


class Separable(nn.Sequential):
    """Depthwise 3x3, then 1x1."""

    def __init__(self, channels_in: int, channels: int, *, stride: int = 1) -> None:
        super().__init__(
            ConvBnRelu(channels_in, channels_in, stride=stride, groups=channels_in),
            ConvBnRelu(channels_in, channels, 1),
        )


class Inverted(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381), six times expanded."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        wide = 6 * channels_in
        self.body = nn.Sequential(
            ConvBnRelu(channels_in, wide, 1),
            ConvBnRelu(wide, wide, stride=stride, groups=wide),
            ConvBn(wide, channels, 1),
        )
        self.adds = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class FastScnn(nn.Module):
    """(N,3,H,W) -> (N,128,H/8,W/8): learning to downsample, global features, fusion, classifier."""

    channels = 128

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(ConvBnRelu(3, 32, stride=2), Separable(32, 48, stride=2), Separable(48, 64, stride=2))
        widths, strides = (64, 64, 96, 128), (2, 2, 1)
        blocks = (
            Inverted(c_in if i == 0 else c_out, c_out, stride=stride if i == 0 else 1)
            for c_in, c_out, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            for i in range(3)
        )
        self.deep = nn.Sequential(*blocks, Pyramid(128))
        self.smooth = nn.Sequential(ConvBnRelu(128, 128, groups=128), nn.Conv2d(128, 128, 1))
        self.side = ConvBn(64, 128, 1)
        self.head = nn.Sequential(Separable(128, 128), Separable(128, 128))

    def forward(self, x: Tensor) -> Tensor:
        side = self.down(x)
        return self.head(F.relu(self.side(side) + self.smooth(resize(self.deep(side), side))))
