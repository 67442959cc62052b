"""Labels -> where the name of each class goes: the middle of its largest region."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

GRID = 72  # points of the smaller side on which regions are looked for: names need no more, and it costs no time
MIN_SHARE = 0.003  # of the picture; a smaller region has no name
GOOD = 0.9  # distance from the border, as a share of the largest, that is as good
STAY = 0.6  # a name stays where it was while it is so far from the border, as a share of the best place


class Places:
    """Finds them for frame after frame; a name moves only when its old place has become a bad one."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._last: dict[int, tuple[int, int]] = {}  # on the grid

    def find(self, labels: NDArray[np.uint8]) -> dict[int, tuple[int, int]]:
        """(H,W) uint8 labels -> class id -> (y, x) in pixels, largest region first."""
        step = max(1, min(labels.shape) // GRID)
        small = np.ascontiguousarray(labels[step // 2 :: step, step // 2 :: step])
        counts = np.bincount(small.ravel(), minlength=256)
        found = {k: region for k in self._ids if counts[k] and (region := _largest(small == k)) is not None}
        by_area = sorted(found.items(), key=lambda item: -np.count_nonzero(item[1]))
        self._last = {k: self._place(k, region) for k, region in by_area}
        return {k: (y * step + step // 2, x * step + step // 2) for k, (y, x) in self._last.items()}

    def _place(self, k: int, region: NDArray[np.uint8]) -> tuple[int, int]:
        framed = cv2.copyMakeBorder(region, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)  # the rim counts as a border
        far = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
        old = self._last.get(k)
        if old is not None and old[0] < far.shape[0] and old[1] < far.shape[1] and far[old] >= STAY * far.max():
            return old
        good = np.argwhere(far >= GOOD * far.max())  # a long band has many: the most central one
        y, x = good[((good - good.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        return int(y), int(x)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.uint8] | None:
    """The largest connected part, 0 or 1; None where it is too small for a name."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    best = int(areas.argmax())
    return (parts == best + 1).astype(np.uint8) if areas[best] >= MIN_SHARE * mask.size else None
