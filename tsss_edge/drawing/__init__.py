"""Labels -> what a person sees: colours, outlines, names at the largest region, a legend, contact sheets."""
# Letters: H, W picture.

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes
from tsss_edge.drawing.lettering import Box, line_height, name_tag, paste, strip
from tsss_edge.drawing.places import Places
from tsss_edge.kernels.overlay import OutlinePlan, OverlayPlan

Draw: TypeAlias = Literal["plain", "outlines", "names", "legend"]  # each with all before it
DRAW: tuple[Draw, ...] = get_args(Draw)
THICK_FROM = 600  # rows or columns, the smaller; from here on an outline has 2 pixels
LEGEND_SHARE = 0.001  # of the picture: a class with less is not in the legend of a frame


class Drawer:
    """Draws on frames that are blended already; made once for a size. One thread at a time: names remember their places."""

    def __init__(self, classes: Classes, frame_hw: tuple[int, int], draw: Draw = "names") -> None:
        self.frame_hw = frame_hw
        self._classes, self._level = classes, DRAW.index(draw)
        thickness = 2 if min(frame_hw) >= THICK_FROM else 1
        self._outlines = OutlinePlan(frame_hw, classes.palette, classes.objects, thickness)
        self._places = Places(classes.objects)
        self._line = line_height(frame_hw)

    def __call__(self, frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Draw on `frame`, (H,W,3) uint8 BGR, in place. labels: (H,W) uint8. Both C-contiguous."""
        if self._level >= DRAW.index("outlines"):
            self._outlines(frame, labels)
        if self._level >= DRAW.index("names"):
            self._write_names(frame, labels)

    def _write_names(self, frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        counts, taken = np.bincount(labels[::4, ::4].ravel(), minlength=256), []
        if self._level >= DRAW.index("legend"):
            enough = LEGEND_SHARE * counts.sum()
            seen = tuple(k for k in self._classes.objects if counts[k] > enough)
            taken = [paste(frame, legend(self._classes, seen, self.frame_hw[1], self._line), 0, 0)] if seen else []
        for k, (y, x) in self._places.find(labels).items():
            tag = name_tag(self._classes.names[k], self._classes.palette[k], self._line)
            if (box := _free(tag.shape[:2], (y, x), self.frame_hw, taken)) is not None:
                taken.append(paste(frame, tag, *box))


def blended(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Classes, draw: Draw = "names", alpha: float = 0.5
) -> NDArray[np.uint8]:
    """One picture, (H,W,3) uint8 RGB, with its labels, (H,W) uint8, drawn on it: (H,W,3) uint8 RGB, fresh memory."""
    frame, labels = np.ascontiguousarray(image[..., ::-1]), np.ascontiguousarray(labels)
    frame_hw = (image.shape[0], image.shape[1])
    OverlayPlan(frame_hw, classes.palette, alpha, classes.objects)(frame, labels)
    Drawer(classes, frame_hw, draw)(frame, labels)
    return np.ascontiguousarray(frame[..., ::-1])


def legend(classes: Classes, ids: Sequence[int], width: int, line: int, texts: Sequence[str] = ()) -> NDArray[np.uint8]:
    """A strip (h,width,3) uint8 BGR with colour and name of `ids`, or `texts` in the names' place. `line`: pixels of a line."""
    texts = texts or [classes.names[k] for k in ids]
    return strip(tuple(zip(texts, (classes.palette[k] for k in ids), strict=True)), width, line)


def with_legend(picture: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Classes) -> NDArray[np.uint8]:
    """(H,W,3) uint8 RGB with a legend below, classes by area with their shares: (H+h,W,3)."""
    counts = np.bincount(labels.ravel(), minlength=256)
    ids = sorted((k for k in classes.objects if counts[k]), key=lambda k: -counts[k])
    if not ids:
        return picture
    texts = [f"{classes.names[k]} {100 * counts[k] / max(1, counts.sum() - counts[IGNORE]):.1f}%" for k in ids]
    height, width = picture.shape[:2]
    below = legend(classes, ids, width, line_height((height, width)), texts)
    return np.ascontiguousarray(np.concatenate([picture, below[..., ::-1]]))


def _free(
    tag_hw: tuple[int, ...], centre: tuple[int, int], frame_hw: tuple[int, int], taken: Sequence[Box]
) -> tuple[int, int] | None:
    """Top left corner for a tag around `centre`, inside the frame, on no other tag; None where there is no such place."""
    height, width = tag_hw
    if height > frame_hw[0] or width > frame_hw[1]:
        return None
    left = min(max(0, centre[1] - width // 2), frame_hw[1] - width)
    for step in (0, 1, -1, 2, -2):
        top = min(max(0, centre[0] - height // 2 + step * height), frame_hw[0] - height)
        if not any(top < b[2] and b[0] < top + height and left < b[3] and b[1] < left + width for b in taken):
            return top, left
    return None
