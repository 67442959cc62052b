"""edge-s with one thing changed. Not among the networks of the study unless they are named.

Space-to-depth stems: blocks of pixels become channels (TResNet, arXiv 2003.13630), so the first convolution works on a coarser grid.
Both are written as the one convolution that they are, which is exact from uint8 and has INT8 weights; as nodes of a graph the blocks
would cost 1 ms. Pyramid: what Fast-SCNN and PSPNet (arXiv 1612.01105) put at stride 32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from front.blocks import Pyramid
from tsss_edge.models.edge import EDGE_S, ConvBnRelu, EdgeDecoder, EdgeEncoder, initialize
from tsss_edge.models.segnet import SegNet


def with_encoder(encoder: EdgeEncoder, *, num_classes: int, objectness: bool = True) -> SegNet:
    """edge-s's decoder and heads on an encoder of the same widths, fresh weights."""
    decoder = EdgeDecoder(encoder.channels, EDGE_S.decoder)
    return initialize(SegNet(encoder, decoder, EDGE_S.decoder, num_classes=num_classes, objectness=objectness))


def edge_s_from_blocks(side: int, *, num_classes: int, objectness: bool = True) -> SegNet:
    """edge-s whose first layer sees blocks of `side` pixels. 2: in place of the stem's stride. 4: in place of stem and first stage."""
    encoder, widths = EdgeEncoder(EDGE_S), EDGE_S.widths
    channels = widths[0] if side == 2 else widths[1]
    encoder.stem = ConvBnRelu(3, channels)
    encoder.stem[0] = nn.Conv2d(3, channels, 3 * side, side, padding=side, bias=False)  # a 3x3 of blocks
    if side == 4:
        encoder.stages[0] = nn.Identity()
    return with_encoder(encoder, num_classes=num_classes, objectness=objectness)


def edge_s_with_pyramid(*, num_classes: int, objectness: bool = True) -> SegNet:
    """edge-s whose last stage ends with `Pyramid`."""
    encoder = EdgeEncoder(EDGE_S)
    encoder.stages[-1] = nn.Sequential(encoder.stages[-1], Pyramid(encoder.channels[-1]))
    return with_encoder(encoder, num_classes=num_classes, objectness=objectness)


VARIANTS: dict[str, Callable[..., SegNet]] = {
    "edge-s-s2d2": partial(edge_s_from_blocks, 2),
    "edge-s-s2d4": partial(edge_s_from_blocks, 4),
    "edge-s-pyramid": edge_s_with_pyramid,
}
