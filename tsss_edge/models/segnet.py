"""What every segmentation network is: one encoder pass, one decoder, up to two heads at stride 8; and the classifier on it."""
# Letters: N batch, H height, W width, K class, h = H/8, w = W/8.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SHARPNESS = 4.0  # r of the log-mean-exp pooling: 0 is the mean, infinity the maximum


class Heads(NamedTuple):
    """What a network gives for a batch, at stride 8. A head the network lacks is None."""

    logits: Tensor | None  # (N,K,H/8,W/8)
    objectness: Tensor | None  # (N,1,H/8,W/8), a logit: above 0 is object


class SegNet(nn.Module):
    """One encoder pass, up to two heads. L-Net has the objectness head alone, P-Net and the supervised net have both.

    Input: (N,3,H,W) float, `value / 255 * scale`, RGB; H and W multiples of 32.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, channels: int, *, num_classes: int, objectness: bool = True
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.channels = channels
        self.class_head = nn.Conv2d(channels, num_classes, 1) if num_classes else None
        self.object_head = nn.Conv2d(channels, 1, 1) if objectness else None

    def features(self, x: Tensor) -> Tensor:
        """(N,channels,H/8,W/8): what both heads and the self-diffusion affinities see."""
        features: Tensor = self.decoder(self.encoder(x))
        return features

    def forward(self, x: Tensor) -> Heads:
        features = self.features(x)
        return Heads(
            logits=self.class_head(features) if self.class_head is not None else None,
            objectness=self.object_head(features) if self.object_head is not None else None,
        )


def network_input(images: Tensor, scale: float) -> Tensor:
    """(N,H,W,3) uint8 -> (N,3,H,W) float32, `value / 255 * scale`; channels_last in memory, as it came."""
    return images.permute(0, 3, 1, 2).float().mul_(scale / 255)


class ClassMaps(NamedTuple):
    """maps: (N,K,h,w) logits of each class in each cell; scores: (N,K) image-level; objectness: (N,1,h,w) logits."""

    maps: Tensor
    scores: Tensor
    objectness: Tensor


class Classifier(nn.Module):
    """A `SegNet` with both heads, its class logits pooled over the cells that its objectness head calls an object.

    Pooling is log-mean-exp (Pinheiro and Collobert, arXiv 1411.6228, equation 6), weighted by objectness (ours): a category
    must show inside M, the foreground of L-Net, not in the background that often comes with it. Column 0 (background) of maps
    and scores means nothing.
    """

    def __init__(self, net: SegNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> ClassMaps:
        """(N,3,H,W) -> maps and scores."""
        maps, objectness = self.net(x)
        return ClassMaps(maps, pool(maps.float(), objectness.detach().float().sigmoid()), objectness)


def pool(maps: Tensor, weight: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """`log(sum(w * exp(r * a)) / sum(w)) / r` over the cells: (N,K,h,w), (N,1,h,w) in 0-1 -> (N,K)."""
    log_weight = (weight + 1e-4).log()  # never 0: a picture without foreground still has a score
    total = torch.logsumexp(log_weight, dim=(2, 3))
    return (torch.logsumexp(sharpness * maps + log_weight, dim=(2, 3)) - total) / sharpness
