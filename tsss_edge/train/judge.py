"""D that judges quality: true masks of strong pictures against corrupted ones -> how far each cell of a label can be trusted (ours).

Telling strong pictures from weak ones says little of what is wrong with a label: the two differ in how many categories they show.
So this D sees a picture and a labelling, true or with an error put in (objects too small, too large, or called another category),
and says for each cell how much of it is right, as a confidence map does (Hung et al., arXiv 1802.07934). What it thinks of Lw
weighs the pixels of weak pictures.
"""
# Letters: N batch, K class, h, w grid of the shares, D sees stride-8 cells and answers on half of that grid.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tsss_edge.config import TrainConfig
from tsss_edge.models.discriminator import seeded
from tsss_edge.train.distributed import average_gradients

JUDGE_LR = 1e-3
HEARD_FROM, HEARD_FULL = 0.2, 0.4  # shares of training between which its say grows from none to all
REACH = 2  # cells by which an object is made too small or too large, at most
KINDS = 3  # of errors: smaller, larger, another category


class QualityJudge:
    """D and its optimizer."""

    def __init__(self, config: TrainConfig) -> None:
        self.net = seeded(config.seed + 2)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=JUDGE_LR, betas=(0.5, 0.99))

    def learn(self, image: Tensor, shares: Tensor, generator: torch.Generator) -> Tensor:
        """One step on strong pictures: their true labelling, and the same with an error in it. Returns the loss.

        Args: image: (N,3,h,w) in 0-1. shares: (N,K,h,w) of their masks. Cells without a label teach nothing. N may be 0: other
        processes may have strong pictures, and all take the same step.
        """
        self.net.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(image, shares, generator) if len(image) else image.new_zeros(())
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.net.parameters())
        self.optimizer.step()
        return loss

    def _loss(self, image: Tensor, shares: Tensor, generator: torch.Generator) -> Tensor:
        wrong = corrupted(shares, generator)
        labelling = torch.cat([shares, wrong])
        score = self.net(torch.cat([image, image]), labelling).float()
        known = F.adaptive_avg_pool2d(torch.cat([shares, shares]).sum(dim=1, keepdim=True), score.shape[-2:])
        right = F.adaptive_avg_pool2d(overlap(torch.cat([shares, shares]), labelling), score.shape[-2:])
        target = right / known.clamp(min=1e-6)
        losses = F.binary_cross_entropy_with_logits(score, target.clamp(0, 1), reduction="none")
        return (known * losses).sum() / known.sum().clamp(min=1.0)

    @torch.no_grad()
    def trust(self, image: Tensor, shares: Tensor) -> Tensor:
        """How far a labelling is right: (N,3,h,w) and (N,K,h,w) -> (N,1,h,w), 0-1."""
        self.net.requires_grad_(False)
        score = self.net(image, shares).float().sigmoid()
        return F.interpolate(score, size=shares.shape[-2:], mode="bilinear", align_corners=False)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """(N,K,h,w) twice -> (N,1,h,w): the share of each cell on which two labellings agree."""
    return torch.minimum(a, b).sum(dim=1, keepdim=True)


def corrupted(shares: Tensor, generator: torch.Generator) -> Tensor:
    """One error in every picture of (N,K,h,w), class 0 the background: its objects become smaller or larger by up to `REACH` cells,
    or one of them is called another category. The share of a cell that is labelled at all stays."""
    pictures = []
    for picture in shares:
        kind = int(torch.randint(KINDS, (), generator=generator))
        reach = 1 + int(torch.randint(REACH, (), generator=generator))
        if kind == 2:
            pictures.append(_renamed(picture, generator))
        else:
            pictures.append(_resized(picture, reach if kind == 1 else -reach))
    return torch.stack(pictures)


def _resized(shares: Tensor, reach: int) -> Tensor:
    """Objects of (K,h,w) larger by `reach` cells, or smaller where it is negative; what is left is background."""
    side, known = 2 * abs(reach) + 1, shares.sum(dim=0, keepdim=True)
    sign = 1 if reach > 0 else -1  # the smallest value of a window is the largest of its negatives
    objects = sign * F.max_pool2d(sign * shares[None, 1:], side, 1, abs(reach))[0]
    total = objects.sum(dim=0, keepdim=True)
    objects = objects * (known / total.clamp(min=1e-6)).clamp(max=1.0)
    return torch.cat([known - objects.sum(dim=0, keepdim=True), objects])


def _renamed(shares: Tensor, generator: torch.Generator) -> Tensor:
    """The largest object of (K,h,w) called another category, drawn at random. With one category it is called background."""
    largest = 1 + int(shares[1:].sum(dim=(1, 2)).argmax())
    others = [k for k in range(len(shares)) if k != largest and (k > 0 or len(shares) == 2)]
    other = others[int(torch.randint(len(others), (), generator=generator))]
    renamed = shares.clone()
    renamed[other] += renamed[largest]
    renamed[largest] = 0
    return renamed
