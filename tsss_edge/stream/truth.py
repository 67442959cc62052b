"""A folder with a mask for every frame -> what a recorded stream is scored against while it runs."""
# Letters: H, W frame.

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes
from tsss_edge.data.pictures import read_mask
from tsss_edge.errors import DataError
from tsss_edge.stream.sources.recorded import find_pictures

LOG = logging.getLogger("tsss_edge")

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # prediction and truth, (H,W) ids each


class TruthFolder:
    """Index PNGs in natural order: the first is of frame 0, or of a folder's first picture. Frames beyond the last have no truth.

    Args:   one: name of the class that pixels other than 0 and 255 show, whatever their id; the score is then of that class
            against everything else. Without it the ids are the engine's.
    Raises: DataError: no mask there, or the engine has no class of that name.
    """

    def __init__(self, folder: Path, classes: Classes, one: str | None = None) -> None:
        self._paths = find_pictures(str(folder))
        try:
            self._one = classes.ids((one,))[0] if one is not None else None
        except ValueError as error:
            raise DataError(f"{folder}: its masks cannot be of class {one!r}: {error}") from error
        self.names = classes.names if one is None else ("everything else", one)

    def warn_of_count(self, pictures: int | None) -> None:
        """Tell in one line when the source has more or fewer pictures (None: not known) than there are masks."""
        if pictures not in (None, len(self._paths)):
            LOG.warning(
                "%d masks in %s and %s pictures in the source: the n-th mask is taken for the n-th picture; check that it is",
                len(self._paths),
                self._paths[0].parent,
                pictures,
            )

    def pair(self, number: int, labels: NDArray[np.uint8]) -> Pair | None:
        """What is compared for frame `number`, whose mask is brought to the size of `labels`; None without one.

        Raises: DataError: an unreadable mask, or one with ids that the engine does not have.
        """
        if number >= len(self._paths):
            return None
        truth = read_mask(self._paths[number])
        if truth.shape != labels.shape:
            truth = np.asarray(cv2.resize(truth, labels.shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
        if self._one is not None:
            thing = np.where(truth == IGNORE, IGNORE, truth > 0).astype(np.uint8)
            return (labels == self._one).astype(np.uint8), thing
        known = truth[truth != IGNORE]
        if known.size and int(known.max()) >= len(self.names):
            raise DataError(
                f"{self._paths[number]}: holds id {int(known.max())}, the engine has classes 0 to {len(self.names) - 1}; "
                "say which class the masks show (--truth-class)"
            )
        return labels, truth
