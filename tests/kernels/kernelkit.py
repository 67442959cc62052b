"""Inputs of the kernels' tests, and the obvious arithmetic they are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Placement

STRIDE = 8
TIE = 1e-5  # float32 has 24 bits: sums of four products of logits below 40 differ by less than 40 * 4 * 2^-24


def random_logits(shape: tuple[int, int, int], seed: int = 0, smooth: bool = True) -> NDArray[np.float32]:
    """(K,h,w) float32. `smooth`: regions of several cells, as a trained network gives; else every point on its own."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 4, shape).astype(np.float32)
    if smooth:
        for _ in range(3):
            for axis in (1, 2):
                values = (values + np.roll(values, 1, axis) + np.roll(values, -1, axis)) / 3
        values *= 8
    return values.astype(np.float32)


def upsampled(logits: NDArray[np.floating], placement: Placement) -> NDArray[np.float64]:
    """Bilinear sums in double precision, all classes at all pixels of `placement.source`: (K,rows,columns)."""
    grid = logits.astype(np.float64)
    _, _, columns, rows = placement.source
    left, top, width, height = placement.target
    row = _points((np.arange(rows) + 0.5) * height / rows + top, grid.shape[1])
    column = _points((np.arange(columns) + 0.5) * width / columns + left, grid.shape[2])
    grid = grid[:, row[0]] * (1 - row[2])[:, None] + grid[:, row[1]] * row[2][:, None]
    return grid[:, :, column[0]] * (1 - column[2]) + grid[:, :, column[1]] * column[2]


def _points(pixel: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    position = (pixel / STRIDE - 0.5).clip(0, size - 1)
    low = position.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), position - low


def whole(logits: NDArray[np.floating], frame_hw: tuple[int, int]) -> Placement:
    """The frame fills the network input."""
    target = (0, 0, logits.shape[2] * STRIDE, logits.shape[1] * STRIDE)
    return Placement(source=(0, 0, frame_hw[1], frame_hw[0]), target=target)


def assert_labels(
    labels: NDArray[np.uint8], logits: NDArray[np.floating], placement: Placement, tie: float = TIE
) -> None:
    """Every label is the largest class, or as large but for float rounding; 255 outside `placement.source`."""
    x, y, columns, rows = placement.source
    sums = upsampled(logits, placement)
    inside = labels[y : y + rows, x : x + columns]
    assert (inside < logits.shape[0]).all()
    chosen = np.take_along_axis(sums, inside[None].astype(np.int64), 0)[0]
    assert (sums.max(0) - chosen).max() <= tie
    outside = np.ones(labels.shape, np.bool_)
    outside[y : y + rows, x : x + columns] = False
    assert (labels[outside] == IGNORE).all()
