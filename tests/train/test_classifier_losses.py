"""The classifier's losses on one or two cells, with the answer worked out in the test."""

from __future__ import annotations

import math

import pytest
import torch

from tsss_edge.train.classifier import fair_share_loss, hidden_categories, object_targets, partial_label_loss


def cells(*columns: list[float]) -> torch.Tensor:
    """Columns of K values -> (1,K,1,w)."""
    return torch.tensor(columns).T[None, :, None, :]


def test_partial_labels_ask_for_one_of_the_picture_s_categories() -> None:
    maps = cells([0.0, 1.0, 2.0, 0.0])  # background, three categories
    two_of_three = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    weight = torch.ones(1, 1, 1, 1)
    e = math.e
    expected = -math.log((e + e**2) / (1 + e + e**2))
    assert partial_label_loss(maps, weight, two_of_three).item() == pytest.approx(expected, rel=1e-6)
    assert partial_label_loss(maps, 0 * weight, two_of_three).item() == 0


def test_partial_labels_leave_it_open_which_one() -> None:
    both = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    weight = torch.ones(1, 1, 1, 1)
    one, other = cells([0.0, 5.0, -5.0, -5.0]), cells([0.0, -5.0, 5.0, -5.0])
    assert partial_label_loss(one, weight, both).item() == pytest.approx(partial_label_loss(other, weight, both).item())


def test_fair_shares_punish_a_category_that_swallows_the_other() -> None:
    both = torch.tensor([[0.0, 1.0, 1.0]])
    weight = torch.ones(1, 1, 1, 2)
    shared = cells([0.0, 9.0, -9.0], [0.0, -9.0, 9.0])
    swallowed = cells([0.0, 9.0, -9.0], [0.0, 9.0, -9.0])
    assert fair_share_loss(shared, weight, both).item() == pytest.approx(math.log(2), abs=1e-3)  # the least there is
    assert fair_share_loss(swallowed, weight, both).item() > 4
    assert (
        fair_share_loss(swallowed, weight, torch.tensor([[0.0, 1.0, 0.0]])).item() == 0
    )  # one category: nothing to share


def test_a_category_with_known_pixels_hides_nowhere() -> None:
    labels = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    shares = torch.zeros(2, 3, 1, 2)
    shares[:, 1, 0, 0] = 1  # category 1 is known in both pictures
    # In the second nothing else is left, so its own categories count.
    assert hidden_categories(labels, shares).tolist() == [[0, 0, 1], [0, 1, 0]]


def test_object_targets_take_l_net_s_word_where_nothing_is_known() -> None:
    shares = cells([1.0, 0.0, 0.0], [0.0, 0.25, 0.25], [0.0, 0.0, 0.0])  # background; half known object; unknown
    foreground = torch.tensor([0.9, 0.6, 0.2]).view(1, 1, 1, 3)
    targets = object_targets(shares, foreground)[0, :, 0]
    torch.testing.assert_close(targets, torch.tensor([[1.0, 0.2, 0.8], [0.0, 0.8, 0.2]]), rtol=1e-6, atol=1e-6)
