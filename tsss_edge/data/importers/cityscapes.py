"""Cityscapes (leftImg8bit/SPLIT/CITY, gtFine/SPLIT/CITY) -> `Found` with its 19 training classes."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.importers.found import VOID, Found, Item, ids_of, named, pictures_below
from tsss_edge.data.pictures import read_mask
from tsss_edge.errors import DataError

# Names by train id, and the label id of each (cityscapesScripts, helpers/labels.py); all other label ids are ignored.
CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
PICTURE = "_leftImg8bit"


def label_table() -> NDArray[np.int32]:
    """Label id (0-255) -> train id, VOID for all that is not trained on."""
    table = np.full(256, VOID, np.int32)
    for index, label in enumerate(CLASSES.values()):
        table[label] = index
    return table


def read_cityscapes(source: Path, *, tags_only: bool = False) -> Found:
    """Read the pictures that have a gtFine (else gtCoarse) mask. A group is a city.

    Raises: DataError: no leftImg8bit folder, or no picture has a mask. ValueError: `tags_only`.
    """
    if tags_only:
        raise ValueError("cityscapes has masks for every picture; --image-labels is for sets without")
    pictures = pictures_below(source / "leftImg8bit")
    masks = {path: _mask_of(source, path) for path in pictures}
    without = [path.name for path in pictures if masks[path] is None]
    ids = ids_of([p for p in pictures if masks[p] is not None], source, ending=PICTURE)
    items = [
        Item(
            id=ids[path],
            picture=path,
            mask=functools.partial(_draw, mask),
            split=path.parts[-3],
            group=path.parent.name,
        )
        for path in pictures
        if (mask := masks[path]) is not None
    ]
    if not items:
        raise DataError(f"{source}: no picture has a mask; expected gtFine/SPLIT/CITY/*_gtFine_labelIds.png")
    notes = (f"{len(without)} pictures have no mask and are left out: {named(without)}",) if without else ()
    return Found(names=tuple(CLASSES), background=False, items=tuple(items), notes=notes)


def _mask_of(source: Path, picture: Path) -> Path | None:
    name = picture.stem.removesuffix(PICTURE)
    places = [
        source / kind / Path(*picture.parts[-3:-1]) / f"{name}_{kind}_labelIds.png" for kind in ("gtFine", "gtCoarse")
    ]
    return next((p for p in places if p.is_file()), None)


def _draw(path: Path) -> NDArray[np.int32]:
    return np.asarray(label_table()[read_mask(path)])
