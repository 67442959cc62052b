"""What pixels without a label say still, on hand-made tensors."""

from __future__ import annotations

import math

import pytest
import torch

from tsss_edge.train.loader import Batch
from tsss_edge.train.losses import candidate_cells, class_loss, cut_and_mix, unsure_loss


def batch() -> Batch:
    """A strong and a weak picture; the strong one shows category 2, the weak one category 1."""
    labels = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    nothing = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    return Batch(images=nothing, masks=nothing[..., 0], labels=labels, weak=torch.tensor([False, True]), ids=("s", "w"))


def test_a_pixel_of_a_weak_picture_shows_the_background_or_what_its_label_names() -> None:
    cells = candidate_cells(batch(), (2, 2))
    assert cells.shape == (2, 3, 2, 2)
    assert cells[0].eq(1).all()  # of a strong picture nothing is said
    assert cells[1, :, 0, 0].tolist() == [1, 1, 0]


def test_unsure_pixels_count_as_labelled_ones_do() -> None:
    """Half of each cell is labelled; of the other half 0 and 1 are left of three equal classes."""
    logits, shares = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)
    shares[:, 0, ::2] = 1  # on a finer grid than the logits
    candidates = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert class_loss(logits, shares).item() == pytest.approx(math.log(3))
    assert unsure_loss(logits, shares, candidates).item() == pytest.approx(-math.log(2 / 3))
    shares[:, 0, ::2, ::2] = 0  # three unsure pixels for each that is labelled
    assert unsure_loss(logits, shares, candidates).item() == pytest.approx(-3 * math.log(2 / 3), rel=1e-6)


def test_strong_and_fully_labelled_pictures_say_nothing_more() -> None:
    logits, shares = torch.randn(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    shares[1, 0] = 1
    assert unsure_loss(logits, shares, candidate_cells(batch(), (2, 2))).item() == pytest.approx(0, abs=1e-6)


def test_a_pasted_rectangle_brings_its_own_candidates() -> None:
    cells = candidate_cells(batch(), (8, 8))
    x = torch.arange(2.0)[:, None, None, None].expand(2, 3, 64, 64)
    mixed, candidates = cut_and_mix(0, 3, x, cells)
    pasted = mixed[1, 0, ::8, ::8] == 0  # from the strong picture
    assert pasted.any() and not pasted.all()
    assert candidates[1, 2][pasted].eq(1).all() and candidates[1, 2][~pasted].eq(0).all()
