"""The score of the old categories, by hand: what `adapt` must not lose."""

from __future__ import annotations

import numpy as np
import pytest

from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.train.adapt import miou_of_old


def test_old_categories_are_counted_where_the_truth_is_old() -> None:
    """Rows are truth, the last column is no prediction. Where the truth is the new class (the last) nothing counts; predicting it
    somewhere else is an error."""
    matrix = ConfusionMatrix(3)
    matrix.counts[:] = [[6, 2, 0, 0], [0, 6, 2, 0], [9, 9, 9, 9]]
    # background: 6 of 6 + 2; old category: 6 of 6 + 2 (background taken for it) + 2 (taken for the new one)
    assert miou_of_old(matrix.counts) == pytest.approx(100 * (6 / 8 + 6 / 10) / 2)


def test_an_old_category_that_does_not_occur_is_left_out() -> None:
    matrix = ConfusionMatrix(3)
    matrix.counts[:] = [[5, 0, 0, 0], [0, 0, 0, 0], [3, 0, 4, 0]]
    assert miou_of_old(matrix.counts) == pytest.approx(100.0)
    assert np.array_equal(matrix.counts[-1], [3, 0, 4, 0]), "the matrix itself is left alone"
