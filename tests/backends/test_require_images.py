"""What a back end takes as pictures, and what it refuses before a library reads beyond an array."""

from __future__ import annotations

import numpy as np
import pytest

from tsss_edge.backends.base import require_images


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
