"""Variants of the edge networks for the architecture study: each changes one thing of `base`, which is `edge-m`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsss_edge.models import SegNet
from tsss_edge.models.edge import (
    EDGE_M,
    EDGE_S,
    ConvBnRelu,
    EdgeConfig,
    EdgeDecoder,
    EdgeEncoder,
    ResidualBlock,
    initialize,
)
from tsss_edge.models.fused import fold_batch_norm


class Branches(nn.Module):
    """3x3 and 1x1 convolution, each with batch norm, summed before the ReLU (RepVGG, arXiv 2101.03697)."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        c_in, c_out, stride = like.in_channels, like.out_channels, like.stride[0]
        self.wide = nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out))
        self.point = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(x) + self.point(x))

    def merged(self) -> nn.Module:
        """The one convolution and ReLU that do the same in eval mode: what is exported."""
        wide, point = (folded(branch) for branch in (self.wide, self.point))
        wide.weight.data += F.pad(point.weight.data, (1, 1, 1, 1))
        assert wide.bias is not None and point.bias is not None
        wide.bias.data += point.bias.data
        return nn.Sequential(wide, nn.ReLU(inplace=True))


def folded(branch: nn.Sequential) -> nn.Conv2d:
    conv, norm = branch
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return fold_batch_norm(conv, norm)


def with_branches(net: SegNet) -> SegNet:
    """Every 3x3 ConvBnRelu behind the stem becomes two branches.

    The stem stays plain: with a 1x1 branch of 3 channels and stride 2, PyTorch 2.13 corrupted memory in bf16 on a CPU.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            conv = child[0] if isinstance(child, ConvBnRelu) else None
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.in_channels > 3:
                setattr(parent, name, Branches(conv))
    return initialize(net)


def merge_branches(net: SegNet) -> SegNet:
    """A trained network with branches -> the one that is deployed; others pass unchanged. In place."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Branches):
                setattr(parent, name, child.merged())
    return net.eval()


class ConcatDecoder(nn.Module):
    """As `EdgeDecoder`, but levels are concatenated instead of added (U-Net, arXiv 1505.04597)."""

    def __init__(self, encoder_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvBnRelu(c, channels, kernel=1) for c in encoder_channels)
        self.smooth = nn.ModuleList(ConvBnRelu(2 * channels, channels) for _ in encoder_channels[:-1])

    def forward(self, features: list[Tensor]) -> Tensor:
        x: Tensor = self.laterals[-1](features[-1])
        for level in reversed(range(len(self.smooth))):
            wide = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.smooth[level](torch.cat([wide, self.laterals[level](features[level])], dim=1))
        return x


def dilated(channels: int, dilation: int) -> ResidualBlock:
    """A residual block whose first convolution is dilated: context at stride 32 without pooling."""
    block = ResidualBlock(channels)
    block.first[0] = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
    return block


def plain(config: EdgeConfig, num_classes: int) -> SegNet:
    """The package's own edge network of a configuration."""
    encoder = EdgeEncoder(config)
    decoder = EdgeDecoder(encoder.channels, config.decoder)
    return initialize(SegNet(encoder, decoder, config.decoder, num_classes=num_classes))


def context(num_classes: int) -> SegNet:
    """Two dilated residual blocks behind the last stage."""
    encoder = EdgeEncoder(EDGE_M)
    last = encoder.stages[-1]
    assert isinstance(last, nn.Sequential)
    last.extend([dilated(EDGE_M.widths[-1], 2), dilated(EDGE_M.widths[-1], 4)])
    decoder = EdgeDecoder(encoder.channels, EDGE_M.decoder)
    return initialize(SegNet(encoder, decoder, EDGE_M.decoder, num_classes=num_classes))


def concat(num_classes: int) -> SegNet:
    """Concatenating decoder of 80 channels: about the cost of adding 128."""
    encoder = EdgeEncoder(EDGE_M)
    return initialize(SegNet(encoder, ConcatDecoder(encoder.channels, 80), 80, num_classes=num_classes))


# name -> (what is changed, network of a number of classes)
VARIANTS: dict[str, tuple[str, Callable[[int], SegNet]]] = {
    "base": ("edge-m", lambda k: plain(EDGE_M, k)),
    "small": ("width: edge-s", lambda k: plain(EDGE_S, k)),
    "deep": (
        "depth: narrower, 9 blocks instead of 5",
        lambda k: plain(replace(EDGE_M, widths=(32, 48, 80, 160, 224), blocks=(0, 3, 4, 2)), k),
    ),
    "late": (
        "depth: blocks moved from stride 8 to strides 16 and 32",
        lambda k: plain(replace(EDGE_M, blocks=(0, 1, 3, 2)), k),
    ),
    "stride-16": (
        "stride: no stage at stride 32",
        lambda k: plain(replace(EDGE_M, widths=(32, 64, 96, 176), blocks=(0, 2, 4)), k),
    ),
    "branches": ("re-parameterised 3x3 + 1x1 branches", lambda k: with_branches(plain(EDGE_M, k))),
    "context": ("context: two dilated blocks at stride 32", context),
    "concat": ("decoder: concatenates 80 channels instead of adding 128", concat),
    "light decoder": ("decoder: 64 channels", lambda k: plain(replace(EDGE_M, decoder=64), k)),
}
