"""Pictures and masks -> a folder in VOC layout, every file atomic, the lists last."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes
from tsss_edge.data.voc import write_mask
from tsss_edge.errors import DataError
from tsss_edge.files import write_bytes, write_json

JPEG_QUALITY = 92
RECIPE = "recipe.json"  # how a set of ours was made; says that its folder may be written again


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
        """Enter a picture that is on disk already: the ids in its mask become its image-level label."""
        self.labels[image_id] = ids & set(self.classes.objects)
        self.splits.setdefault(split, []).append(image_id)

    def finish(self) -> None:
        """Write classes.txt and image_labels.csv, then the lists: a set with lists is whole."""
        write_bytes(self.root / "classes.txt", ("\n".join(self.classes.names) + "\n").encode())
        write_bytes(self.root / "image_labels.csv", labels_csv(self.labels))
        for split, ids in self.splits.items():
            write_bytes(self.root / f"ImageSets/Segmentation/{split}.txt", ("\n".join(ids) + "\n").encode())


def claim(root: Path, recipe: Mapping[str, Any]) -> None:
    """Make `root` the folder of the set with this recipe. Raises: DataError: it holds something else."""
    note = root / RECIPE
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file; name a folder to make")
    if root.is_dir() and any(root.iterdir()):
        if not note.is_file():
            raise DataError(f"{root}: is not empty and not a set made here; name a new or empty folder")
        found = _read_recipe(note)
        if found != msgspec.to_builtins(dict(recipe)):
            raise DataError(f"{root}: holds another set ({found}, wanted {dict(recipe)}); name another folder")
    write_json(note, dict(recipe))


def _read_recipe(note: Path) -> Any:
    try:
        return msgspec.json.decode(note.read_bytes())
    except msgspec.DecodeError as error:
        raise DataError(f"{note}: not readable ({error}); delete the folder and make the set again") from error


def write_pair(root: Path, image_id: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """JPEGImages/ID.jpg (quality 92) and SegmentationClass/ID.png of a set, each atomically."""
    done, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, "OpenCV could not encode a JPEG"
    write_bytes(root / f"JPEGImages/{image_id}.jpg", jpeg.tobytes())
    write_mask(root / f"SegmentationClass/{image_id}.png", mask)


def labels_csv(labels: Mapping[str, frozenset[int]]) -> bytes:
    """`image_labels.csv`: id, class ids apart by blanks."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("id", "classes"))
    rows.writerows((image_id, " ".join(str(i) for i in sorted(ids - {IGNORE}))) for image_id, ids in labels.items())
    return text.getvalue().encode()
