"""The trivial rows on hand-made pictures."""

from __future__ import annotations

import numpy as np
import pytest
from trainkit import write_squares

from tsss_edge.artifacts import Preprocess
from tsss_edge.data.voc import VocDataset
from tsss_edge.reproduce.trivial import (
    FEATURES,
    everything,
    filled,
    fit_low_level,
    foreground_iou,
    low_level_features,
    most_frequent,
)
from tsss_edge.scoring import Views


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> VocDataset:
    return VocDataset.open(write_squares(tmp_path_factory.mktemp("trivial") / "data"))


def test_everything_is_object_reaches_the_share_of_object_pixels(squares: VocDataset) -> None:
    ids = squares.ids("val")
    masks = [squares.mask(i) for i in ids]
    share = sum(int((m > 0).sum()) for m in masks) / sum(m.size for m in masks)
    assert foreground_iou(Views(squares, ids, Preprocess(size_hw=(64, 64))), everything) == pytest.approx(100 * share)


def test_features_are_as_many_as_they_say_whatever_the_shape() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 100, 3), np.uint8)
    assert low_level_features(picture).shape == (45, 112, FEATURES)


def test_the_regression_finds_bright_squares_on_a_dark_floor(squares: VocDataset) -> None:
    learned = fit_low_level(squares, squares.ids("train"), squares.mask)
    views = Views(squares, squares.ids("val"), Preprocess(size_hw=(64, 64)))
    assert foreground_iou(views, learned.foreground) > 80 > foreground_iou(views, everything)


def test_a_foreground_is_filled_with_the_most_frequent_category() -> None:
    mask = np.array([[0, 1]], np.uint8)
    own = {"a": frozenset({2, 3}), "b": frozenset()}
    assert [m.tolist() for _, m in filled(iter([("a", mask)]), [3, 1, 2], None)] == [[[0, 3]]]
    assert [m.tolist() for _, m in filled(iter([("a", mask)]), [1, 2, 3], own.__getitem__)] == [[[0, 2]]]
    assert [m.tolist() for _, m in filled(iter([("b", mask)]), [1, 2, 3], own.__getitem__)] == [[[0, 0]]]


def test_categories_are_ordered_by_how_often_labels_name_them(squares: VocDataset) -> None:
    labels = {i: frozenset({3}) if n < 7 else frozenset({1}) for n, i in enumerate(squares.ids("train"))}
    assert most_frequent(squares, labels.__getitem__) == [3, 1, 2]
