"""A dataset folder -> every problem in it at once, and what it holds: images, splits, class histogram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tsss_edge.artifacts import IGNORE, Struct
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.machine import progress

FULL_SPLITS = ("val", "test")  # lists whose images all need masks, since results are measured on them


class ClassCount(Struct, frozen=True):
    """How often one class occurs in the masks: images that show it, pixels."""

    images: int
    pixels: int


class CheckReport(Struct, frozen=True):
    """What `check_dataset` found. `unlabelled` images have no mask but an image-level label; that is allowed in training."""

    root: str
    images: int
    unlabelled: int
    splits: dict[str, int]
    classes: dict[str, ClassCount]
    ignored_pixels: int
    problems: tuple[str, ...]

    def summary(self) -> str:
        """For a terminal: counts, histogram, then every problem."""
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items()) or "none"
        total = max(1, sum(count.pixels for count in self.classes.values()))
        rows = [
            f"  {name:<16} {count.images:>6} images {100 * count.pixels / total:>8.3f} % of labelled pixels"
            for name, count in self.classes.items()
        ]
        head = f"{self.root}: {self.images} images ({self.unlabelled} with an image-level label only); lists: {splits}"
        found = [f"problem: {line}" for line in self.problems] or ["no problems"]
        return "\n".join([head, *rows, *found])


@dataclass
class _Tally:
    images: int = 0
    unlabelled: int = 0
    shown: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    problems: list[str] = field(default_factory=list)


def check_dataset(root: Path, splits: Sequence[str] | None = None) -> CheckReport:
    """Read every picture, mask and image-level label of the given lists (default: all lists).

    Raises: DataError: the folder is not in VOC layout or its classes.txt is unusable, so that nothing can be read.
    """
    dataset, tally = VocDataset.open(root), _Tally()
    sizes = {name: _ids(dataset, name, tally) for name in (dataset.splits if splits is None else splits)}
    if not sizes:
        tally.problems.append(f"{root / 'ImageSets/Segmentation'}: no list; expected train.txt and val.txt")
    strict = {i for name in FULL_SPLITS for i in sizes.get(name, ())}
    every = list(dict.fromkeys(i for ids in sizes.values() for i in ids))
    labels_fine = _check_table(dataset, tally)
    with progress("checking", len(every)) as advance:
        for image_id in every:
            _check_image(dataset, image_id, tally, needs_mask=image_id in strict, labels_fine=labels_fine)
            advance()
    return _report(dataset, sizes, tally)


def _report(dataset: VocDataset, sizes: dict[str, tuple[str, ...]], tally: _Tally) -> CheckReport:
    names = enumerate(dataset.classes.names)
    return CheckReport(
        root=str(dataset.root),
        images=tally.images,
        unlabelled=tally.unlabelled,
        splits={name: len(ids) for name, ids in sizes.items()},
        classes={name: ClassCount(images=int(tally.shown[i]), pixels=int(tally.pixels[i])) for i, name in names},
        ignored_pixels=int(tally.pixels[IGNORE]),
        problems=tuple(tally.problems),
    )


def _ids(dataset: VocDataset, split: str, tally: _Tally) -> tuple[str, ...]:
    try:
        return dataset.ids(split)
    except DataError as error:
        tally.problems.append(str(error))
        return ()


def _check_table(dataset: VocDataset, tally: _Tally) -> bool:
    """Whether image_labels.csv can be used (or is absent). Ids that name no picture are problems too."""
    try:
        table: Iterable[str] = dataset.label_table
    except DataError as error:
        tally.problems.append(str(error))
        return False
    for image_id in table:
        try:
            dataset.image_path(image_id)
        except DataError:
            tally.problems.append(f"{dataset.root / 'image_labels.csv'}: id {image_id} names no picture")
    return True


def _check_image(dataset: VocDataset, image_id: str, tally: _Tally, *, needs_mask: bool, labels_fine: bool) -> None:
    tally.images += 1
    try:
        dataset.image(image_id)
        labelled = labels_fine and _has_label(dataset, image_id)
        if not dataset.mask_path(image_id).is_file() and labelled and not needs_mask:
            tally.unlabelled += 1
            return
        counts = np.bincount(dataset.mask(image_id).ravel(), minlength=IGNORE + 1)
    except DataError as error:
        tally.problems.append(str(error))
        return
    tally.pixels += counts
    tally.shown += counts > 0
    if labelled:
        _check_label(dataset, image_id, counts, tally)


def _has_label(dataset: VocDataset, image_id: str) -> bool:
    """Whether an image-level label stands somewhere else than in the mask. Raises: DataError: an unreadable annotation."""
    xml = dataset.root / "Annotations" / f"{image_id}.xml"
    known = image_id in dataset.label_table or xml.is_file()
    if known:
        dataset.image_labels(image_id)
    return known


def _check_label(dataset: VocDataset, image_id: str, counts: np.ndarray, tally: _Tally) -> None:
    """A mask may miss a category of the label (its objects may be hidden or void), but shows none beyond it."""
    extra = {i for i in dataset.classes.objects if counts[i]} - dataset.image_labels(image_id)
    if extra:
        names = ", ".join(dataset.classes.names[i] for i in sorted(extra))
        tally.problems.append(f"image {image_id}: the mask shows {names}, which its image-level label does not name")
