"""What every segmentation network is: one encoder pass, one decoder, up to two heads at stride 8."""
# Letters: N batch, H height, W width, K class.

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


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
