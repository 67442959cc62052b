"""Pictures and index masks in two folders, or pictures with tags alone (a folder a class, a CSV) -> `Found`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE
from tsss_edge.data.ids import inside
from tsss_edge.data.importers.found import UNLABELLED, VOID, Found, Item, ids_of, named, pictures_below
from tsss_edge.data.importers.pairs import SPLITS, find_pairs
from tsss_edge.data.pictures import is_picture, read_mask
from tsss_edge.data.voc import VOC_NAMES, is_background, read_csv, read_text
from tsss_edge.errors import DataError

JPEG = (".jpg", ".jpeg")


def read_folders(source: Path, names: Path | None, *, images: str | None = None, masks: str | None = None) -> Found:
    """Read pairs of pictures and index masks.

    Masks that hold 0 and 255 only, all of them, are background and one object class. `names` is a text file with a
    class a line, the first being id 0 (default: SRC/classes.txt, else class_1, class_2, ... as far as ids go).
    Raises: DataError: no pairs, or a mask is no index picture.
    """
    pairs = find_pairs(source, images, masks)
    values = _values(list(pairs.masks.values()))
    binary = values <= {0, IGNORE} and IGNORE in values
    classes, background = _classes(source, names, values, binary=binary)
    ids = ids_of(pairs.masks, source)
    items = [
        Item(
            id=ids[picture],
            picture=picture,
            mask=functools.partial(_draw, mask, len(classes), background=background, binary=binary),
            split=pairs.splits[picture],
            group=str(picture.parent.relative_to(source)),
        )
        for picture, mask in pairs.masks.items()
    ]
    said = ("masks hold 0 and 255 only: 0 is taken as background, 255 as the object",) if binary else ()
    return Found(names=classes, background=background, items=tuple(items), notes=(*pairs.notes, *said))


def _values(masks: list[Path]) -> set[int]:
    found: set[int] = set()
    for path in masks:
        seen = set(np.unique(read_mask(path)).tolist())
        if path.suffix.lower() in JPEG and not seen <= {0, IGNORE}:
            raise DataError(
                f"{path}: a JPEG file, whose compression changes ids ({len(seen)} values); save masks as PNG"
            )
        found |= seen
    return found


def _classes(source: Path, names: Path | None, values: set[int], *, binary: bool) -> tuple[tuple[str, ...], bool]:
    """Names without the background, and whether id 0 is it."""
    path = names or source / "classes.txt"
    highest = max(values - {IGNORE}, default=0)
    if not path.is_file():
        if names is not None:
            raise DataError(f"{path}: no such list of class names")
        if (source / "ImageSets/Segmentation").is_dir() and highest < len(VOC_NAMES):
            return VOC_NAMES[1:], True  # what every reader of such a folder takes
        return (("object",) if binary else tuple(f"class_{i}" for i in range(1, highest + 1))), True
    every = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    background = bool(every) and is_background(every[0])
    if not binary and highest >= len(every):
        raise DataError(f"{path}: names {len(every)} classes, but the masks hold id {highest}; expected a name a line")
    return (every[1:] if background else every), background


def _draw(path: Path, classes: int, *, background: bool, binary: bool) -> NDArray[np.int32]:
    mask = read_mask(path).astype(np.int32)
    if binary:
        return np.where(mask == IGNORE, 0, UNLABELLED).astype(np.int32)
    ids = mask - 1 if background else mask  # id 0 becomes UNLABELLED (-1) by the same step
    return np.where(mask == IGNORE, VOID, ids).astype(np.int32)


def read_tags(source: Path) -> Found:
    """Pictures with image-level labels only: SRC/CLASS/*.jpg, SRC/SPLIT/CLASS/*.jpg, or a CSV
    `file,classes` (classes apart by blanks or `;`).

    Raises: DataError: neither is there.
    """
    table = source if source.is_file() else next(iter(sorted(source.glob("*.csv"))), None)
    return _from_csv(table) if table is not None else _from_class_folders(source)


def _from_class_folders(source: Path) -> Found:
    tops = _folders_in(source)
    found: list[tuple[str | None, Path]] = [(None, folder) for folder in tops]
    left: list[str] = []
    if splits := [
        top for top in tops if top.name.lower() in SPLITS and _folders_in(top)
    ]:  # ImageFolder's: train/cat, val/cat
        found = [(SPLITS[top.name.lower()], folder) for top in splits for folder in _folders_in(top)]
        left = [top.name for top in tops if top not in splits]
    pictures = [(split, folder.name, path) for split, folder in found for path in pictures_below(folder)]
    if not pictures:
        raise DataError(f"{source}: no tags; expected a folder a class, or a CSV file `file,classes`")
    ids = ids_of([path for _, _, path in pictures], source)
    items = [
        Item(id=ids[path], picture=path, tags=frozenset({name}), split=split, group=name)
        for split, name, path in pictures
    ]
    names = tuple(sorted({name for _, name, _ in pictures}))
    notes = (f"left out, because they hold no folders of classes: {named(left)}",) if left else ()
    return Found(names=names, background=True, items=tuple(items), notes=notes)


def _folders_in(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if path.is_dir() and not path.name.startswith("."))


def _from_csv(table: Path) -> Found:
    rows = read_csv(table)
    apart = ";" if any(";" in cell for row in rows for cell in row[1:]) else None  # names with blanks need the other
    tags: dict[Path, frozenset[str]] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{table}, line {number}"
        if len(row) < 2:
            raise DataError(f"{where}: expected `file,classes`, got {','.join(row)!r}")
        places = (inside(folder, row[0], where) for folder in (table.parent, table.parent / "images"))
        path = next((place for place in places if place.is_file()), None)
        if path is None and number == 1 and not is_picture(Path(row[0])):
            continue  # the head of the table
        if path is None:
            raise DataError(f"{where}: no picture {row[0]} beside the file")
        words = (word.strip() for cell in row[1:] for word in cell.split(apart))
        tags[path] = tags.get(path, frozenset()) | {word for word in words if word}
    names = tuple(sorted({name for found in tags.values() for name in found}))
    if not names:
        raise DataError(f"{table}: names no class; expected a first line `file,classes` and a picture a line")
    ids = ids_of(tags, table.parent)
    items = [Item(id=ids[path], picture=path, tags=found, group=str(path.parent)) for path, found in tags.items()]
    return Found(names=names, background=True, items=tuple(items))
