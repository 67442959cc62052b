"""edge-s that begins with space-to-depth: blocks of pixels become channels (TResNet, arXiv 2003.13630), so its first convolution works
on a coarser grid. Not among the networks of the study unless they are named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from tsss_edge.models.edge import EDGE_S, ConvBnRelu, EdgeDecoder, EdgeEncoder, initialize
from tsss_edge.models.segnet import SegNet


def edge_s_from_blocks(side: int, *, num_classes: int, objectness: bool = True) -> SegNet:
    """edge-s whose first layer sees blocks of `side` pixels. 2: in place of the stem's stride. 4: in place of stem and first stage."""
    encoder, widths = EdgeEncoder(EDGE_S), EDGE_S.widths
    channels = widths[0] if side == 2 else widths[1]
    encoder.stem = nn.Sequential(nn.PixelUnshuffle(side), ConvBnRelu(3 * side**2, channels))  # type: ignore[assignment]
    if side == 4:
        encoder.stages[0] = nn.Identity()
    decoder = EdgeDecoder(encoder.channels, EDGE_S.decoder)
    return initialize(SegNet(encoder, decoder, EDGE_S.decoder, num_classes=num_classes, objectness=objectness))


STEMS: dict[str, Callable[..., SegNet]] = {
    "edge-s-s2d2": partial(edge_s_from_blocks, 2),
    "edge-s-s2d4": partial(edge_s_from_blocks, 4),
}
