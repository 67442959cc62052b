"""A folder of frames that wait for labels: VOC layout, the engine's own answers beside it, and a manifest.

JPEGImages/ID.jpg, Prelabels/ID.png (what the engine said: never a truth), ImageSets/Segmentation/train.txt, classes.txt,
manifest.json. Review adds image_labels.csv, and SegmentationClass/ID.png of answers that somebody accepted.
Every file is written whole. A picture without an entry (killed in between) is taken up again when the folder is opened.
"""
# Letters: N pictures, C features.

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from pathlib import Path

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.data.ids import place
from tsss_edge.data.voc import classes_of, read_text, write_mask
from tsss_edge.disk import is_empty
from tsss_edge.errors import DataError
from tsss_edge.files import read_json, write_bytes, write_json

LOG = logging.getLogger("tsss_edge")
JPEG_QUALITY = 95
MANIFEST = "manifest.json"
LIST = "ImageSets/Segmentation/train.txt"
LABELS = "image_labels.csv"
LEAST_AREA = 0.01  # share of the frame below which a category counts as a speck
UNKNOWN = 0.02  # share of cells from which a frame counts as one with an unknown object


class Entry(Struct, frozen=True):
    """Why a picture was kept. Figures are those of `field/figures.py`, 0-1; `size` is bytes on disk."""

    at: str  # UTC, ISO 8601
    source: str
    frame: int
    engine: str
    classes: tuple[int, ...]  # ids in the engine's answer, background left out
    unknown: float  # share of cells with an object of no class
    entropy: float
    distance: float  # of its features to the nearest picture kept before; 0: the same, 2: opposite
    score: float  # entropy times distance
    size: int
    features: str = ""  # (C,) float16, base64; compared by cosine
    drift: bool = False  # it shows why drift was raised

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The larger, the more useful a label is."""
        return self.drift, self.unknown >= UNKNOWN, self.score


class Manifest(Struct, frozen=True):
    """What is in the folder, by picture id."""

    features: str = ""  # "encoder" or "answers": what the distances are of
    pictures: dict[str, Entry] = msgspec.field(default_factory=dict)
    format: int = 1


class KeptFrames:
    """The folder, opened. One process writes at a time; a review beside it writes other files."""

    def __init__(self, root: Path, classes: Classes, *, features: str) -> None:
        """Open or make the folder.

        Raises: DataError: it holds frames for other classes, or something else than collected frames.
        """
        self.root, self.classes = root, classes
        manifest = root / MANIFEST
        if not manifest.is_file() and not is_empty(root):
            raise DataError(f"{root}: is not empty and holds no {MANIFEST}; collect into a new or empty folder")
        found = read_json(manifest, Manifest) if manifest.is_file() else Manifest(features=features)
        self.features = features
        self.entries = dict(found.pictures)
        if found.features != features:  # another kind of engine: old distances mean nothing to it
            self.entries = {i: msgspec.structs.replace(e, features="") for i, e in self.entries.items()}
        if not manifest.is_file():
            self.save()  # first, so that a run that is killed here leaves a folder that the next one knows
        self._claim_classes()
        self._take_up()
        self.save()

    def _claim_classes(self) -> None:
        path = self.root / "classes.txt"
        if not path.is_file():
            write_bytes(path, ("\n".join(self.classes.names) + "\n").encode())
        elif (names := classes_of(path).names)[: len(self.classes)] != self.classes.names:
            raise DataError(
                f"{self.root}: holds frames for the classes {', '.join(names[:4])}, ...; the engine has "
                f"{', '.join(self.classes.names[:4])}, ...; collect into another folder"
            )

    def _take_up(self) -> None:
        """Entries for pictures that have none, and no entry for pictures that are gone."""
        there = {path.stem: path for path in sorted((self.root / "JPEGImages").glob("*.jpg"))}
        self.entries = {i: entry for i, entry in self.entries.items() if i in there}
        for image_id in there.keys() - self.entries.keys():
            LOG.warning("%s: picture %s has no entry (a killed stream?); it is kept", self.root, image_id)
            self.entries[image_id] = Entry(
                at="", source="", frame=-1, engine="", classes=(), unknown=0.0, entropy=0.0, distance=0.0, score=0.0,
                size=self._size(image_id),
            )  # fmt: skip

    def add(self, image_id: str, image: NDArray[np.uint8], labels: NDArray[np.uint8], entry: Entry) -> None:
        """Write a picture, (H,W,3) uint8 BGR, and the engine's answer, (H,W) uint8; the entry comes last."""
        ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert ok
        write_mask(place(self.root / "Prelabels", image_id, ".png"), labels)
        write_bytes(place(self.root / "JPEGImages", image_id, ".jpg"), data.tobytes())
        self.entries[image_id] = msgspec.structs.replace(entry, size=self._size(image_id))
        self.save()

    def drop(self, image_ids: Iterable[str]) -> None:
        """Delete pictures: the entry first, so that no entry is without its picture."""
        gone = [i for i in image_ids if self.entries.pop(i, None) is not None]
        if gone:
            self.save()
        for image_id in gone:
            (place(self.root / "JPEGImages", image_id, ".jpg")).unlink(missing_ok=True)
            (place(self.root / "Prelabels", image_id, ".png")).unlink(missing_ok=True)

    def save(self) -> None:
        """Write manifest and list."""
        write_json(self.root / MANIFEST, Manifest(features=self.features, pictures=self.entries))
        write_bytes(self.root / LIST, "".join(f"{i}\n" for i in sorted(self.entries)).encode())

    @property
    def bytes(self) -> int:
        """Of pictures and answers."""
        return sum(entry.size for entry in self.entries.values())

    def reviewed(self) -> frozenset[str]:
        """Pictures that somebody has labelled; they are never dropped."""
        path = self.root / LABELS
        if not path.is_file():
            return frozenset()
        return frozenset(line.partition(",")[0] for line in read_text(path).splitlines()[1:])

    def make_room(self, budget: int) -> bool:
        """Drop what is least useful until the budget (bytes) holds: by the lowest rank, then the oldest.

        Returns: False when only labelled pictures are left and it still does not hold.
        """
        reviewed, total = self.reviewed(), self.bytes
        order = sorted(
            (i for i in self.entries if i not in reviewed),
            key=lambda i: (self.entries[i].rank, self.entries[i].at),
        )
        gone: list[str] = []
        for image_id in order:
            if total <= budget:
                break
            total -= self.entries[image_id].size
            gone.append(image_id)
        self.drop(gone)
        return total <= budget

    def _size(self, image_id: str) -> int:
        paths = (place(self.root / "JPEGImages", image_id, ".jpg"), place(self.root / "Prelabels", image_id, ".png"))
        return sum(path.stat().st_size for path in paths if path.is_file())


def seen_classes(labels: NDArray[np.uint8], classes: Classes) -> tuple[int, ...]:
    """Object categories that cover at least LEAST_AREA of an answer, (H,W) ids: specks are no prediction."""
    counts = np.bincount(labels.ravel(), minlength=256)
    return tuple(i for i in classes.objects if counts[i] >= LEAST_AREA * labels.size)


def packed(features: NDArray[np.floating]) -> str:
    """(C,) -> what an entry holds."""
    return base64.b64encode(features.astype(np.float16).tobytes()).decode()


def unpacked(text: str) -> NDArray[np.float32]:
    """What an entry holds -> (C,) float32."""
    return np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32)
