"""Masks -> targets, and logits against them -> losses, on a grid between the network's stride 8 and the pixels.

A target is the *share* of each class in a cell of `stride` pixels. Logits are upsampled to that grid as at inference. Stride 1
is plain cross-entropy; at stride 4 a cell still tells where a boundary runs, at a sixteenth of the cost. CutMix and the mean
teacher change targets and stand here too.
"""
# Letters: N batch, K class, H height, W width, h = H/stride, w = W/stride.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsss_edge.train.distributed import mean_of_processes
from tsss_edge.train.loader import Batch

CUT = (0.2, 0.5)  # side of CutMix's rectangle, as a share of the picture's
HEARD_FROM, HEARD_FULL = 0.3, 0.5  # shares of training between which the teacher's say grows from none to all
SURE = 0.8  # probability from which the teacher may strike out a label


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


# -- What changes targets


def cut_and_mix(seed: int, step: int, x: Tensor, *targets: Tensor) -> tuple[Tensor, ...]:
    """CutMix (arXiv 1905.04899): paste a rectangle of the next picture of the batch, with its targets, into each one.

    So a category is not learned by what it mostly stands beside. One rectangle a batch, on stride-8 cells, from (seed, step).
    Args: x: (N,3,H,W). targets: (N,C,h,w) each, on a grid of H/8 cells or a multiple of it. Returns: x and targets.
    """
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    cells_h, cells_w = x.shape[-2] // 8, x.shape[-1] // 8
    low, high = CUT
    side = low + (high - low) * float(torch.rand((), generator=draw))
    height, width = max(1, round(side * cells_h)), max(1, round(side * cells_w))
    top = int(torch.randint(cells_h - height + 1, (), generator=draw))
    left = int(torch.randint(cells_w - width + 1, (), generator=draw))
    mixed = []
    for tensor in (x, *targets):
        k = tensor.shape[-1] // cells_w
        area = (..., slice(top * k, (top + height) * k), slice(left * k, (left + width) * k))
        pasted = tensor.clone()
        pasted[area] = tensor.roll(1, dims=0)[area]
        mixed.append(pasted)
    return tuple(mixed)


def ramp(done: float, start: float, end: float) -> float:
    """0 until the share `start` of training is done, 1 from `end` on, and straight between them."""
    return min(1.0, max(0.0, (done - start) / (end - start)))


@torch.no_grad()
def refine(shares: Tensor, x: Tensor, batch: Batch, teacher: nn.Module, done: float) -> Tensor:
    """Targets of weak pictures, corrected by the averaged network: (N,K,h,w) -> (N,K,h,w). Strong pictures stay.

    Mean teacher (arXiv 1703.01780), adapted; beyond the paper, behind a switch. The teacher chooses among the background and the
    categories of the image-level label. Where it surely sees something else than Lw, nothing is learned. Where Lw is unsure, its
    answer is the target. It helps on labels of the first round and costs on those of the second (docs/results/transfer.md).
    """
    say = ramp(done, HEARD_FROM, HEARD_FULL)
    if say == 0 or not bool(batch.weak.any()):
        return shares
    ours, belief = shares[batch.weak], _belief(shares, x, batch, teacher)
    known = ours.sum(dim=1, keepdim=True)
    agreement = (ours * belief).sum(dim=1, keepdim=True) / known.clamp(min=1e-6)
    wrong = (belief.amax(dim=1, keepdim=True) > SURE) & (agreement < 1 - SURE)
    refined = shares.clone()
    refined[batch.weak] = ours * (1 - say * wrong.float()) + say * (1 - known) * belief
    return refined


def _belief(shares: Tensor, x: Tensor, batch: Batch, teacher: nn.Module) -> Tensor:
    """The teacher's probabilities on weak pictures, within their image-level labels: (N_weak,K,h,w)."""
    logits = upsample_to(teacher(x[batch.weak]).logits, shares)
    allowed = batch.labels[batch.weak].clone()
    allowed[:, 0] = 1
    return logits.masked_fill((allowed == 0)[:, :, None, None], -1e4).softmax(dim=1)
