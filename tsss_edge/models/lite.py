"""EfficientNet-Lite encoders (lite0, lite1, lite2) with the decoder and heads of the edge networks.

EfficientNet (arXiv 1905.11946) as its "lite" variants are: ReLU6, no squeeze-excite, stem and last stage not scaled. It is
here because its ImageNet weights can be had: it has seen photographs. Its depthwise convolutions are slow for their
FLOPs, so it is the teacher first, and deployed only where measurement says so.

Padding is TensorFlow's "SAME", with which the weights were trained: a convolution of stride 2 on an even size pads one
pixel more below and on the right. The network input, 0-1, becomes (value - 127) / 128 in the encoder's first layer;
padding comes after it, so the mean cannot be folded into the convolution and stays a node (models/fused.py).
"""
# Letters: N batch, C channel, H height, W width.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from tsss_edge.models.edge import EdgeDecoder, initialize
from tsss_edge.models.segnet import SegNet

PIXEL_MEAN, PIXEL_STEP = 127.0, 128.0  # input of the ImageNet weights: (value - mean) / step
NORM_EPS = 1e-3  # of batch norm, as the weights were trained with
DECODER = 96  # channels


@dataclass(frozen=True)
class Group:
    """Blocks of one kind in lite0: channels they give, how many, kernel, stride of the first, expansion."""

    channels: int
    blocks: int
    kernel: int
    stride: int
    expand: int = 6


GROUPS = (
    Group(16, 1, 3, 1, expand=1),
    Group(24, 2, 3, 2),
    Group(40, 2, 5, 2),
    Group(80, 3, 3, 2),
    Group(112, 3, 5, 1),
    Group(192, 4, 5, 2),
    Group(320, 1, 3, 1),
)
STEM = 32

Recall = Callable[[Tensor], list[Tensor]]  # network input -> features at stride 8 and on, as far as stages are frozen


@dataclass(frozen=True)
class LiteConfig:
    """Width and depth relative to lite0."""

    width: float = 1.0
    depth: float = 1.0

    @property
    def groups(self) -> tuple[Group, ...]:
        """lite0's groups, scaled. The first and the last keep their number of blocks."""
        inner = range(1, len(GROUPS) - 1)
        return tuple(
            Group(
                rounded_channels(g.channels * self.width),
                math.ceil(g.blocks * self.depth) if i in inner else g.blocks,
                g.kernel,
                g.stride,
                g.expand,
            )
            for i, g in enumerate(GROUPS)
        )


LITE0, LITE1, LITE2 = LiteConfig(), LiteConfig(depth=1.1), LiteConfig(width=1.1, depth=1.2)


def rounded_channels(channels: float) -> int:
    """To the nearest multiple of 8, but never less than nine tenths (arXiv 1905.11946, reference code)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class Normalize(nn.Module):
    """x -> x * gain - offset, the same for all channels."""

    def __init__(self, gain: float, offset: float) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.gain == 1 else x * self.gain) - self.offset


class ConvBn(nn.Sequential):
    """Convolution with "SAME" padding, without bias, and batch norm."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2  # of an even size
        pad = [] if before == after else [nn.ZeroPad2d((before, after, before, after))]
        conv = nn.Conv2d(channels_in, channels_out, kernel, stride, 0 if pad else before, groups=groups, bias=False)
        super().__init__(*pad, conv, nn.BatchNorm2d(channels_out, eps=NORM_EPS))


class InvertedResidual(nn.Module):
    """Expansion (1x1), depthwise convolution, projection (1x1); the input is added where the shapes allow it."""

    def __init__(self, channels_in: int, group: Group, *, stride: int) -> None:
        super().__init__()
        wide = channels_in * group.expand
        self.expand = nn.Sequential(*ConvBn(channels_in, wide), nn.ReLU6(inplace=True)) if group.expand > 1 else None
        self.depthwise = nn.Sequential(
            *ConvBn(wide, wide, group.kernel, stride=stride, groups=wide), nn.ReLU6(inplace=True)
        )
        self.project = ConvBn(wide, group.channels)
        self.adds = stride == 1 and channels_in == group.channels

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else self.expand(x)
        narrow: Tensor = self.project(self.depthwise(wide))
        return x + narrow if self.adds else narrow


class PlainBlock(nn.Module):
    """What stands for an `InvertedResidual` where depthwise convolutions are slow: a plain 3x3 convolution to twice the
    channels, and a projection (1x1); the input is added where the shapes allow it. Ours, after LANA (ECCV 2022)."""

    def __init__(self, channels_in: int, group: Group, *, stride: int) -> None:
        super().__init__()
        wide = 2 * group.channels
        self.widen = nn.Sequential(*ConvBn(channels_in, wide, 3, stride=stride), nn.ReLU6(inplace=True))
        self.project = ConvBn(wide, group.channels)
        self.adds = stride == 1 and channels_in == group.channels

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.project(self.widen(x))
        return x + narrow if self.adds else narrow


Block = type[InvertedResidual] | type[PlainBlock]


class LiteEncoder(nn.Module):
    """(N,3,H,W), 0-1 -> features at strides 8, 16, 32. `block`: of what its stages are made."""

    def __init__(self, config: LiteConfig, block: Block = InvertedResidual) -> None:
        super().__init__()
        self.normalize = Normalize(255.0 / PIXEL_STEP, PIXEL_MEAN / PIXEL_STEP)
        layers: list[list[nn.Module]] = [[nn.Sequential(*ConvBn(3, STEM, 3, stride=2), nn.ReLU6(inplace=True))]]
        channels = STEM
        for group in config.groups:
            for index in range(group.blocks):
                stride = group.stride if index == 0 else 1
                if stride == 2:
                    layers.append([])
                layers[-1].append(block(channels, group, stride=stride))
                channels = group.channels
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in layers)  # strides 2, 4, 8, 16, 32
        self.channels = tuple(config.groups[i].channels for i in (2, 4, 6))
        self.memory: Recall | None = None  # of what frozen stages give, see train/memory.py

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.memory(x) if self.memory is not None else []
        done = len(features) + len(self.stages) - 3 if features else 0
        x = features[-1] if features else self.normalize(x)
        for stage in self.stages[done:]:
            x = stage(x)
            features.append(x)
        return features[-3:]  # strides 8, 16, 32


def blocks_of(encoder: nn.Module) -> list[InvertedResidual | PlainBlock]:
    """The blocks of a lite encoder, in order; of another encoder none."""
    return [m for m in encoder.modules() if isinstance(m, (InvertedResidual, PlainBlock))]


def lite_net(
    config: LiteConfig, *, num_classes: int, objectness: bool = True, block: Block = InvertedResidual
) -> SegNet:
    """A lite network with fresh weights."""
    encoder = LiteEncoder(config, block)
    decoder = EdgeDecoder(encoder.channels, DECODER)
    net = initialize(SegNet(encoder, decoder, DECODER, num_classes=num_classes, objectness=objectness))
    for conv in (m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.groups > 1):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # fan-in: one channel's, as each output has one input
    return net


# ---------------------------------------------------------------------------------------------------------------------
# ImageNet weights


def from_efficientnet(state: dict[str, Tensor], encoder: LiteEncoder) -> dict[str, Tensor]:
    """Tensors as EfficientNet-PyTorch names them (`_conv_stem`, `_blocks.0._depthwise_conv`, ...) -> ours.

    Its classifier (`_conv_head`, `_fc`) is left out; a tensor that the file lacks is left out too, for the caller to miss.
    """
    named = {}
    for theirs, ours, part in _pairs(encoder):
        found = {k.removeprefix(f"{theirs}."): v for k, v in state.items() if k.startswith(f"{theirs}.")}
        named.update({f"{ours}.{name}": found[name] for name in part.state_dict() if name in found})
    return named


def _pairs(encoder: LiteEncoder) -> Iterator[tuple[str, str, nn.Module]]:
    """(their name, our name, the layer) of each convolution and batch norm of an encoder."""
    paths = {module: name for name, module in encoder.named_modules()}
    stem = next(m for m in encoder.stages[0].children())
    yield from _layers("_conv_stem", "_bn0", paths, stem)
    for index, block in enumerate(blocks_of(encoder)):
        if isinstance(block, PlainBlock):
            continue
        parts = ((block.expand, "_expand_conv", "_bn0"), (block.depthwise, "_depthwise_conv", "_bn1"))
        for part, conv, norm in (*parts, (block.project, "_project_conv", "_bn2")):
            if part is not None:
                yield from _layers(f"_blocks.{index}.{conv}", f"_blocks.{index}.{norm}", paths, part)


def _layers(conv: str, norm: str, paths: dict[nn.Module, str], part: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    for layer in part.children():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            yield (conv if isinstance(layer, nn.Conv2d) else norm), paths[layer], layer
