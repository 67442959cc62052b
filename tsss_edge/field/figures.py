"""What a network says of one frame -> a few figures that tell how sure it is and what it sees. No truth is needed.

The same figures make the profile of an evaluation set at the gate and are watched live, so both come from here. They are
taken at `SIDE` x `SIDE` cells of the part that shows the frame, so that they cost next to nothing.
"""
# Letters: K class, h, w grid of the network's output, n cells a side at most SIDE, F figure.

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, FieldProfile, Placement

SIDE = 16
QUANTILES = 65  # points that a profile keeps of a figure
AREA = "area of "
LEADING = ("confidence", "entropy", "unknown", "neighbours")

Values = NDArray[np.float32]  # (F,), NaN where a figure is not known
Grid = NDArray[np.floating]


class Meter:
    """Frames of one source -> their figures, in order. It remembers the cells of the frame before, for `neighbours`.

    confidence: mean of the largest class probability. entropy: mean entropy of the class probabilities over log K. unknown:
    share of cells with an object (objectness above 0) that the classes call background. neighbours: share of cells with the
    class that they had in the frame before. area of NAME: share of cells of that class. All 0-1.
    """

    def __init__(self, classes: Classes) -> None:
        self.names = (*LEADING, *(AREA + name for name in classes.names))
        self._classes = classes
        self._before: NDArray[np.uint8] | None = None

    def measure(self, logits: Grid | None, objectness: Grid | None, labels: NDArray[np.uint8], at: Placement) -> Values:
        """The figures of one frame, (F,).

        Args: logits: (K,h,w); None: not known, then the classes are those of `labels`. objectness: (h,w) logits.
              labels: (H,W) at the frame's size. at: where the frame lies in the network's input.
        """
        values = np.full(len(self.names), np.nan, np.float32)
        if logits is None:
            cells = labels[_cells((labels.shape[0], labels.shape[1]))]
        else:
            down, across = _cells((logits.shape[1], logits.shape[2]), at)
            picked = logits[:, down, across].astype(np.float32)  # (K,n,n)
            cells = picked.argmax(axis=0).astype(np.uint8)
            values[:2] = sureness(picked)
        if objectness is not None and self._classes.background:
            thing = objectness[_cells((objectness.shape[0], objectness.shape[1]), at)] > 0
            values[2] = np.mean(thing & (cells == 0)) if thing.shape == cells.shape else np.nan
        if self._before is not None and self._before.shape == cells.shape:
            values[3] = np.mean(self._before == cells)
        self._before = cells
        counts = np.bincount(cells[cells != IGNORE].ravel(), minlength=len(self._classes))
        values[4:] = counts / max(1, counts.sum())
        return values


def sureness(logits: Grid) -> tuple[float, float]:
    """(K,...) logits -> mean of the largest probability, and mean entropy over log K; both 0-1."""
    x = logits - logits.max(axis=0)
    e = np.exp(x)
    total = e.sum(axis=0)
    entropy = np.log(total) - (e * x).sum(axis=0) / total
    return float(np.mean(1 / total)), float(np.mean(entropy) / np.log(len(logits)))


def profile_of(names: Sequence[str], seen: Sequence[Values] | NDArray[np.float32]) -> FieldProfile | None:
    """Figures of the pictures of an evaluation set, (I,F) -> what a record keeps; None without two pictures."""
    if len(seen) < 2:
        return None
    table, shares = np.asarray(seen), np.linspace(0, 1, QUANTILES)
    columns = {name: column[~np.isnan(column)] for name, column in zip(names, table.T, strict=True)}
    kept = {
        name: tuple(round(float(v), 5) for v in np.quantile(column, shares, method="inverted_cdf"))
        for name, column in columns.items()
        if len(column) > 1
    }
    return FieldProfile(pictures=len(seen), quantiles=kept)


@lru_cache(maxsize=64)
def _cells(grid_hw: tuple[int, ...], at: Placement | None = None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column indices of the cells, which index an array to (n,n)."""
    top, left, (height, width) = 0.0, 0.0, grid_hw
    if at is not None:
        x, y, w, h = at.target
        rows, columns = at.input_hw or (8 * grid_hw[0], 8 * grid_hw[1])
        top, left = y * grid_hw[0] / rows, x * grid_hw[1] / columns
        height, width = max(1, int(h * grid_hw[0] / rows)), max(1, int(w * grid_hw[1] / columns))
    down = (top + _middles(height)).astype(np.intp)
    across = (left + _middles(width)).astype(np.intp)
    return np.ix_(np.minimum(down, grid_hw[0] - 1), np.minimum(across, grid_hw[1] - 1))  # type: ignore[return-value]


def _middles(length: int) -> NDArray[np.float64]:
    count = min(SIDE, length)
    return (np.arange(count) + 0.5) * length / count
