"""Cell shares and losses against hand-made values and against plain PyTorch losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tsss_edge.train.losses import cell_shares, class_loss, jaccard_loss, object_loss


def test_shares_of_one_cell() -> None:
    mask = torch.tensor([[[0, 1], [1, 255]]], dtype=torch.uint8)
    assert cell_shares(mask, 3, 2).flatten().tolist() == [0.25, 0.5, 0.0]  # the ignored quarter belongs to nobody


def test_shares_keep_each_cell_apart() -> None:
    mask = torch.zeros(2, 8, 16, dtype=torch.uint8)
    mask[1, :, 8:] = 2
    shares = cell_shares(mask, 3, 8)
    assert shares.shape == (2, 3, 1, 2)
    assert shares[1, :, 0, 1].tolist() == [0, 0, 1]
    assert shares[0, 0].eq(1).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_class_loss_at_stride_1_is_cross_entropy(weighted: bool) -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    mask[0, :3] = 255
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None
    expected = F.cross_entropy(logits, mask.long(), weights, ignore_index=255)
    assert class_loss(logits, cell_shares(mask, 4, 1), weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_object_loss_is_binary_cross_entropy_on_known_pixels() -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 1, 8, 8), torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    mask[1, 5:] = 255
    known = mask != 255
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][known], (mask[known] > 0).float())
    assert object_loss(logits, cell_shares(mask, 4, 1)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_known_costs_nothing() -> None:
    mask = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    assert class_loss(torch.randn(1, 3, 1, 1), cell_shares(mask, 3, 8)).item() == 0


def test_mixed_cell_wants_its_mixture() -> None:
    # Half class 0, half class 1: the loss is smallest, ln 2, at equal logits.
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[0, :4] = 1
    shares = cell_shares(mask, 2, 8)
    assert class_loss(torch.zeros(1, 2, 1, 1), shares).item() == pytest.approx(math.log(2), rel=1e-6)
    assert class_loss(torch.tensor([[[[0.5]], [[0.0]]]]), shares).item() > math.log(2)


def test_jaccard_loss_by_hand() -> None:
    """4 pixels, class 0 twice, class 1 once, one ignored; sure predictions 0, 1, 1 on the three known ones.

    Class 0: both 1, either 2; class 1: both 1, either 2; with 1 added to each: 2/3 and 2/3. Class 2 is not shown.
    """
    mask = torch.tensor([[[0, 0], [1, 255]]], dtype=torch.uint8)
    logits = torch.full((1, 3, 2, 2), -50.0)
    for row, column, predicted in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        logits[0, predicted, row, column] = 50.0
    assert jaccard_loss(logits, cell_shares(mask, 3, 1)).item() == pytest.approx(1 / 3, rel=1e-6)


def test_jaccard_loss_weighs_a_rare_class_like_a_common_one() -> None:
    """A sixteenth of the pixels is missed: class 1 loses 16/17 of its overlap, class 0 loses 16/257."""
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[0, :4, :4] = 1
    logits = torch.zeros(1, 2, 16, 16)
    logits[0, 0] = 50.0
    assert jaccard_loss(logits, cell_shares(mask, 2, 1)).item() == pytest.approx((16 / 257 + 16 / 17) / 2, rel=1e-5)
