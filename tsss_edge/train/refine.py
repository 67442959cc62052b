"""Beyond the paper, behind a switch of P-Net: labels corrected by the averaged network.

Mean teacher (arXiv 1703.01780), adapted: the averaged network looks at the same weak pictures, its probabilities
limited to the background and to the categories that the image-level label names. Where it surely sees something else
than Lw, nothing is learned there; where Lw is unsure, its answer is the target. Errors of Lw differ from picture to
picture, so the network averages them out before it could learn them by heart. Mixing the two everywhere in place of that
blurs what is right as well, and loses. It helps on labels of the first round; on those of a second round it costs, so it
is off by default (docs/results/transfer.md).
"""
# Letters: N batch, K class, h, w grid of the loss.

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsss_edge.train.loader import Batch
from tsss_edge.train.losses import upsample_to

HEARD_FROM, HEARD_FULL = 0.3, 0.5  # shares of training between which the teacher's say grows from none to all
SURE = 0.8  # probability from which the teacher may strike out a label


@torch.no_grad()
def refine(shares: Tensor, x: Tensor, batch: Batch, teacher: nn.Module, done: float) -> Tensor:
    """Targets of weak pictures corrected by the teacher: (N,K,h,w) -> (N,K,h,w). Strong pictures stay.

    Pixels outside the picture (255 by augmentation) look like unsure ones to us and get the teacher's answer too; it
    calls them background, which does no harm.
    """
    say = min(1.0, max(0.0, (done - HEARD_FROM) / (HEARD_FULL - HEARD_FROM)))
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
