"""Logits and masks -> losses, on a grid between the network's stride 8 and the pixels.

Targets are the *shares* of each class in a cell of `stride` pixels, and the logits are upsampled bilinearly (half-pixel
centres, as at inference) to that grid. At stride 1 that is plain cross-entropy on pixels. At stride 4 a boundary cell
still tells where in it the boundary runs, at a sixteenth of the softmaxes (measured: see docs of TrainConfig.loss_stride).
"""
# Letters: N batch, K class, H height, W width, h = H/stride, w = W/stride.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tsss_edge.train.distributed import mean_of_processes


def cell_shares(masks: Tensor, num_classes: int, stride: int) -> Tensor:
    """(N,H,W) uint8 -> (N,K,h,w) float32: share of each class among a cell's pixels. 255 belongs to no class."""
    n, height, width = masks.shape
    h, w = height // stride, width // stride
    cell = torch.arange(n * h * w, device=masks.device).view(n, h, 1, w, 1)
    label = masks.long().clamp(max=num_classes).view(n, h, stride, w, stride)
    index = cell * (num_classes + 1) + label
    counts = torch.bincount(index.flatten(), minlength=n * h * w * (num_classes + 1))
    return counts.view(n, h, w, num_classes + 1)[..., :num_classes].permute(0, 3, 1, 2).float() / stride**2


def upsample_to(logits: Tensor, like: Tensor) -> Tensor:
    """Bilinear, half-pixel centres, to the grid of `like`; float32."""
    logits = logits.float()
    if logits.shape[-2:] == like.shape[-2:]:
        return logits
    return F.interpolate(logits, size=like.shape[-2:], mode="bilinear", align_corners=False)


def class_loss(logits: Tensor, shares: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy against shares, a mean over labelled pixels (each weighted by its class).

    Args: logits: (N,K,H/8,W/8). shares: (N,K,h,w), as `cell_shares`. class_weights: (K,).
    """
    if class_weights is not None:
        shares = shares * class_weights[:, None, None]
    total = -(shares * F.log_softmax(upsample_to(logits, shares), dim=1)).sum()
    return total / mean_of_processes(shares.sum()).clamp(min=1.0)


def jaccard_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """1 - soft intersection over union, a mean over the classes that the batch shows (arXiv 1608.01471, section 2.2).

    A rare class weighs as much as a common one, as in mIoU. Args: as `class_loss`. Under torchrun, of this process.
    """
    known = shares.sum(dim=1, keepdim=True)
    predicted = known * F.softmax(upsample_to(logits, shares), dim=1)
    both = (predicted * shares).sum(dim=(0, 2, 3))
    either = (predicted + shares - predicted * shares).sum(dim=(0, 2, 3))
    shown = shares.sum(dim=(0, 2, 3)) > 0
    overlap = (both + 1) / (either + 1)
    return ((1 - overlap) * shown).sum() / shown.sum().clamp(min=1)


def category_losses(
    logits: Tensor, shares: Tensor, class_weights: Tensor | None, jaccard: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy, and where `jaccard` is above 0 so much of the Jaccard loss -> (their sum, each by name)."""
    parts = {"class": class_loss(logits, shares, class_weights)}
    if not jaccard:
        return parts["class"], parts
    parts["jaccard"] = jaccard_loss(logits, shares)
    return parts["class"] + jaccard * parts["jaccard"], parts


def object_loss(objectness: Tensor, shares: Tensor) -> Tensor:
    """Binary cross-entropy of object (any class but 0) against background, a mean over labelled pixels.

    Args: objectness: (N,1,H/8,W/8) logit. shares: (N,K,h,w), class 0 being the background.
    """
    known = shares.sum(dim=1, keepdim=True)
    thing = known - shares[:, :1]
    logit = upsample_to(objectness, shares)
    total = (known * F.softplus(logit) - thing * logit).sum()  # known*softplus(x) - thing*x = BCE, weighted
    return total / mean_of_processes(known.sum()).clamp(min=1.0)
