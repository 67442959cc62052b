"""What a network says of one frame -> a few figures that tell how sure it is and what it sees. No truth is needed.

The same figures make the profile of an evaluation set at the gate and are watched live, so both come from here. They are
taken at `SIDE` x `SIDE` cells of the part that shows the frame, so that they cost next to nothing.
"""
# Letters: K class, h, w grid of the network's output, n cells, F figure, B frame.

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, FieldProfile, Placement

SIDE = 16
QUANTILES = 65  # points that a profile keeps of a figure
AREA = "area of "
LEADING = ("confidence", "entropy", "unknown", "neighbours")

Values = NDArray[np.float32]  # (F,), NaN where a figure is not known
Grid = NDArray[np.floating]


class Glance(NamedTuple):
    """What is kept of a frame for its figures: either logits or classes at the cells, and where an object is."""

    logits: NDArray[np.float32] | None  # (K,n)
    cells: NDArray[np.uint8] | None  # (n,)
    thing: NDArray[np.bool_] | None  # (n,)

    def kind(self) -> tuple[object, ...]:
        """Frames of one kind can be counted together."""
        return tuple(None if part is None else part.shape for part in self)


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

    def look(self, logits: Grid | None, objectness: Grid | None, labels: NDArray[np.uint8], at: Placement) -> Glance:
        """Copies of what the figures of one frame need.

        Args: logits: (K,h,w); None: not known, then the classes are those of `labels`. objectness: (h,w) logits.
              labels: (H,W) at the frame's size. at: where the frame lies in the network's input.
        """
        if logits is None:
            picked, cells = None, labels.reshape(-1).take(_places((labels.shape[0], labels.shape[1])))
            count = cells.size
        else:
            places, cells = _places((logits.shape[1], logits.shape[2]), at), None
            picked, count = logits.reshape(len(logits), -1).take(places, axis=1).astype(np.float32), places.size
        thing = None
        if objectness is not None and self._classes.background:
            grid = objectness.reshape(-1).take(_places((objectness.shape[0], objectness.shape[1]), at))
            thing = grid > 0 if grid.size == count else None
        return Glance(picked, cells, thing)

    def values(self, looks: Sequence[Glance]) -> list[Values]:
        """Figures of frames in their order, (F,) each. Ten at once cost little more than one: the arrays are that small."""
        return [row for _, run in groupby(looks, key=Glance.kind) for row in self._together(list(run))]

    def measure(self, logits: Grid | None, objectness: Grid | None, labels: NDArray[np.uint8], at: Placement) -> Values:
        """The figures of one frame, (F,). Args: as `look`."""
        return self.values([self.look(logits, objectness, labels, at)])[0]

    def _together(self, looks: Sequence[Glance]) -> Values:
        """(B,F) of frames with the same cells."""
        values = np.full((len(looks), len(self.names)), np.nan, np.float32)
        picked = [look.logits for look in looks if look.logits is not None]
        if picked:
            logits = np.stack(picked)
            cells = logits.argmax(axis=1).astype(np.uint8)
            values[:, 0], values[:, 1] = sureness(logits)
        else:
            cells = np.stack([look.cells for look in looks if look.cells is not None])
        if things := [look.thing for look in looks if look.thing is not None]:
            values[:, 2] = (np.stack(things) & (cells == 0)).mean(axis=1)
        if self._before is not None and self._before.shape == cells[0].shape:
            values[0, 3] = (cells[0] == self._before).mean()
        values[1:, 3] = (cells[1:] == cells[:-1]).mean(axis=1)
        self._before = cells[-1]
        counts = _counts(cells)[:, : len(self._classes)]
        values[:, len(LEADING) :] = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        return values


def sureness(logits: Grid) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(B,K,n) logits -> of each frame the mean of the largest probability, and the mean entropy over log K; (B,), 0-1."""
    x = logits - logits.max(axis=1, keepdims=True)
    e = np.exp(x)
    total = e.sum(axis=1)
    entropy = np.log(total) - np.einsum("bkn,bkn->bn", e, x) / total
    return (1 / total).mean(axis=1), entropy.mean(axis=1) / np.log(logits.shape[1])


def _counts(cells: NDArray[np.uint8]) -> NDArray[np.intp]:
    """(B,n) class ids -> (B,256): how often each stands in a row."""
    rows = len(cells)
    return np.bincount((cells + 256 * np.arange(rows)[:, None]).ravel(), minlength=256 * rows).reshape(rows, 256)


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
def _places(grid_hw: tuple[int, ...], at: Placement | None = None) -> NDArray[np.intp]:
    """Places of the cells in a grid that is laid out as one row, (n,): `take` is far quicker than two index arrays."""
    top, left, (height, width) = 0.0, 0.0, grid_hw
    if at is not None:
        x, y, w, h = at.target
        rows, columns = at.input_hw or (8 * grid_hw[0], 8 * grid_hw[1])
        top, left = y * grid_hw[0] / rows, x * grid_hw[1] / columns
        height, width = max(1, int(h * grid_hw[0] / rows)), max(1, int(w * grid_hw[1] / columns))
    down = (top + _middles(height)).astype(np.intp)
    across = (left + _middles(width)).astype(np.intp)
    rows_at, columns_at = np.minimum(down, grid_hw[0] - 1), np.minimum(across, grid_hw[1] - 1)
    places: NDArray[np.intp] = rows_at[:, None] * grid_hw[1] + columns_at
    return places.ravel()


def _middles(length: int) -> NDArray[np.float64]:
    count = min(SIDE, length)
    return (np.arange(count) + 0.5) * length / count
