"""Augmentation: the same numbers as `Preprocess` at rest, picture and mask moved as one, decided by the generator alone."""

from __future__ import annotations

from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsss_edge.artifacts import Fit, Preprocess
from tsss_edge.data.augment import TrainAugment, _recolor

SMALL = Preprocess(size_hw=(64, 96))


def still(preprocess: Preprocess = SMALL, scale: float = 1.0) -> TrainAugment:
    """No randomness but the offset."""
    return TrainAugment(preprocess.size_hw, preprocess, (scale, scale), aspect=1, flip=0, color=0, blur=0)


def picture(height: int = 75, width: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of one class each, painted with a grey of that class: the mask can be read off the picture."""
    cells = np.random.default_rng(seed).integers(0, 21, (height // 25, width // 25), np.uint8)
    mask = cells.repeat(25, 0).repeat(25, 1)
    return (mask * 10)[..., None].repeat(3, 2), mask


@pytest.mark.parametrize(
    ("fit", "size"),
    [("stretch", (75, 100)), ("stretch", (33, 200)), ("letterbox", (128, 128)), ("letterbox", (32, 192))],
)
def test_at_rest_it_is_what_preprocess_does(fit: Fit, size: tuple[int, int]) -> None:
    """Letterbox sizes are such that ratio and margins are whole: elsewhere `place` rounds, augmentation does not."""
    preprocess = Preprocess(size_hw=(64, 96), fit=fit)
    image = cv2.GaussianBlur(np.random.default_rng(1).integers(1, 256, (*size, 3), np.uint8), (5, 5), 0)
    x, y, w, h = preprocess.place(size).target
    expected = np.zeros((64, 96, 3), np.uint8)
    expected[y : y + h, x : x + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    view, labels = still(preprocess)(image, np.zeros(size, np.uint8), _Middle())  # type: ignore[arg-type]
    assert np.abs(view.astype(int) - expected).max() <= 2  # resize and warpAffine round their coefficients once each
    np.testing.assert_array_equal(labels == 255, expected.sum(2) == 0)


class _Middle:
    """A generator whose every draw is one half."""

    def random(self, count: int) -> np.ndarray:
        return np.full(count, 0.5)


def test_mask_of_a_doubled_picture_by_hand() -> None:
    """2x2 pixels onto 32x32: each label fills one quarter."""
    mask = np.array([[1, 2], [3, 4]], np.uint8)
    preprocess = Preprocess(size_hw=(32, 32))
    _, labels = still(preprocess)(np.zeros((2, 2, 3), np.uint8), mask, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, mask.repeat(16, 0).repeat(16, 1))


def test_half_scale_pads_three_quarters_with_255_and_black() -> None:
    image, mask = np.full((64, 96, 3), 200, np.uint8), np.ones((64, 96), np.uint8)
    view, labels = still(scale=0.5)(image, mask, np.random.default_rng(0))
    assert (labels == 1).sum() == 32 * 48
    assert (labels == 255).sum() == 64 * 96 - 32 * 48
    np.testing.assert_array_equal(view.sum(2) > 0, labels == 1)
    assert (view[labels == 1] == 200).all()  # no darkening at the border


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), fit=st.sampled_from(get_args(Fit)), flip=st.sampled_from([0.0, 1.0]))
def test_picture_and_mask_move_together(seed: int, fit: Fit, flip: float) -> None:
    """Away from borders between blocks the grey of a pixel names its label."""
    image, mask = picture(seed=seed % 7)
    augment = TrainAugment((64, 96), Preprocess(size_hw=(64, 96), fit=fit), flip=flip, color=0, blur=0)
    view, labels = augment(image, mask, np.random.default_rng(seed))
    assert view.shape == (64, 96, 3)
    assert view.dtype == labels.dtype == np.uint8
    assert view.flags.c_contiguous
    assert labels.flags.c_contiguous
    same = np.ones_like(labels, bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            same &= np.roll(labels, (dy, dx), (0, 1)) == labels
    same[[0, -1]] = same[:, [0, -1]] = False  # what lies beyond the cut may shine in
    inner = same & (labels != 255)
    np.testing.assert_array_equal(view[inner][:, 0], labels[inner] * 10)
    assert set(np.unique(labels)) <= {*np.unique(mask), 255}


def test_flip_mirrors() -> None:
    image, mask = picture(64, 96)
    plain = still()(image, mask, np.random.default_rng(5))
    mirrored = TrainAugment((64, 96), SMALL, (1, 1), aspect=1, flip=1, color=0, blur=0)(
        image, mask, np.random.default_rng(5)
    )
    np.testing.assert_array_equal(mirrored[0], plain[0][:, ::-1])
    np.testing.assert_array_equal(mirrored[1], plain[1][:, ::-1])


def test_color_changes_the_picture_not_the_mask() -> None:
    image, mask = picture(64, 96)
    plain = TrainAugment((64, 96), SMALL, color=0, blur=0)
    colored = TrainAugment((64, 96), SMALL, color=0.3, blur=0)
    changed = 0
    for seed in range(20):
        a, b = plain(image, mask, np.random.default_rng(seed)), colored(image, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(a[1], b[1])
        changed += not np.array_equal(a[0], b[0])
    assert 10 <= changed <= 20  # probability 0.8


def test_the_generator_decides_and_inputs_stay() -> None:
    image, mask = picture()
    copies = image.copy(), mask.copy()
    augment = TrainAugment((64, 96), SMALL)
    first = augment(image, mask, np.random.default_rng((0, 1, 2)))
    again = augment(image, mask, np.random.default_rng((0, 1, 2)))
    other = augment(image, mask, np.random.default_rng((0, 1, 3)))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1], other[1])
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(mask, copies[1])


def test_every_scale_of_the_range_occurs() -> None:
    """A picture of one class covers scale^2 of the output where the scale is below one."""
    image, mask = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8)
    augment = TrainAugment((64, 96), SMALL, (0.5, 1.0), aspect=1)
    shares = [(augment(image, mask, np.random.default_rng(i))[1] == 0).mean() for i in range(200)]
    assert min(shares) < 0.27
    assert max(shares) > 0.97
    assert abs(np.median(np.sqrt(shares)) - 0.5**0.5) < 0.06  # log-uniform


@pytest.mark.parametrize("change", [{"scale_range": (0, 1)}, {"scale_range": (2, 1)}, {"aspect": 0.5}, {"color": 1.0}])
def test_wrong_settings(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TrainAugment((64, 96), SMALL, **change)  # type: ignore[arg-type]


def test_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match="one size"):
        still()(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.uint8), np.random.default_rng(0))


def test_a_sliver_survives() -> None:
    view, labels = TrainAugment((64, 96), SMALL)(
        np.zeros((1, 500, 3), np.uint8), np.zeros((1, 500), np.uint8), np.random.default_rng(0)
    )
    assert view.shape == (64, 96, 3)
    assert labels.shape == (64, 96)


def test_colours_at_rest_stay() -> None:
    """Draws of one half: no contrast, no saturation, no hue, no brightness, no gamma."""
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    np.testing.assert_allclose(_recolor(image, 1.0, np.full(5, 0.5)).astype(int), image, atol=1)
