"""Beyond the paper, each behind a switch of P-Net: labels refined by the averaged network, and CutMix.

Mean teacher (arXiv 1703.01780), adapted: the averaged network looks at the same weak pictures, its probabilities are
limited to the background and to the categories that the image-level label names, and they replace a growing part of Lw.
Errors of Lw differ from picture to picture, so the network averages them out before it could learn them by heart.
"""
# Letters: N batch, K class, h, w grid of the loss.

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsss_edge.train.loader import Batch
from tsss_edge.train.losses import upsample_to

TRUST_FROM, TRUST_FULL, TRUST = 0.2, 0.5, 0.8  # shares of training; the teacher's final share of the target
CUT = (0.2, 0.5)  # side of a CutMix rectangle, as a share of the picture's


@torch.no_grad()
def refine(shares: Tensor, x: Tensor, batch: Batch, teacher: nn.Module, done: float) -> Tensor:
    """Targets of weak pictures moved towards the teacher: (N,K,h,w) -> (N,K,h,w). Strong pictures stay.

    Where Lw is unsure (255) the teacher speaks alone. Pixels outside the picture (255 by augmentation) look the same to
    us and get the same; the teacher calls them background there, which does no harm.
    """
    trust = TRUST * min(1.0, max(0.0, (done - TRUST_FROM) / (TRUST_FULL - TRUST_FROM)))
    if trust == 0 or not bool(batch.weak.any()):
        return shares
    logits = upsample_to(teacher(x[batch.weak]).logits, shares)
    allowed = batch.labels[batch.weak].clone()
    allowed[:, 0] = 1
    belief = logits.masked_fill((allowed == 0)[:, :, None, None], -1e4).softmax(dim=1)
    refined = shares.clone()
    refined[batch.weak] = (1 - trust) * shares[batch.weak] + trust * belief
    return refined


def cut_and_mix(x: Tensor, shares: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the next picture of the batch into each one, targets with it (CutMix, arXiv 1905.04899).

    One rectangle a batch, on whole stride-8 cells, drawn from (seed, step).
    """
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    cells_h, cells_w = x.shape[-2] // 8, x.shape[-1] // 8
    low, high = CUT
    side = low + (high - low) * float(torch.rand((), generator=draw))
    height, width = max(1, round(side * cells_h)), max(1, round(side * cells_w))
    top = int(torch.randint(cells_h - height + 1, (), generator=draw))
    left = int(torch.randint(cells_w - width + 1, (), generator=draw))
    mixed = []
    for tensor in (x, shares):
        k = tensor.shape[-1] // cells_w
        area = (..., slice(top * k, (top + height) * k), slice(left * k, (left + width) * k))
        pasted = tensor.clone()
        pasted[area] = tensor.roll(1, dims=0)[area]
        mixed.append(pasted)
    return mixed[0], mixed[1]
