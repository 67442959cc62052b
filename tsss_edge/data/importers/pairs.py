"""A folder of pictures and a folder of masks -> which mask belongs to which picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tsss_edge.data.importers.found import named, pictures_below
from tsss_edge.errors import DataError

# Folder names that sets use, pictures first. mmsegmentation, Supervisely, fast.ai, CVAT, VOC.
LAYOUTS = (
    ("images", "masks"), ("images", "labels"), ("images", "annotations"), ("img_dir", "ann_dir"), ("img", "mask"),
    ("imgs", "masks"), ("image", "mask"), ("image", "label"), ("images", "mask"), ("JPEGImages", "SegmentationClass"),
    ("JPEGImages", "SegmentationClassRaw"), ("701_StillsRaw_full", "LabeledApproved_full"),
)  # fmt: skip
ENDINGS = (
    "",
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_L",
    "_P",
    "_seg",
    "_gt",
    "-mask",
    "_labelTrainIds",
    "_labelIds",
)
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Pairs:
    """Picture -> its mask, with the folder of each, and a note on pictures that have none."""

    pictures: Path
    masks: dict[Path, Path]
    notes: tuple[str, ...]


def find_pairs(source: Path, images: str | None, masks: str | None) -> Pairs:
    """Pictures and masks of one name, perhaps with an ending such as `_mask`.

    Args:    images, masks: folders below `source`; without, the first known layout, and CamVid's SPLIT + SPLITannot too.
    Raises:  DataError: no such folders, no pairs, or two masks for one picture.
    """
    folder, mask_folder = _folders(source, images, masks)
    by_name: dict[tuple[str, ...], Path] = {}
    for path in pictures_below(mask_folder):
        by_name.setdefault((*path.parent.relative_to(mask_folder).parts, path.stem), path)
    pairs: dict[Path, Path] = {}
    without: list[str] = []
    for picture in pictures_below(folder):
        below = picture.parent.relative_to(folder).parts
        found = next(
            (m for end in ENDINGS if (m := by_name.get((*below, picture.stem + end))) not in (None, picture)), None
        )
        if found is None:
            without.append(picture.name)
        else:
            pairs[picture] = found
    if not pairs:
        raise DataError(f"{source}: no picture of {folder.name} has a mask of its name in {mask_folder.name}")
    notes = (f"{len(without)} pictures have no mask and are left out: {named(without)}",) if without else ()
    return Pairs(folder, pairs, notes)


def _folders(source: Path, images: str | None, masks: str | None) -> tuple[Path, Path]:
    if (images is None) != (masks is None):
        raise DataError("give --images and --masks together, or none of them")
    layouts = ((images, masks),) if images is not None and masks is not None else LAYOUTS
    for first, second in layouts:
        if (source / first).is_dir() and (source / second).is_dir():
            return source / first, source / second
    wanted = ", ".join(f"{a} + {b}" for a, b in layouts[:6])
    raise DataError(
        f"{source}: no folders of pictures and masks ({wanted}, ...); name them with --images DIR --masks DIR"
    )


def has_pairs(source: Path) -> bool:
    """Whether a known pair of folders is there."""
    return any((source / a).is_dir() and (source / b).is_dir() for a, b in LAYOUTS)


def split_below(picture: Path, folder: Path) -> str | None:
    """`images/train/a.jpg` -> `train`."""
    parts = picture.parent.relative_to(folder).parts
    return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), None)
