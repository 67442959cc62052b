"""The guided filter on pictures whose answer is known, and what it does to borders of labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tsss_edge.label.edges import _inverse, guided


def picture(height: int = 24, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_map_that_is_linear_in_the_colours_comes_back() -> None:
    colors = picture().astype(np.float32) / 255
    grid = 0.2 + colors @ np.array([0.5, -0.3, 0.4], np.float32)
    np.testing.assert_allclose(guided(grid[None], picture(), radius=4, eps=1e-9)[0], grid, atol=2e-4)


def test_on_a_flat_picture_a_map_is_averaged_twice() -> None:
    grid = np.random.default_rng(1).random((1, 24, 30)).astype(np.float32)
    once = cv2.blur(grid[0], (7, 7), borderType=cv2.BORDER_REFLECT)
    expected = cv2.blur(once, (7, 7), borderType=cv2.BORDER_REFLECT)
    flat = np.full((24, 30, 3), 90, np.uint8)
    np.testing.assert_allclose(guided(grid, flat, radius=3, eps=1e-4)[0], expected, atol=1e-5)


def test_maps_that_sum_to_one_still_do() -> None:
    maps = np.random.default_rng(2).random((3, 24, 30)).astype(np.float32)
    maps /= maps.sum(axis=0)
    np.testing.assert_allclose(guided(maps, picture(), radius=5, eps=1e-4).sum(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("radius", [4, 8])
def test_a_wide_border_moves_onto_the_edge_of_the_picture(radius: int) -> None:
    truth = np.zeros((48, 48), bool)
    truth[12:36, 10:30] = True
    noise = np.random.default_rng(3).integers(-8, 9, (48, 48, 3))
    shown = (np.where(truth[..., None], (180, 90, 60), (70, 100, 140)) + noise).astype(np.uint8)
    coarse = cv2.GaussianBlur(cv2.dilate(truth.astype(np.float32), np.ones((5, 5))), (0, 0), 3)
    before = ((coarse > 0.5) != truth).sum()
    after = ((guided(coarse[None], shown, radius, 1e-4)[0] > 0.5) != truth).sum()
    assert before > 100
    assert after < before / 4


def test_matrices_are_inverted_as_lapack_does() -> None:
    """Of windows with one colour, with a gradient along one colour, and with all colours mixed."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(7, 9, 3, 4)) * rng.choice([0.0, 0.1, 1.0], size=(7, 9, 3, 1))
    matrices = (spread @ spread.swapaxes(-1, -2) + 1e-4 * np.eye(3)).astype(np.float32)
    expected = np.linalg.inv(matrices.astype(np.float64))
    scale = np.abs(expected).max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(_inverse(matrices) / scale, expected / scale, atol=1e-6)
