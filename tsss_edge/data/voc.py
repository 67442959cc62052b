"""A folder in PASCAL VOC layout -> pictures, masks, image-level labels, each checked when it is read.

JPEGImages/ID.jpg|png, SegmentationClass/ID.png (index PNG, 255 = ignore), ImageSets/Segmentation/SPLIT.txt; optional
classes.txt (else the 21 VOC names; a first line other than "background" says that the set has none), `image_labels.csv`
(id, class ids) and Annotations/ID.xml for image-level labels.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.artifacts import IGNORE, Classes, voc_color
from tsss_edge.data.ids import ImageId, check_id, place
from tsss_edge.data.pictures import (
    IMAGE_SUFFIXES,
    orientation,
    read_image,
    read_mask,
    read_size,
    upright_fits,
)
from tsss_edge.disk import atomic_path, is_empty, settle_all
from tsss_edge.errors import DataError
from tsss_edge.files import edge, parse_json, read_bytes, write_bytes, write_json

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

JPEG_QUALITY = 92
RECIPE = "recipe.json"  # how a set of ours was made; says that its folder may be written again
PALETTE = bytes(value for i in range(256) for value in voc_color(i))  # RGB of each id, for viewing


@dataclass(frozen=True)
class VocDataset:
    """One dataset folder. Ids are file names without suffix. Open it with `VocDataset.open`."""

    root: Path
    classes: Classes

    @classmethod
    def open(cls, root: Path) -> VocDataset:
        """Open the dataset at `root`. Raises: DataError: no such folder, or it is not in VOC layout."""
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; expected a dataset in PASCAL VOC layout")
        for folder in ("JPEGImages", "ImageSets/Segmentation"):
            if not (root / folder).is_dir():
                from tsss_edge.data.importers.recognise import import_line

                line = import_line(root)
                remedy = f"make such a set with `{line}`" if line else "see `tsss-edge data import --help`"
                raise DataError(f"{root}: no folder {folder}; expected PASCAL VOC layout; {remedy}")
        return cls(root=root, classes=read_classes(root))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the lists in ImageSets/Segmentation, sorted."""
        return tuple(sorted(p.stem for p in (self.root / "ImageSets/Segmentation").glob("[!.]*.txt")))

    def ids(self, split: str) -> tuple[ImageId, ...]:
        """Image ids of a split, in the list's order. Raises: DataError: no such list, empty, or with repeats."""
        path = self.root / "ImageSets/Segmentation" / f"{split}.txt"
        if not path.is_file():
            raise DataError(f"{path}: no such split; this set has {', '.join(self.splits) or 'none'}")
        return read_ids(path)

    def image_path(self, image_id: str) -> Path:
        """Path of a picture. Raises: DataError: there is none."""
        stem = place(self.root / "JPEGImages", image_id, "")
        for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES)):  # cameras write .JPG
            path = stem.with_name(f"{stem.name}{suffix}")
            if path.is_file():
                return path
        raise DataError(
            f"{self.root / 'JPEGImages' / image_id}: no picture of that name (.jpg, .png, .webp, .tif, ...)"
        )

    def mask_path(self, image_id: str) -> Path:
        """Where the mask of an image is, or would be."""
        return place(self.root / "SegmentationClass", image_id, ".png")

    def masked(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Those of `ids` that have a mask, in their order."""
        return tuple(i for i in ids if self.mask_path(i).is_file())

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """The picture: (H,W,3) uint8 RGB, turned as EXIF says unless its mask was made on the stored pixels.

        Raises: DataError: missing, truncated or not a picture.
        """
        path = self.image_path(image_id)
        return read_image(path, upright=self._upright(path, image_id))

    def image_hw(self, image_id: str) -> tuple[int, int]:
        """(height, width) of what `image` gives. Raises: DataError: as `image`."""
        path = self.image_path(image_id)
        return read_size(path, upright=self._upright(path, image_id))

    def _upright(self, path: Path, image_id: str) -> bool:
        """Whether to turn: nothing to turn is told by the picture alone, so that its mask stays closed."""
        if orientation(path) == 1:
            return False
        mask = self.mask_path(image_id)
        return not mask.is_file() or upright_fits(path, read_size(mask))

    def mask(self, image_id: str) -> NDArray[np.uint8]:
        """The mask: (H,W) uint8 class ids, 255 = ignore.

        Raises: DataError: missing, not an index PNG, of another size than the picture, or with an unknown class id.
        """
        path = self.mask_path(image_id)
        if not path.is_file():
            raise DataError(f"{path}: image {image_id} has no mask; add it or take the id off the list")
        mask = read_mask(path)
        height, width = self.image_hw(image_id)
        if mask.shape != (height, width):
            raise DataError(f"{path}: mask is {mask.shape[1]}x{mask.shape[0]}, its picture {width}x{height}")
        ids = mask[mask != IGNORE]
        if ids.size and int(ids.max()) >= len(self.classes):
            raise DataError(
                f"{path}: class id {int(ids.max())}, but the set has ids 0 to {len(self.classes) - 1} (and {IGNORE} = ignore); "
                f"name all classes in {self.root / 'classes.txt'}, a line each"
            )
        return mask

    def image_labels(self, image_id: str) -> frozenset[int]:
        """Object classes in the picture, from image_labels.csv, else Annotations/, else the mask (background left out)."""
        if image_id in self.label_table:
            return self.label_table[image_id]
        xml = place(self.root / "Annotations", image_id, ".xml")
        if xml.is_file():
            return self._labels_from_xml(xml)
        return frozenset(int(i) for i in np.unique(self.mask(image_id)) if i in self.classes.objects)

    @cached_property
    def label_table(self) -> dict[str, frozenset[int]]:
        """Image id -> object classes, from image_labels.csv; empty without one. Raises: DataError: a line is unusable."""
        path = self.root / "image_labels.csv"
        if not path.is_file():
            return {}
        rows = read_csv(path)
        table: dict[str, frozenset[int]] = {}
        for number, row in enumerate(rows, start=1):
            if number == 1 and not all(word.isdigit() for cell in row[1:] for word in cell.split()):
                continue  # the head of the table, `id,classes`
            try:
                image_id, ids = row
                labels = frozenset(int(i) for i in ids.split())
            except ValueError as error:
                raise DataError(f"{path}, line {number}: expected `id,class ids`, got {','.join(row)!r}") from error
            if not labels <= set(self.classes.objects):
                raise DataError(
                    f"{path}, line {number}: class id outside {self.classes.objects[0]}-{self.classes.objects[-1]}"
                )
            table[check_id(image_id, f"{path}, line {number}")] = labels
        return table

    def _labels_from_xml(self, path: Path) -> frozenset[int]:
        names = {e.text or "" for e in read_xml(path, "VOC annotation").iterfind("object/name")}
        try:
            return frozenset(self.classes.ids(sorted(names)))
        except ValueError as error:
            raise DataError(f"{path}: not a VOC annotation of this set: {error}") from error

    def split_hash(self, split: str) -> str:
        """SHA-256 over ids, picture bytes and mask bytes of a split: what a result was measured on."""
        digest = hashlib.sha256()
        for image_id in self.ids(split):
            digest.update(image_id.encode() + b"\n")
            for path in (self.image_path(image_id), self.mask_path(image_id)):
                if path.is_file():
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def read_text(path: Path) -> str:
    """A list of a set: UTF-8, with or without the byte order mark that Windows puts first. Raises: DataError: not UTF-8."""
    data = read_bytes(path, "text file", DataError)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a table. Raises: DataError: not UTF-8, or a cell that no table holds."""
    with edge(path, "CSV table", "expected lines as `name,classes`", DataError):
        return list(csv.reader(read_text(path).splitlines()))


def read_xml(path: Path, what: str) -> ElementTree.Element:
    """The root of an XML file. Raises: DataError: missing, damaged, or of an unknown encoding."""
    with edge(path, what, "export it again", DataError):
        return ElementTree.parse(path).getroot()


def read_ids(path: Path) -> tuple[ImageId, ...]:
    """A list of image ids, one a line. Raises: DataError: empty, an id twice, or no plain name (`check_id`)."""
    ids = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not ids:
        raise DataError(f"{path}: the list is empty; expected one image id a line")
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: an id stands there twice; every image may be listed once")
    return tuple(check_id(image_id, str(path)) for image_id in ids)


def read_classes(root: Path) -> Classes:
    """Class names of a set from its classes.txt, else VOC's. Raises: DataError: unusable list."""
    path = root / "classes.txt"
    if not path.is_file():
        return Classes(names=VOC_NAMES)
    return classes_of(path)


def classes_of(path: Path) -> Classes:
    """Class names of a text file, one a line, id 0 first. Raises: DataError: missing or unusable."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected class names, one a line, id 0 first")
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    try:
        return Classes(names=names, background=bool(names) and is_background(names[0]))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def is_background(name: str) -> bool:
    """Whether a class's name says background, as tools write it: `background`, `_background_`, `Background`."""
    return name.strip("_").lower() == "background"


def write_mask(path: Path, mask: NDArray[np.uint8], *, durable: bool = False) -> None:
    """Write (H,W) uint8 ids as an index PNG with the VOC colour map, atomically.

    durable: as `atomic_path`; a set has many, and is settled as a whole before its lists are written.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a mask is (H,W) uint8, got {mask.shape} {mask.dtype}")
    picture = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    picture.putpalette(PALETTE)
    with atomic_path(path, durable=durable) as temporary:
        picture.save(temporary, format="PNG")


def suggested_size_hw(dataset: VocDataset, *, limit: int = 512, sample: int = 64) -> tuple[int, int]:
    """A network input for a set: its pictures' median size in multiples of 32, the longer side at most `limit` (ours)."""
    if not dataset.splits:
        raise DataError(
            f"{dataset.root}: no list of pictures; expected ImageSets/Segmentation/train.txt and val.txt with an image id a line"
        )
    split = "train" if "train" in dataset.splits else dataset.splits[0]
    sizes = [dataset.image_hw(image_id) for image_id in dataset.ids(split)[:sample]]
    height, width = np.median(np.array(sizes), axis=0)
    ratio = min(1.0, limit / max(height, width))
    return max(32, round(height * ratio / 32) * 32), max(32, round(width * ratio / 32) * 32)


@dataclass
class SetWriter:
    """One set being written. Open it with `SetWriter.open`; `add` pictures; `finish` writes labels and lists."""

    root: Path
    classes: Classes
    labels: dict[str, frozenset[int]] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, classes: Classes, recipe: Mapping[str, Any]) -> SetWriter:
        """Start a set at `root`, which is absent, empty, or holds a set of the same recipe (as JSON).

        Raises: DataError: the folder holds something else.
        """
        claim(root, recipe)
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        return cls(root=root, classes=classes)

    def add(self, split: str, image_id: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
        """Write one picture, (H,W,3) uint8 RGB, and its mask, (H,W) uint8."""
        write_pair(self.root, image_id, image, mask)
        self.note(split, image_id, frozenset(int(i) for i in np.unique(mask)))

    def note(self, split: str, image_id: str, ids: frozenset[int]) -> None:
        """Add a picture that is on disk already. The ids in its mask become its image-level label."""
        self.labels[image_id] = ids & set(self.classes.objects)
        self.splits.setdefault(split, []).append(image_id)

    def finish(self) -> None:
        """Write classes.txt and image_labels.csv, then the lists, so that a set with lists is complete."""
        settle_all()
        write_bytes(self.root / "classes.txt", ("\n".join(self.classes.names) + "\n").encode())
        write_bytes(self.root / "image_labels.csv", labels_csv(self.labels))
        for split, ids in self.splits.items():
            write_bytes(self.root / f"ImageSets/Segmentation/{split}.txt", ("\n".join(ids) + "\n").encode())


def claim(root: Path, recipe: Mapping[str, Any]) -> None:
    """Make `root` the folder of the set with this recipe. Raises: DataError: it holds something else."""
    note = root / RECIPE
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file; name a folder to make")
    if not is_empty(root):
        if not note.is_file():
            raise DataError(f"{root}: is not empty and not a set made here; name a new or empty folder")
        found = _read_recipe(note)
        if found != msgspec.to_builtins(dict(recipe)):
            raise DataError(f"{root}: holds another set ({found}, wanted {dict(recipe)}); name another folder")
    write_json(note, dict(recipe))


def _read_recipe(note: Path) -> Any:
    with edge(note, "recipe", "delete the folder and make the set again", DataError):
        return parse_json(note.read_bytes())


def write_pair(root: Path, image_id: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """JPEGImages/ID.jpg (quality 92) and SegmentationClass/ID.png of a set, each atomically."""
    done, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, "OpenCV could not encode a JPEG"
    write_bytes(place(root / "JPEGImages", image_id, ".jpg"), jpeg.tobytes(), durable=False)
    write_mask(place(root / "SegmentationClass", image_id, ".png"), mask)


def labels_csv(labels: Mapping[str, frozenset[int]]) -> bytes:
    """`image_labels.csv`: id, class ids apart by blanks."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("id", "classes"))
    rows.writerows((image_id, " ".join(str(i) for i in sorted(ids - {IGNORE}))) for image_id, ids in labels.items())
    return text.getvalue().encode()
