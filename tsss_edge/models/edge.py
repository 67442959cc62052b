"""The two edge networks: plain 3x3 convolutions, stride-8 logits, shapes that INT8 tensor cores and AMX like.

Encoder: residual blocks to stride 32. Decoder: 1x1 laterals on strides 8, 16 and 32, nearest x2 upsampling, 3x3 smoothing. No
depthwise convolution; channels in multiples of 16. Ours, after ResNet (arXiv 1512.03385) and FPN (arXiv 1612.03144).
"""
# Letters: N batch, C channel, H height, W width, K class.

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tsss_edge.models.segnet import SegNet


class ConvBnRelu(nn.Sequential):
    """3x3 (or `kernel`) convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), the skip being the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBnRelu(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


@dataclass(frozen=True)
class EdgeConfig:
    """Widths after the stem and each stage (four reach stride 32), blocks in each stage, decoder width."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    decoder: int


class EdgeEncoder(nn.Module):
    """(N,3,H,W) -> features at strides 8, 16, 32."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        widths = config.widths
        self.stem = ConvBnRelu(3, widths[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBnRelu(c_in, c_out, stride=2), *(ResidualBlock(c_out) for _ in range(blocks)))
            for c_in, c_out, blocks in zip(widths[:-1], widths[1:], config.blocks, strict=True)
        )
        self.channels = widths[2:]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[1:]  # strides 8, 16, 32


class EdgeDecoder(nn.Module):
    """Features at strides 8, 16, 32 -> (N,channels,H/8,W/8)."""

    def __init__(self, encoder_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in encoder_channels)
        self.smooth = nn.ModuleList(ConvBnRelu(channels, channels) for _ in encoder_channels[:-1])

    def forward(self, features: list[Tensor]) -> Tensor:
        x: Tensor = self.laterals[-1](features[-1])
        for level in reversed(range(len(self.smooth))):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") + self.laterals[level](features[level])
            x = self.smooth[level](x)
        return x


EDGE_S = EdgeConfig(widths=(16, 32, 64, 112, 144), blocks=(0, 2, 2, 1), decoder=64)
EDGE_M = EdgeConfig(widths=(32, 64, 96, 192, 256), blocks=(0, 2, 2, 1), decoder=128)


def edge_net(config: EdgeConfig, *, num_classes: int, objectness: bool = True) -> SegNet:
    """An edge network with fresh weights."""
    encoder = EdgeEncoder(config)
    decoder = EdgeDecoder(encoder.channels, config.decoder)
    return initialize(SegNet(encoder, decoder, config.decoder, num_classes=num_classes, objectness=objectness))


def initialize(net: SegNet) -> SegNet:
    """Fresh weights: He's initialisation (arXiv 1502.01852), and each residual block starts as the identity."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ResidualBlock):
            norm = module.second[1]
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)  # arXiv 1706.02677, section 5.1
    return net
