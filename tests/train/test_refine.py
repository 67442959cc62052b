"""Mean-teacher targets on hand-made tensors."""

from __future__ import annotations

import torch
from torch import nn

from tsss_edge.models import Heads
from tsss_edge.train.loader import Batch
from tsss_edge.train.losses import HEARD_FROM, HEARD_FULL, SURE, refine


class Loud(nn.Module):
    """Says category 2 everywhere; without it surely category 1 in the left column, nothing sure in the right one."""

    def forward(self, x: torch.Tensor) -> Heads:
        logits = torch.tensor([[[0.0, 0.0]], [[2.0, 0.5]], [[9.0, 9.0]]])
        return Heads(logits=logits.expand(len(x), 3, 2, 2), objectness=None)


def batch() -> Batch:
    """A strong and a weak picture; the weak one names category 1 only."""
    labels = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    nothing = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    return Batch(images=nothing, masks=nothing[..., 0], labels=labels, weak=torch.tensor([False, True]), ids=("s", "w"))


def test_the_teacher_strikes_out_what_it_surely_sees_otherwise_on_weak_pictures_only() -> None:
    shares = torch.zeros(2, 3, 2, 2)
    shares[:, 0] = 1
    refined = refine(shares, torch.zeros(2, 3, 16, 16), batch(), Loud(), done=1.0)
    torch.testing.assert_close(refined[0], shares[0], rtol=0, atol=0)
    sure = torch.tensor([0.0, 2.0]).softmax(0)  # category 2 is not in the picture
    assert sure[1] > SURE
    assert (refined[1, :, :, 0] == 0).all()  # left: nothing is learned
    assert (refined[1, :, :, 1] == shares[1, :, :, 1]).all()  # right: the label stands
    agreed = torch.zeros(2, 3, 2, 2)
    agreed[:, 1] = 1
    assert (refine(agreed, torch.zeros(2, 3, 16, 16), batch(), Loud(), done=1.0) == agreed).all()


def test_the_teacher_answers_where_the_label_is_unsure() -> None:
    shares = torch.zeros(2, 3, 2, 2)
    shares[:, 0, 0] = 0.25  # a cell of which three quarters are 255
    refined = refine(shares, torch.zeros(2, 3, 16, 16), batch(), Loud(), done=1.0)
    belief = torch.tensor([0.0, 2.0]).softmax(0)
    torch.testing.assert_close(refined[1, :2, 1, 0], belief)
    torch.testing.assert_close(refined[1, :2, 0, 0], 0.75 * belief)  # the known quarter is struck out
    half = refine(shares, torch.zeros(2, 3, 16, 16), batch(), Loud(), done=(HEARD_FROM + HEARD_FULL) / 2)
    torch.testing.assert_close(half[1, :2, 1, 0], 0.5 * belief)


def test_the_teacher_is_silent_at_first() -> None:
    shares = torch.rand(2, 3, 2, 2)
    assert refine(shares, torch.zeros(2, 3, 16, 16), batch(), Loud(), done=HEARD_FROM) is shares
