"""Logits of any stride -> labels at frame resolution on the CPU. The GPU twin is `upsample_argmax.cu`.

Between four neighbouring grid points every class is a bilinear function of the position, so a class that is largest at
all four is largest everywhere between them: bilinear weights are convex. Only the other cells are looked at row by row,
where every class is a straight line and the labels follow from the points where lines cross.
"""
# Letters: K class, h, w grid (network input / stride), H, W frame.
# A cell lies between grid points; cell (i, j) has the corners (i-1, j-1) to (i, j), at the border the same point twice.

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, uint8, void
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Placement
from tsss_edge.kernels.jit import compiled, read, write

STRIDE = 8  # of our own networks


class UpsampleArgmaxPlan:
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
        stride_y, stride_x = strides((h, w), placement)
        self._rows = axis(y, rows, placement.target[1], placement.target[3], h, stride_y)
        self._columns = axis(x, columns, placement.target[0], placement.target[2], w, stride_x)
        self._whole = (rows, columns) == frame_hw
        self._grid = np.empty(grid_shape, np.float32)
        self._best = np.empty((h, w), np.uint8)
        self._value = np.empty(w, np.float32)
        self._lines = np.empty((6, classes), np.float64)
        self._contenders = np.empty(classes, np.int64)

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
        _fill(grid, self._best, *self._rows, *self._columns, self._lines, self._contenders, out)
        return out


def upsample_argmax(
    logits: NDArray[np.floating],
    frame_hw: tuple[int, int],
    placement: Placement | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Class of every pixel: bilinear upsampling with half-pixel centres, then the first largest class.

    Exact: a pixel may differ from the arithmetic in another order of operations only where the two largest logits are
    equal but for float rounding. A loop over frames of one size keeps an `UpsampleArgmaxPlan` instead.

    Args:    logits: (K,h,w) float32 or float16. placement: where the frame lies in the network input; default: all of it.
             out: (H,W) uint8, C-contiguous, written.
    Returns: (H,W) uint8; 255 outside `placement.source`. `out` where it was given.
    Raises:  ValueError: `out` has another size, type or layout, or there are more than 255 classes.
    """
    classes, h, w = logits.shape
    plan = UpsampleArgmaxPlan((classes, h, w), frame_hw, placement)
    return plan(logits, np.empty(frame_hw, np.uint8) if out is None else out)


def strides(grid_hw: tuple[int, int], placement: Placement) -> tuple[float, float]:
    """Pixels of the network input from one grid point to the next, down and across; they need not be whole."""
    if placement.input_hw is None:
        return STRIDE, STRIDE
    return placement.input_hw[0] / grid_hw[0], placement.input_hw[1] / grid_hw[1]


def axis(
    start: int, size: int, target: int, target_size: int, points: int, stride: float = STRIDE
) -> tuple[NDArray[np.int64], float, float]:
    """Along one axis: the first pixel of every cell and of the end, (points + 2), and the grid position of pixel p,
    first + step * p, that half-pixel centres give."""
    step = target_size / size / stride
    first = target / stride - 0.5 + (0.5 - start) * step
    cell = np.floor(first + step * np.arange(start, start + size)).astype(np.int64).clip(-1, points - 1) + 1
    return start + np.searchsorted(cell, np.arange(points + 2)), first, step


# The kernels. Types of what they share:
GRID, BEST = read(float32, 3), write(uint8, 2)  # logits (K,h,w); largest class of every grid point (h,w)
CELLS = read(int64, 1)  # first pixel of every cell along an axis, and the end
LINES, CONTENDERS = write(float64, 2), write(int64, 1)  # see `_cell`; class ids
OUT = write(uint8, 2)


@compiled(void(GRID, BEST, write(float32, 1)))
def _largest(grid, best, value):  # type: ignore[no-untyped-def]
    """First largest class of every grid point; the inner loops run along the row, in SIMD lanes."""
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


@compiled(int64(GRID, BEST, int64, int64, int64, int64, LINES, CONTENDERS))
def _contend(grid, best, top, bottom, left, right, lines, contenders):  # type: ignore[no-untyped-def]
    """Classes that may be largest somewhere in a cell, ascending, with their corner values in lines[0:4]; how many.

    Left out is a class that is below the largest class of some corner at all four corners.
    """
    winners = (best[top, left], best[top, right], best[bottom, left], best[bottom, right])
    count = 0
    for k in range(grid.shape[0]):
        a, b, c, d = grid[k, top, left], grid[k, top, right], grid[k, bottom, left], grid[k, bottom, right]
        below = False
        for winner in winners:
            below |= (
                k != winner
                and a <= grid[winner, top, left]
                and b <= grid[winner, top, right]
                and c <= grid[winner, bottom, left]
                and d <= grid[winner, bottom, right]
            )
        if not below:
            lines[0, count], lines[1, count], lines[2, count], lines[3, count] = a, b, c, d
            contenders[count] = k
            count += 1
    return count


@compiled(void(OUT, LINES, CONTENDERS, int64, int64, int64, float64, float64, int64, int64, float64, float64))
def _cell(out, lines, contenders, count, start, stop, x, x_step, row, row_end, y, y_step):  # type: ignore[no-untyped-def]
    """A boundary cell: on each of its rows the upper envelope of the contenders' straight lines.

    `lines` holds the corner values (rows 0-3) and is written with value at the first pixel and rise a pixel (4, 5).
    """
    last = stop - start - 1
    for r in range(row, row_end):
        now, end, now_value, end_value = 0, 0, -np.inf, -np.inf
        for n in range(count):
            left = lines[0, n] + (lines[2, n] - lines[0, n]) * y
            rise = lines[1, n] + (lines[3, n] - lines[1, n]) * y - left
            value, step = left + rise * x, rise * x_step
            lines[4, n], lines[5, n] = value, step
            if value > now_value:
                now, now_value = n, value
            if value + step * last > end_value:
                end, end_value = n, value + step * last
        p = start
        while now != end:
            following, crossing = end, np.float64(last)
            for n in range(count):
                steeper = lines[5, n] - lines[5, now]
                if steeper > 0:
                    at = (lines[4, now] - lines[4, n]) / steeper
                    if at < crossing:
                        following, crossing = n, at
            until = start + np.int64(np.ceil(crossing))
            if until - start == crossing and following > now:  # a tie goes to the smaller class
                until += 1
            for q in range(p, until):
                out[r, q] = contenders[now]
            p, now = max(p, until), following
        for q in range(p, stop):
            out[r, q] = contenders[now]
        y += y_step


@compiled(void(GRID, BEST, CELLS, float64, float64, CELLS, float64, float64, LINES, CONTENDERS, OUT))
def _fill(grid, best, rows, y_first, y_step, columns, x_first, x_step, lines, contenders, out):  # type: ignore[no-untyped-def]
    """All cells, band after band. A band's first row takes the cells of one class and is copied to its other rows."""
    _, h, w = grid.shape
    begin, end = columns[0], columns[-1]
    for i in range(h + 1):
        row, row_end = rows[i], rows[i + 1]
        if row == row_end:
            continue
        top, bottom = max(i - 1, 0), min(i, h - 1)
        for j in range(w + 1):
            one = best[top, max(j - 1, 0)]
            for q in range(columns[j], columns[j + 1]):
                out[row, q] = one
        first = out[row, begin:end]
        for r in range(row + 1, row_end):
            below = out[r, begin:end]
            for q in range(end - begin):
                below[q] = first[q]
        y = y_first + y_step * row - (i - 1)
        for j in range(w + 1):
            left, right = max(j - 1, 0), min(j, w - 1)
            one = best[top, left]
            if columns[j] == columns[j + 1] or (
                one == best[top, right] and one == best[bottom, left] and one == best[bottom, right]
            ):
                continue
            count = _contend(grid, best, top, bottom, left, right, lines, contenders)
            x = x_first + x_step * columns[j] - (j - 1)
            _cell(out, lines, contenders, count, columns[j], columns[j + 1], x, x_step, row, row_end, y, y_step)
