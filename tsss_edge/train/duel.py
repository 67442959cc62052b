"""D of our reading of the paper (Xiao et al., arXiv 1711.06828): it tells predictions on strong pictures from those on weak ones.

It judges structure, not category (models/discriminator.py), cell by cell, so a picture that CutMix made of two has two targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tsss_edge.config import TrainConfig
from tsss_edge.models.discriminator import seeded
from tsss_edge.train.distributed import average_gradients

STRONG_TARGET = 0.9  # label smoothing (arXiv 1606.03498)
D_LR = 3e-4


class Duel:
    """D, its optimizer, and what each side minimises."""

    def __init__(self, config: TrainConfig) -> None:
        self.net = seeded(config.seed + 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=D_LR, betas=(0.5, 0.99))

    def learn(self, image: Tensor, probabilities: Tensor, weak: Tensor) -> Tensor:
        """One step of D on detached predictions: strong cells to 0.9, weak ones to 0. Returns its loss.

        Args: weak: (N,1,h,w) on any grid, 1 where the cell comes of a weak picture.
        """
        self.net.requires_grad_(True)
        score = self.net(image, probabilities.detach()).float()
        target = STRONG_TARGET * (1 - weak_share(weak, score))
        loss = F.binary_cross_entropy_with_logits(score, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.net.parameters())
        self.optimizer.step()
        return loss

    def fool(self, image: Tensor, probabilities: Tensor, weak: Tensor) -> Tensor:
        """S's loss: its predictions in weak cells should be taken for strong ones (non-saturating, arXiv 1406.2661)."""
        if not bool(weak.any()):
            return probabilities.new_zeros(())
        self.net.requires_grad_(False)
        score = self.net(image, probabilities).float()
        share = weak_share(weak, score)
        return (share * F.softplus(-score)).sum() / share.sum()


def weak_share(weak: Tensor, score: Tensor) -> Tensor:
    """(N,1,h,w), 1 in weak cells -> the share of them in each cell of D's `score`: (N,1,h/2,w/2)."""
    return F.adaptive_avg_pool2d(weak, (score.shape[-2], score.shape[-1]))
