"""Pictures with their labels -> one contact sheet: ids, scores, truth beside, one legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.artifacts import IGNORE, Classes
from tsss_edge.disk import atomic_path
from tsss_edge.drawing import blended, legend
from tsss_edge.drawing.lettering import caption

SIDE = 320  # pixels of the longer side of a picture
LINE = 18
GAP = 6
WIDTH = 1900  # pixels of a sheet, about


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet: (H,W,3) uint8 RGB, labels and truth (H,W) uint8, at `SIDE` pixels (see `tile`)."""

    text: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None


def tile(
    text: str, image: NDArray[np.uint8], labels: NDArray[np.uint8], truth: NDArray[np.uint8] | None = None
) -> Tile:
    """A `Tile` from arrays of any one size, made small so that many can be kept."""
    height, width = labels.shape
    ratio = SIDE / max(height, width)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    small = np.asarray(
        Image.fromarray(image).resize(size, Image.Resampling.BOX if ratio < 1 else Image.Resampling.BICUBIC)
    )
    masks = [None if m is None else cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) for m in (labels, truth)]
    assert masks[0] is not None
    return Tile(
        text, small, np.asarray(masks[0], np.uint8), None if masks[1] is None else np.asarray(masks[1], np.uint8)
    )


def contact_sheet(tiles: Sequence[Tile], classes: Classes) -> NDArray[np.uint8]:
    """(H,W,3) uint8 RGB: for each tile the picture alone, its labels, its truth; rows of about equal width; the legend last."""
    cells = [_cell(one, classes) for one in tiles]
    columns = max(1, min(len(cells), round(WIDTH / (cells[0].shape[1] + GAP))))
    rows = [_row(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    width = max(row.shape[1] for row in rows)
    seen = np.zeros(256, np.int64)
    for one in tiles:
        for mask in (one.labels, one.truth):
            seen += 0 if mask is None else np.bincount(mask.ravel(), minlength=256)
    ids = sorted((k for k in classes.objects if seen[k]), key=lambda k: -seen[k])
    parts = [_pad(row, row.shape[0] + GAP, width) for row in rows]
    return np.concatenate([*parts, legend(classes, ids, width, LINE)[..., ::-1]])


def write_sheet(path: Path, tiles: Sequence[Tile], classes: Classes) -> None:
    """Write a contact sheet as PNG, or as JPEG under any other suffix."""
    sheet = Image.fromarray(contact_sheet(tiles, classes))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG" if path.suffix.lower() == ".png" else "JPEG", quality=88)


def _cell(one: Tile, classes: Classes) -> NDArray[np.uint8]:
    views = [one.image, _seen(one.image, one.labels, classes)]
    head = one.text
    if one.truth is not None:
        views.append(_seen(one.image, one.truth, classes))
        head += "   (picture, network, truth)"
    side = np.concatenate(
        [_pad(view, SIDE if view.shape[0] > view.shape[1] else view.shape[0], view.shape[1]) for view in views], axis=1
    )
    return np.concatenate([caption(head, side.shape[1], LINE)[..., ::-1], side])


def _seen(image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Classes) -> NDArray[np.uint8]:
    """The picture with labels drawn on it; unsure pixels (255) half white."""
    unsure = (labels == IGNORE)[..., None]
    return blended(np.where(unsure, (image.astype(np.uint16) + 256) // 2, image).astype(np.uint8), labels, classes)


def _row(cells: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    height = max(cell.shape[0] for cell in cells)
    return np.concatenate([_pad(cell, height, cell.shape[1] + GAP) for cell in cells], axis=1)


def _pad(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.pad(picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)))
