"""What the networks of `front` are made of: convolutions with batch norm, ResNet's two blocks, pooling of regions."""
# Letters: N batch, C channel, H height, W width.
# mypy: warn-return-any=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = Sequence[int]


class ConvBn(nn.Sequential):
    """Convolution without bias, padded to keep the size (or to halve it), and batch norm."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels_out))


class ConvBnRelu(ConvBn):
    """The same and ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, groups=groups)
        self.append(nn.ReLU(inplace=True))


class BnReluConv(nn.Sequential):
    """Batch norm and ReLU before the convolution, as DDRNet's and PIDNet's pyramids have it."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, *, groups: int = 1) -> None:
        conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True), conv)


class Basic(nn.Module):
    """ResNet's block of two 3x3 convolutions (arXiv 1512.03385). relu=False leaves the last ReLU to whoever comes next."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBnRelu(channels_in, channels_out, stride=stride), ConvBn(channels_out, channels_out)
        )
        same = stride == 1 and channels_in == channels_out
        self.skip = nn.Identity() if same else ConvBn(channels_in, channels_out, 1, stride=stride)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) + self.skip(x)
        return F.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    """ResNet's block of 1x1, 3x3, 1x1 that ends at twice the inner channels, without a last ReLU."""

    def __init__(self, channels_in: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBnRelu(channels_in, channels, 1),
            ConvBnRelu(channels, channels, stride=stride),
            ConvBn(channels, 2 * channels, 1),
        )
        same = stride == 1 and channels_in == 2 * channels
        self.skip = nn.Identity() if same else ConvBn(channels_in, 2 * channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def basics(channels_in: int, channels_out: int, count: int, *, stride: int = 1) -> nn.Sequential:
    """`count` basic blocks, the last one without its ReLU."""
    blocks = (
        Basic(
            channels_in if i == 0 else channels_out,
            channels_out,
            stride=stride if i == 0 else 1,
            relu=i < count - 1,
        )
        for i in range(count)
    )
    return nn.Sequential(*blocks)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to height and width of another tensor."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def pool_regions(x: Tensor, bins: int) -> Tensor:
    """Means of bins x bins regions of equal size, which overlap where the size is no multiple (as ONNX can say it); of a
    smaller picture one a cell."""
    sides = [int(side) for side in x.shape[-2:]]
    counts = [min(bins, side) for side in sides]
    strides = [side // count for side, count in zip(sides, counts, strict=True)]
    kernel = [side - (n - 1) * stride for side, n, stride in zip(sides, counts, strides, strict=True)]
    return F.avg_pool2d(x, kernel, strides)


class Pyramid(nn.Module):
    """PSPNet's pyramid (arXiv 1612.01105): means of 1, 4, 9 and 36 regions beside the features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ConvBnRelu(channels, channels // 4, 1) for _ in range(4))
        self.out = ConvBnRelu(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [resize(conv(pool_regions(x, bins)), x) for conv, bins in zip(self.scales, (1, 2, 3, 6), strict=True)]
        return self.out(torch.cat([x, *found], 1))
