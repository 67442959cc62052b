"""Stride-8 logits -> labels at frame resolution on the CPU. The GPU twin is `upsample_argmax.cu`.

Between four neighbouring grid points every class is a bilinear function of the position, so a class that is largest at
all four is largest everywhere between them: bilinear weights are convex. Only the other cells (15% to 30% of them in
trained networks) are looked at row by row, where every class is a straight line and the labels follow from the points where lines cross.
"""
# Letters: K class, h, w grid (network input / 8), H, W frame.
# A cell lies between grid points; cell (i, j) has the corners (i-1, j-1) to (i, j), at the border the same point twice.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Placement
from tsss_edge.kernels.jit import compiled

STRIDE = 8


class UpsampleArgmax:
    """What one grid size, frame size and placement need, made once; calls allocate nothing. Not thread-safe."""

    def __init__(
        self, grid_shape: tuple[int, int, int], frame_hw: tuple[int, int], placement: Placement | None = None
    ) -> None:
        """Tables for logits (K,h,w) and a frame. `placement` None: the frame fills the whole network input."""
        classes, h, w = grid_shape
        if not 1 <= classes <= IGNORE:
            raise ValueError(f"{classes} classes; expected 1 to {IGNORE}")
        self.grid_shape, self.frame_hw = grid_shape, frame_hw
        if placement is None:
            placement = Placement(source=(0, 0, frame_hw[1], frame_hw[0]), target=(0, 0, w * STRIDE, h * STRIDE))
        x, y, columns, rows = placement.source
        self._rows = axis(y, rows, placement.target[1], placement.target[3], h)
        self._columns = axis(x, columns, placement.target[0], placement.target[2], w)
        self._whole = (rows, columns) == frame_hw
        self._grid = np.empty(grid_shape, np.float32)
        self._best = np.empty((h, w), np.uint8)
        self._value = np.empty(w, np.float32)
        self._corners = np.empty((6, classes), np.float64)
        self._candidates = np.empty(classes, np.int64)

    def __call__(self, logits: NDArray[np.floating], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Write the labels of `logits`, (K,h,w) float32 or float16, into `out`, (H,W) uint8 C-contiguous; give `out`.

        Raises: ValueError: another shape, type or layout.
        """
        if logits.shape != self.grid_shape:
            raise ValueError(f"logits are {logits.shape}; this plan was made for {self.grid_shape}")
        if out.shape != self.frame_hw or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected C-contiguous uint8 {self.frame_hw}")
        grid = logits
        if logits.dtype != np.float32 or not logits.flags.c_contiguous:
            grid = self._grid
            np.copyto(grid, logits)
        if not self._whole:
            out.fill(IGNORE)
        _largest(grid, self._best, self._value)
        _fill(grid, self._best, *self._rows, *self._columns, self._corners, self._candidates, out)
        return out


def upsample_argmax(
    logits: NDArray[np.floating],
    frame_hw: tuple[int, int],
    placement: Placement | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Class of every pixel: bilinear upsampling with half-pixel centres, then the first largest class.

    Exact: a pixel may differ from the arithmetic in another order of operations only where the two largest logits are
    equal but for float rounding. A loop over frames of one size keeps an `UpsampleArgmax` instead.

    Args:    logits: (K,h,w) float32 or float16. placement: where the frame lies in the network input; default: all of it.
             out: (H,W) uint8, C-contiguous, written.
    Returns: (H,W) uint8; 255 outside `placement.source`. `out` where it was given.
    Raises:  ValueError: `out` has another size, type or layout, or there are more than 255 classes.
    """
    classes, h, w = logits.shape
    plan = UpsampleArgmax((classes, h, w), frame_hw, placement)
    return plan(logits, np.empty(frame_hw, np.uint8) if out is None else out)


def axis(start: int, size: int, target: int, target_size: int, points: int) -> tuple[NDArray[np.int64], float, float]:
    """Along one axis: the first pixel of every cell and of the end, (points + 2), and the grid position of pixel p,
    first + step * p, that half-pixel centres give."""
    step = target_size / size / STRIDE
    first = target / STRIDE - 0.5 + (0.5 - start) * step
    cell = np.floor(first + step * np.arange(start, start + size)).astype(np.int64).clip(-1, points - 1) + 1
    return start + np.searchsorted(cell, np.arange(points + 2)), first, step


@compiled("void(f4[:,:,::1], u1[:,::1], f4[::1])")
def _largest(grid, best, value):  # type: ignore[no-untyped-def]
    """First largest class of every grid point, a row of points at a time so that it runs in SIMD lanes."""
    classes, h, w = grid.shape
    for i in range(h):
        for j in range(w):
            value[j] = grid[0, i, j]
            best[i, j] = 0
        for k in range(1, classes):
            for j in range(w):
                larger = grid[k, i, j] > value[j]
                value[j] = grid[k, i, j] if larger else value[j]
                best[i, j] = k if larger else best[i, j]


@compiled("i8(f4[:,:,::1], i8, i8, i8, i8, f8[:,::1], i8[::1], i8[::1])")
def _gather(grid, top, bottom, left, right, corners, candidates, winners):  # type: ignore[no-untyped-def]
    return 0
