"""A picture and a class-probability map -> does this prediction look like one on a strong image? Used in training only."""
# Letters: N batch, K class, h = H/8, w = W/8.

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

OBJECTS_SEEN = 3  # object probabilities that D sees, the largest ones of the picture


class Discriminator(nn.Module):
    """Patch discriminator on the stride-8 grid.

    Our reading of the paper: D sees (image, class probabilities) and tells strong from weak. Ours: spectral norm (arXiv 1802.05957),
    and object channels sorted by mass, not by id. By id D would learn that weak categories never occur on strong images, and S
    would stop predicting them.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        channels = 3 + 1 + OBJECTS_SEEN
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 3, padding=1)),
            nn.LeakyReLU(0.2, inplace=True),
            spectral_norm(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.2, inplace=True),
            spectral_norm(nn.Conv2d(2 * width, 2 * width, 3, padding=1)),
            nn.LeakyReLU(0.2, inplace=True),
            spectral_norm(nn.Conv2d(2 * width, 1, 1)),
        )

    def forward(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """(N,3,h,w) in 0-1 and (N,K,h,w), channel 0 the background -> (N,1,h/2,w/2) logits, above 0 is "strong"."""
        score: Tensor = self.layers(torch.cat([image, structure_of(probabilities)], dim=1))
        return score


def seeded(seed: int) -> Discriminator:
    """One with fresh weights of its own seed; PyTorch's random numbers go on as if it had not been made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator()


def structure_of(probabilities: Tensor) -> Tensor:
    """(N,K,h,w) -> (N,1+OBJECTS_SEEN,h,w): background, then the object channels of largest mass, largest first."""
    objects = probabilities[:, 1:]
    count = min(OBJECTS_SEEN, objects.shape[1])
    largest = objects.mean(dim=(2, 3)).topk(count, dim=1).indices
    chosen = objects.gather(1, largest[:, :, None, None].expand(-1, -1, *objects.shape[2:]))
    missing = chosen.new_zeros(len(chosen), OBJECTS_SEEN - count, *chosen.shape[2:])
    return torch.cat([probabilities[:, :1], chosen, missing], dim=1)
