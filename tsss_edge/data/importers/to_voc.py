"""A foreign set (`Found`) -> a folder in VOC layout: pictures linked, masks written, lists last."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Struct
from tsss_edge.data.ids import place
from tsss_edge.data.importers.classmap import ClassMap
from tsss_edge.data.importers.found import VOID, Found, Item, named
from tsss_edge.data.pictures import as_stored, orientation, read_size
from tsss_edge.data.voc import claim, labels_csv, write_mask
from tsss_edge.disk import atomic_path, settle_all
from tsss_edge.errors import DataError
from tsss_edge.files import edge, write_bytes
from tsss_edge.machine import progress

Grouping = Literal["none", "folder", "video"]
ROBOFLOW = re.compile(r"_(jpe?g|png)\.rf\.[0-9a-zA-Z]+$")  # what its exports add to every name


class ImportReport(Struct, frozen=True):
    """What an import made. `notes` name what was left out; `pixels` counts each class in the masks."""

    out: str
    classes: tuple[str, ...]
    splits: dict[str, int]
    masks: int
    image_labels: int
    pixels: dict[str, int]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """For a terminal."""
        lists = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        head = f"{self.out}: {len(self.classes)} classes, {self.masks} masks, {self.image_labels} with image-level labels only"
        return "\n".join([head, f"lists: {lists}", *(f"note: {note}" for note in self.notes)])


def write_voc(
    found: Found,
    classes: ClassMap,
    out: Path,
    recipe: Mapping[str, Any],
    *,
    splits: Mapping[str, str],
    copy: bool,
    notes: tuple[str, ...] = (),
) -> ImportReport:
    """Write the set. `splits` gives the list of each id.

    Raises: DataError: `out` holds something else, two pictures of one id, or a picture and its mask do not agree.
    Lists are written last, so that a set that stopped half-way is not taken for a whole one.
    """
    if twice := [image_id for image_id, count in Counter(item.id for item in found.items).items() if count > 1]:
        raise DataError(
            f"{out}: two pictures would both be named {named(twice)}; rename them, or import the lists one by one"
        )
    claim(out, recipe)
    table = classes.table(found.names)
    pixels, labels, masks = np.zeros(IGNORE + 1, np.int64), dict[str, frozenset[int]](), 0
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with progress("importing", len(found.items)) as advance:
        for item in found.items:
            place_picture(item, out, copy=copy)
            if item.mask is not None:
                mask = _mask(item, table)
                write_mask(place(out / "SegmentationClass", item.id, ".png"), mask)
                counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
                pixels, masks = pixels + counts, masks + 1
                labels[item.id] = frozenset(np.flatnonzero(counts).tolist()) & set(classes.classes.objects)
            else:
                labels[item.id] = _tag_ids(item, classes)
            advance()
    settle_all()
    write_bytes(out / "classes.txt", ("\n".join(classes.classes.names) + "\n").encode())
    write_bytes(out / "image_labels.csv", labels_csv(labels))
    counts_by_split = write_lists(out, splits)
    return ImportReport(
        out=str(out),
        classes=classes.classes.names,
        splits=counts_by_split,
        masks=masks,
        image_labels=len(found.items) - masks,
        pixels={name: int(pixels[i]) for i, name in enumerate(classes.classes.names)},
        notes=(*found.notes, *notes),
    )


def write_lists(out: Path, splits: Mapping[str, str]) -> dict[str, int]:
    """ImageSets/Segmentation/SPLIT.txt from id -> split; images per list."""
    for name in dict.fromkeys(splits.values()):
        ids = [image_id for image_id, split in splits.items() if split == name]
        write_bytes(out / f"ImageSets/Segmentation/{name}.txt", ("\n".join(ids) + "\n").encode())
    return dict(Counter(splits.values()))


def place_picture(item: Item, out: Path, *, copy: bool) -> None:
    """A link to the picture, or with `copy` the bytes, as JPEGImages/ID.SUFFIX. Raises: DataError: it is gone."""
    if not item.picture.is_file():
        raise DataError(f"{item.picture}: no such picture")
    target = place(out / "JPEGImages", item.id, item.picture.suffix.lower())
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target, durable=False) as temporary:
        if copy:
            shutil.copyfile(item.picture, temporary)
        else:
            temporary.unlink()
            temporary.symlink_to(item.picture.resolve())


def _mask(item: Item, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    assert item.mask is not None
    with edge(item.picture, "annotation", "mend it, or leave the picture out", DataError):
        drawn = item.mask()
    stored, turned = read_size(item.picture), read_size(item.picture, upright=True)
    if drawn.shape not in (stored, turned):
        raise DataError(
            f"{item.picture}: the picture is {stored[1]}x{stored[0]}, its annotation {drawn.shape[1]}x{drawn.shape[0]}; "
            "they must agree, so annotate the picture that is there"
        )
    if item.upright and stored == turned:  # a reader takes a mask of this size as made on the stored pixels
        drawn = as_stored(drawn, orientation(item.picture))
    return table[drawn - VOID]


def _tag_ids(item: Item, classes: ClassMap) -> frozenset[int]:
    ids = {classes.ids[name] for name in item.tags or ()}
    return frozenset(ids) & set(classes.classes.objects)


def choose_splits(
    found: Found, val: float | None, group: Grouping, seed: int
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Id -> list: the set's own splits, or with `val` a share of all pictures (or of all groups) by chance; and notes.

    Raises: DataError: one group only, so that nothing can be held back. ValueError: `group` without `val`.
    """
    if val is None and group != "none":
        raise ValueError(f"--group {group} says what --val must not split; give --val too, as --val 0.2")
    if val is None:
        own = {item.id: item.split or "train" for item in found.items}
        lone = set(own.values()) == {"train"}
        note = (
            ("the set has no validation pictures; hold some back with --val 0.2 (--group video for frames)",)
            if lone
            else ()
        )
        return own, note
    groups = {item.id: group_of(item, group) for item in found.items}
    names = sorted(set(groups.values()))
    if len(names) < 2:
        raise DataError(
            f"--val {val} --group {group}: all pictures are of one group ({named(names)}); nothing can be held back"
        )
    random.Random(seed).shuffle(names)
    held, count, wanted, sizes = set[str](), 0, max(1, round(val * len(groups))), Counter(groups.values())
    for name in names[:-1]:
        if count < wanted:
            held.add(name)
            count += sizes[name]
    return {image_id: "val" if name in held else "train" for image_id, name in groups.items()}, ()


def group_of(item: Item, group: Grouping) -> str:
    """What must not be split: nothing, the folder a picture is from, or the name before its frame number."""
    if group == "none":
        return item.id
    if group == "folder":
        return item.group
    stem = ROBOFLOW.sub("", item.picture.stem)
    return os.path.join(item.group, stem.rstrip("0123456789").rstrip("_-. f"))  # noqa: PTH118 (a key, no path)
