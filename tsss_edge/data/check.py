"""A dataset folder -> every problem in it at once, and what it holds: images, splits, class histogram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tsss_edge.artifacts import IGNORE, Struct
from tsss_edge.data.ids import place
from tsss_edge.data.importers.found import named, pictures_below
from tsss_edge.data.pictures import is_picture, orientation, read_mask, read_size
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.machine import in_order, progress, usable_cores

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
    values: dict[int, int]  # every value that the masks hold, with its pixels, unknown ids too
    notes: tuple[str, ...]  # what is taken in a way worth knowing: unlisted pictures, other files

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
        values = ", ".join(f"{value}: {count}" for value, count in sorted(self.values.items()))
        notes = [f"note: {line}" for line in self.notes]
        return "\n".join([head, *rows, f"values in the masks, with their pixels: {values or 'none'}", *notes, *found])


@dataclass
class _Tally:
    images: int = 0
    unlabelled: int = 0
    shown: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    labelled: set[int] = field(default_factory=set)  # classes that some image-level label names
    turned: list[str] = field(default_factory=list)  # pictures whose EXIF turn the mask's size cannot tell
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, part: _Tally) -> None:
        """Take what one picture gave."""
        self.images += part.images
        self.unlabelled += part.unlabelled
        self.shown += part.shown
        self.pixels += part.pixels
        self.labelled |= part.labelled
        self.turned += part.turned
        self.problems += part.problems
        self.notes += part.notes


def check_dataset(root: Path, splits: Sequence[str] | None = None) -> CheckReport:
    """Read every picture, mask and image-level label of the given lists (default: all lists).

    Raises: DataError: the folder is not in VOC layout or its classes.txt is unusable, so that nothing can be read.
    """
    dataset, tally = VocDataset.open(root), _Tally()
    sizes = {name: _ids(dataset, name, tally) for name in (dataset.splits if splits is None else splits)}
    if not sizes:
        tally.problems.append(
            f"{root / 'ImageSets/Segmentation'}: no list; expected train.txt and val.txt. "
            f"`tsss-edge data import folders {root} --val 0.2 --out DIR` makes a set with lists"
        )
    strict = {i for name in FULL_SPLITS for i in sizes.get(name, ())}
    for name in FULL_SPLITS:
        if both := set(sizes.get("train", ())) & set(sizes.get(name, ())):
            tally.notes.append(
                f"{len(both)} pictures stand in train and in {name}: {named(sorted(both))}; results on them mean little"
            )
    every = list(dict.fromkeys(i for ids in sizes.values() for i in ids))
    labels_fine = _check_table(dataset, tally)

    def check(image_id: str) -> _Tally:
        part = _Tally()
        _check_image(dataset, image_id, part, needs_mask=image_id in strict, labels_fine=labels_fine)
        return part

    with progress("checking", len(every)) as advance:
        for part in in_order(check, every, threads=usable_cores()):
            tally.add(part)
            advance()
    _check_values(dataset, tally, whole=splits is None and bool(every))
    _note_the_unlisted(dataset, set(every), tally, whole=splits is None)
    return _report(dataset, sizes, tally)


def _check_values(dataset: VocDataset, tally: _Tally, *, whole: bool) -> None:
    """What the masks hold, taken together: 0/255 masks and classes that never occur, each with the line that mends it."""
    found = set(np.flatnonzero(tally.pixels).tolist())
    if found == {0, IGNORE} and not tally.labelled:
        tally.problems.append(
            f"{dataset.root}: masks hold 0 and 255 only, so every object is ignored; if 255 is the object: "
            f"`tsss-edge data import folders {dataset.root} --out DIR`"
        )
    absent = [i for i in range(len(dataset.classes)) if i not in found and i not in tally.labelled]
    # A list of some pictures, or VOC's names where the set has none of its own, promise nothing about each class.
    if whole and found and absent and (dataset.root / "classes.txt").is_file():
        names = ", ".join(dataset.classes.names[i] for i in absent)
        tally.problems.append(
            f"{dataset.root / 'classes.txt'}: no pixel of {names}; leave the class out with `tsss-edge data import folders "
            f"{dataset.root} --classes FILE --out DIR`, or add pictures that show it"
        )
    if tally.turned:
        tally.problems.append(
            f"{len(tally.turned)} pictures carry an EXIF turn that does not change their size, as {tally.turned[0]}: whether the "
            "mask was made before or after it nobody can tell; save them upright (for example with `exiftran -ai FILE`)"
        )


def _note_the_unlisted(dataset: VocDataset, listed: set[str], tally: _Tally, *, whole: bool) -> None:
    unlisted = [p.name for p in pictures_below(dataset.root / "JPEGImages") if p.stem not in listed] if whole else []
    unlisted = [name for name in unlisted if Path(name).stem not in {Path(i).name for i in listed}]
    if unlisted:
        tally.notes.append(f"{len(unlisted)} pictures stand in no list and are not used: {named(unlisted)}")
    others = [p.name for p in (dataset.root / "JPEGImages").iterdir() if p.is_file() and not is_picture(p)]
    if others:
        tally.notes.append(f"{len(others)} files in JPEGImages are no pictures and are not used: {named(others)}")


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
        values={int(value): int(tally.pixels[value]) for value in np.flatnonzero(tally.pixels)},
        notes=tuple(tally.notes),
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
        if labelled:
            tally.labelled |= dataset.image_labels(image_id)
        if not dataset.mask_path(image_id).is_file() and labelled and not needs_mask:
            tally.unlabelled += 1
            return
        _count(dataset, image_id, tally)
        counts = np.bincount(dataset.mask(image_id).ravel(), minlength=IGNORE + 1)
        _note_turn(dataset, image_id, tally)
    except DataError as error:
        tally.problems.append(str(error))
        return
    if labelled:
        _check_label(dataset, image_id, counts, tally)


def _count(dataset: VocDataset, image_id: str, tally: _Tally) -> None:
    """Count the values of a mask, known or not: the histogram shows what `mask` refuses. Raises: DataError: unreadable."""
    path = dataset.mask_path(image_id)
    if path.is_file():
        counts = np.bincount(read_mask(path).ravel(), minlength=IGNORE + 1)
        tally.pixels += counts
        tally.shown += counts > 0


def _note_turn(dataset: VocDataset, image_id: str, tally: _Tally) -> None:
    path = dataset.image_path(image_id)
    if orientation(path) != 1 and read_size(path) == read_size(path, upright=True):
        tally.turned.append(path.name)


def _has_label(dataset: VocDataset, image_id: str) -> bool:
    """Whether an image-level label stands somewhere else than in the mask. Raises: DataError: an unreadable annotation."""
    xml = place(dataset.root / "Annotations", image_id, ".xml")
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
