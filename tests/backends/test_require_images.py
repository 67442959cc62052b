"""What a back end takes as pictures, and what it refuses before a library reads beyond an array."""

from __future__ import annotations

import numpy as np
import pytest

from tsss_edge.backends.base import require_images, require_parts


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 4, 6, 3), np.float32),
        ((1, 4, 6, 3), np.int8),
        ((4, 6, 3), np.uint8),
        ((1, 1, 4, 6, 3), np.uint8),
        ((1, 6, 4, 3), np.uint8),
        ((1, 4, 6, 4), np.uint8),
        ((1, 4, 5, 3), np.uint8),
        ((0, 4, 6, 3), np.uint8),
    ],
)
def test_other_shapes_and_types_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match=r"expected \(N,4,6,3\) uint8"):
        require_images(np.zeros(shape, dtype), (4, 6))


def test_pictures_pass() -> None:
    for count in (1, 5):
        require_images(np.zeros((count, 4, 6, 3), np.uint8), (4, 6))


@pytest.mark.parametrize(
    "shape",
    [(2, 32, 64, 3), (1, 32, 64, 4), (1, 32, 48, 3), (1, 96, 64, 3), (1, 0, 64, 3), (32, 64, 3), (1, 32, 160, 3)],
)
def test_parts_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(1,h,w,3\) uint8, sides multiples of 32 up to \(64, 128\)"):
        require_parts(np.zeros(shape, np.uint8), (64, 128))


def test_parts_pass() -> None:
    for part_hw in ((32, 32), (64, 128)):
        require_parts(np.zeros((1, *part_hw, 3), np.uint8), (64, 128))
