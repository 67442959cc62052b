"""DDRNet-23-slim (arXiv 2101.06085) and PIDNet-S (arXiv 2206.02066) up to their last features, at stride 8.

As their papers and public code have them, but for the training losses: one cross-entropy on the output, as for all networks of
the study, in place of auxiliary heads and the boundary loss.
"""
# Letters: N batch, C channel, H height, W width.
# mypy: warn-return-any=False, disallow-untyped-calls=False

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from front.blocks import Basic, BnReluConv, Bottleneck, ConvBn, ConvBnRelu, basics, resize

POOLS = ((5, 2, 2), (9, 4, 4), (17, 8, 8))  # kernel, stride, padding of a pyramid's averages; the last one is global


class Dappm(nn.Module):
    """Deep aggregation pyramid pooling (DDRNet, section 3.3): each scale adds the one before it and is smoothed."""

    def __init__(self, channels_in: int, channels: int, channels_out: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(BnReluConv(channels_in, channels) for _ in range(len(POOLS) + 2))
        self.process = nn.ModuleList(BnReluConv(channels, channels, 3) for _ in range(len(POOLS) + 1))
        self.compress = BnReluConv(channels * (len(POOLS) + 2), channels_out)
        self.shortcut = BnReluConv(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.scales[0](x)]
        for scale, process, pooled in zip(self.scales[1:], self.process, pyramid(x), strict=True):
            found.append(process(resize(scale(pooled), x) + found[-1]))
        return self.compress(torch.cat(found, 1)) + self.shortcut(x)


class Pappm(nn.Module):
    """The parallel form of it (PIDNet, section 4.3): all scales are smoothed by one grouped convolution."""

    def __init__(self, channels_in: int, channels: int, channels_out: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(BnReluConv(channels_in, channels) for _ in range(len(POOLS) + 2))
        self.process = BnReluConv(4 * channels, 4 * channels, 3, groups=4)
        self.compress = BnReluConv(channels * (len(POOLS) + 2), channels_out)
        self.shortcut = BnReluConv(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        first = self.scales[0](x)
        rest = [resize(scale(p), x) + first for scale, p in zip(self.scales[1:], pyramid(x), strict=True)]
        found = torch.cat([first, self.process(torch.cat(rest, 1))], 1)
        return self.compress(found) + self.shortcut(x)


def pyramid(x: Tensor) -> list[Tensor]:
    """Averages of growing regions, and of the whole."""
    return [F.avg_pool2d(x, *pool) for pool in POOLS] + [x.mean((2, 3), keepdim=True)]


class Ddrnet23Slim(nn.Module):
    """(N,3,H,W) -> (N,64,H/8,W/8): a branch at stride 8 beside one that goes on to 64, two exchanges, DAPPM."""

    channels = 64

    def __init__(self) -> None:
        super().__init__()
        c = 32
        self.stem = nn.Sequential(ConvBnRelu(3, c, stride=2), ConvBnRelu(c, c, stride=2), basics(c, c, 2), nn.ReLU())
        self.shared = basics(c, 2 * c, 2, stride=2)
        self.low3, self.high3 = basics(2 * c, 4 * c, 2, stride=2), basics(2 * c, 2 * c, 2)
        self.low4, self.high4 = basics(4 * c, 8 * c, 2, stride=2), basics(2 * c, 2 * c, 2)
        self.up3, self.up4 = ConvBn(4 * c, 2 * c, 1), ConvBn(8 * c, 2 * c, 1)
        self.down3 = ConvBn(2 * c, 4 * c, stride=2)
        self.down4 = nn.Sequential(ConvBnRelu(2 * c, 4 * c, stride=2), ConvBn(4 * c, 8 * c, stride=2))
        self.low5, self.high5 = Bottleneck(8 * c, 8 * c, stride=2), Bottleneck(2 * c, 2 * c)
        self.context = Dappm(16 * c, 4 * c, 4 * c)
        self.head = nn.Sequential(BnReluConv(4 * c, self.channels, 3), nn.BatchNorm2d(self.channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        shared = F.relu(self.shared(self.stem(x)))
        low, high = self.low3(shared), self.high3(shared)
        low, high = low + self.down3(F.relu(high)), high + resize(self.up3(F.relu(low)), high)
        low, high = self.low4(F.relu(low)), self.high4(F.relu(high))
        low, high = low + self.down4(F.relu(high)), high + resize(self.up4(F.relu(low)), high)
        high = self.high5(F.relu(high))
        return self.head(high + resize(self.context(self.low5(F.relu(low))), high))


class PixelAttention(nn.Module):
    """PIDNet's Pag (section 4.1): the detail branch takes from the context branch where both look alike."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.detail, self.context = ConvBn(channels, inner, 1), ConvBn(channels, inner, 1)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        alike = (self.detail(detail) * resize(self.context(context), detail)).sum(1, keepdim=True).sigmoid()
        return (1 - alike) * detail + alike * resize(context, detail)


class LightBag(nn.Module):
    """PIDNet's boundary-attention guided fusion, light form (section 4.4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail, self.context = ConvBn(channels, channels, 1), ConvBn(channels, channels, 1)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = boundary.sigmoid()
        return self.detail((1 - edge) * context + detail) + self.context(context + edge * detail)


class PidnetS(nn.Module):
    """(N,3,H,W) -> (N,128,H/8,W/8): branches of detail (P), context (I) and boundary (D)."""

    channels = 128

    def __init__(self) -> None:
        super().__init__()
        c = 32
        self.stem = nn.Sequential(ConvBnRelu(3, c, stride=2), ConvBnRelu(c, c, stride=2), basics(c, c, 2), nn.ReLU())
        self.shared = basics(c, 2 * c, 2, stride=2)
        self.i3, self.i4 = basics(2 * c, 4 * c, 3, stride=2), basics(4 * c, 8 * c, 3, stride=2)
        self.i5 = nn.Sequential(Bottleneck(8 * c, 8 * c, stride=2), nn.ReLU(), Bottleneck(16 * c, 8 * c))
        self.p3, self.p4, self.p5 = basics(2 * c, 2 * c, 2), basics(2 * c, 2 * c, 2), Bottleneck(2 * c, 2 * c)
        self.d3, self.d4 = Basic(2 * c, c, relu=False), Bottleneck(c, c)
        self.d5 = Bottleneck(2 * c, 2 * c)
        self.to_p3, self.to_p4 = ConvBn(4 * c, 2 * c, 1), ConvBn(8 * c, 2 * c, 1)
        self.to_d3, self.to_d4 = ConvBn(4 * c, c), ConvBn(8 * c, 2 * c)
        self.attend3, self.attend4 = PixelAttention(2 * c, c), PixelAttention(2 * c, c)
        self.context = Pappm(16 * c, 96, 4 * c)
        self.fuse = LightBag(4 * c)
        self.head = nn.Sequential(nn.BatchNorm2d(4 * c), nn.ReLU(), ConvBnRelu(4 * c, self.channels))

    def forward(self, x: Tensor) -> Tensor:
        shared = F.relu(self.shared(self.stem(x)))
        i = F.relu(self.i3(shared))
        p = self.attend3(self.p3(shared), self.to_p3(i))
        d = self.d3(shared) + resize(self.to_d3(i), shared)
        i = F.relu(self.i4(i))
        p = self.attend4(self.p4(F.relu(p)), self.to_p4(i))
        d = self.d4(F.relu(d)) + resize(self.to_d4(i), d)
        p, d = self.p5(F.relu(p)), self.d5(F.relu(d))
        return self.head(self.fuse(p, resize(self.context(self.i5(i)), p), d))
