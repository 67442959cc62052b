"""A folder of pictures and a folder of masks -> which mask belongs to which picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tsss_edge.data.importers.found import named, pictures_below
from tsss_edge.data.voc import read_ids
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
    """Picture -> its mask, picture -> its list as the set says (None: it does not), and notes on what is left out."""

    masks: dict[Path, Path]
    splits: dict[Path, str | None]
    notes: tuple[str, ...]


def find_pairs(source: Path, images: str | None, masks: str | None) -> Pairs:
    """Pictures and masks of one name, perhaps with an ending such as `_mask`.

    Args:    images, masks: folders below `source`; without, the first known layout, or train + trainannot of CamVid's tutorial.
    Raises:  DataError: no such folders, no pairs, or two masks of one name.
    """
    folders = _folders(source, images, masks)
    pairs: dict[Path, Path | None] = {}
    for folder, mask_folder in folders.items():
        pairs |= _paired(folder, mask_folder)
    found = {picture: mask for picture, mask in pairs.items() if mask is not None}
    folder, mask_folder = next(iter(folders.items()))
    top = folder if len(folders) == 1 else source
    if not found:
        raise DataError(f"{source}: no picture of {folder.name} has a mask of its name in {mask_folder.name}")
    without = [picture.name for picture, mask in pairs.items() if mask is None]
    notes = (f"{len(without)} pictures have no mask and are left out: {named(without)}",) if without else ()
    return _listed(Pairs(found, {p: _split_below(p, top) for p in found}, notes), top, _own_lists(source))


def _paired(folder: Path, mask_folder: Path) -> dict[Path, Path | None]:
    """Each picture's mask, None where it has none. Raises: DataError: two masks of one name."""
    by_name: dict[tuple[str, ...], Path] = {}
    for path in pictures_below(mask_folder):
        key = (*path.parent.relative_to(mask_folder).parts, path.stem)
        if mask_folder != folder and key in by_name:
            raise DataError(f"{path}: {by_name[key].name} is a mask of the same picture; take one away")
        by_name.setdefault(key, path)

    def mask_of(picture: Path) -> Path | None:
        below = picture.parent.relative_to(folder).parts
        candidates = (by_name.get((*below, picture.stem + end)) for end in ENDINGS)
        return next((m for m in candidates if m not in (None, picture)), None)

    return {picture: mask_of(picture) for picture in pictures_below(folder)}


def _own_lists(source: Path) -> dict[str, str]:
    """Id -> list, from ImageSets/Segmentation of VOC or CVAT (whose `default` is no list); empty where there is none.

    `trainval` counts where there is no train. Raises: DataError: a list is unusable.
    """
    folder = source / "ImageSets/Segmentation"
    first = "train" if (folder / "train.txt").is_file() else "trainval"
    files = {name: folder / f"{name}.txt" for name in ("test", "val", first)}
    return {i: "train" if name == "trainval" else name for name, p in files.items() if p.is_file() for i in read_ids(p)}


def _split_below(picture: Path, folder: Path) -> str | None:
    """`images/train/a.jpg` -> `train`."""
    parts = picture.parent.relative_to(folder).parts
    return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), None)


def _listed(pairs: Pairs, top: Path, lists: Mapping[str, str]) -> Pairs:
    """By a set's own lists (see `_own_lists`), where it has some: they part its pictures, and what stands in none is left out."""
    if not lists:
        return pairs
    splits = {p: lists.get(p.relative_to(top).with_suffix("").as_posix()) for p in pairs.masks}
    left = [picture.name for picture, split in splits.items() if split is None]
    note = (f"{len(left)} pictures stand in no list of the set and are left out: {named(left)}",) if left else ()
    return Pairs({p: mask for p, mask in pairs.masks.items() if splits[p] is not None}, splits, (*pairs.notes, *note))


def _folders(source: Path, images: str | None, masks: str | None) -> dict[Path, Path]:
    """Folder of pictures -> folder of their masks."""
    if (images is None) != (masks is None):
        raise DataError("give --images and --masks together, or none of them")
    layouts = ((images, masks),) if images is not None and masks is not None else LAYOUTS
    for first, second in layouts:
        if (source / first).is_dir() and (source / second).is_dir():
            return {source / first: source / second}
    if images is None and (tutorial := _tutorial(source)):
        return tutorial
    wanted = ", ".join(f"{a} + {b}" for a, b in layouts[:6])
    raise DataError(
        f"{source}: no folders of pictures and masks ({wanted}, ...); name them with --images DIR --masks DIR"
    )


def mask_folders(source: Path) -> list[Path]:
    """The folders of masks of known layouts that are there with their pictures."""
    known = [source / b for a, b in LAYOUTS if (source / a).is_dir() and (source / b).is_dir()]
    return [*known, *_tutorial(source).values()]


def _tutorial(source: Path) -> dict[Path, Path]:
    """train + trainannot, val + valannot, test + testannot: CamVid as SegNet's tutorial gives it."""
    return {
        source / s: source / f"{s}annot" for s in SPLITS if (source / s).is_dir() and (source / f"{s}annot").is_dir()
    }
