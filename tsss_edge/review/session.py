"""A folder of collected frames -> image-level labels, one answer at a time; each is on disk before the page hears of it.

image_labels.csv holds the pictures that somebody confirmed. classes.txt grows when a new category is typed. An accepted answer of
the engine becomes SegmentationClass/ID.png; what was refused stands in review.json.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from tsss_edge.artifacts import IGNORE, Classes, Struct
from tsss_edge.data.ids import check_id
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.voc import VocDataset, labels_csv, write_mask
from tsss_edge.errors import DataError
from tsss_edge.field.kept import LABELS, MANIFEST, Manifest, seen_classes
from tsss_edge.files import read_json, write_bytes, write_json

NOTES = "review.json"
SPLIT = "train"
KEYS = 9
UNDO = 1000  # steps that can be taken back
MaskAnswer = Literal["", "accepted", "refused"]


class Shown(Struct, frozen=True):
    """One picture as the page shows it. Class ids; `predicted` is what the engine saw, `labels` what is toggled on."""

    id: str
    predicted: tuple[int, ...]
    labels: tuple[int, ...]
    done: bool
    mask: MaskAnswer
    has_mask: bool  # the engine's answer is there
    unknown: float


class ReviewState(Struct, frozen=True):
    """Everything the page needs. `order`: ids of the categories, the first nine on the keys 1 to 9."""

    names: tuple[str, ...]
    colours: tuple[str, ...]
    order: tuple[int, ...]
    pictures: tuple[Shown, ...]
    done: int
    per_hour: float | None  # confirmed pictures an hour, in this session
    can_undo: bool


class LabelAnswer(Struct, frozen=True):
    """What the page sends: the labels of a picture, whether they are confirmed, and what is said of its mask."""

    id: str
    labels: tuple[int, ...]
    done: bool
    mask: MaskAnswer = ""


class ReviewNotes(Struct, frozen=True):
    """review.json: masks that were accepted or refused, by picture."""

    masks: dict[str, MaskAnswer] = msgspec.field(default_factory=dict)
    format: int = 1


class ReviewSession:
    """The folder, opened. One at a time; a stream may collect into the folder meanwhile.

    Raises: DataError: no set in VOC layout, or no picture in its list.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._lock = threading.RLock()
        dataset = VocDataset.open(root)
        self._classes = dataset.classes
        self._labels = dict(dataset.label_table)
        notes = root / NOTES
        self._masks = dict(read_json(notes, ReviewNotes).masks) if notes.is_file() else {}
        self._undo: deque[tuple[str, frozenset[int] | None, MaskAnswer]] = deque(maxlen=UNDO)
        self._confirmed_at: list[float] = []
        self._predicted: dict[str, tuple[int, ...]] = {}
        self._order = self._most_frequent()

    def state(self) -> ReviewState:
        """As of now; the most useful pictures first, as the collector ranked them."""
        with self._lock:
            manifest = self._manifest()
            ids = VocDataset(self._root, self._classes).ids(SPLIT)
            last = (False, False, -1.0)
            rank = {i: entry.rank for i, entry in manifest.pictures.items()}
            ids = tuple(sorted(ids, key=lambda i: rank.get(i, last), reverse=True))
            pictures = tuple(self._shown(i, manifest) for i in ids)
            times = self._confirmed_at
            span = times[-1] - times[0] if len(times) > 1 else 0.0
            return ReviewState(
                names=self._classes.names,
                colours=tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in self._classes.palette),
                order=self._order,
                pictures=pictures,
                done=sum(picture.done for picture in pictures),
                per_hour=round(3600 * (len(times) - 1) / span, 1) if span > 0 else None,
                can_undo=bool(self._undo),
            )

    def answer(self, given: LabelAnswer) -> Shown:
        """Take an answer and write it. Raises: DataError: no such picture or category, or the mask contradicts the labels."""
        with self._lock:
            image_id = self._known(given.id)
            labels = frozenset(given.labels)
            if not labels <= set(self._classes.objects):
                raise DataError(f"{image_id}: unknown category in {sorted(labels)}; reload the page")
            if given.mask == "accepted":
                self._require_agreement(image_id, labels)
            before = self._labels.get(image_id)
            self._undo.append((image_id, before, self._masks.get(image_id, "")))
            if given.done and before is None:
                self._confirmed_at.append(self._clock())
            self._put(image_id, labels if given.done else None, given.mask)
            return self._shown(image_id, self._manifest())

    def undo(self) -> str | None:
        """Take the last answer back -> its picture; None when there is none."""
        with self._lock:
            if not self._undo:
                return None
            image_id, labels, mask = self._undo.pop()
            self._put(image_id, labels, mask)
            return image_id

    def add_category(self, name: str) -> int:
        """The id of a category of this name, which is new or there already. Raises: DataError: not a usable name."""
        name = " ".join(name.split())
        if not name or any(ord(c) < 32 for c in name):
            raise DataError("a category needs a name of printable characters")
        with self._lock:
            if name in self._classes.names:
                if (found := self._classes.names.index(name)) not in self._classes.objects:
                    raise DataError(f"{name!r} is the background; give a category")
                return found
            try:
                self._classes = Classes(names=(*self._classes.names, name), background=self._classes.background)
            except ValueError as error:
                raise DataError(str(error)) from error
            write_bytes(self._root / "classes.txt", ("\n".join(self._classes.names) + "\n").encode())
            new_id = len(self._classes) - 1
            place = min(KEYS - 1, len(self._order))  # it gets a key at once
            self._order = (*self._order[:place], new_id, *self._order[place:])
            return new_id

    def picture(self, image_id: str) -> Path:
        """The file of a picture. Raises: DataError: there is none."""
        return VocDataset(self._root, self._classes).image_path(check_id(image_id, str(self._root)))

    def mask_path(self, image_id: str) -> Path | None:
        """The engine's answer for a picture; None without one."""
        path = self._root / f"Prelabels/{self._known(image_id)}.png"
        return path if path.is_file() else None

    @property
    def classes(self) -> Classes:
        return self._classes

    def _known(self, image_id: str) -> str:
        """The id. Raises: DataError: there is no such picture (a stream that collects may have replaced it)."""
        self.picture(image_id)
        return image_id

    def _manifest(self) -> Manifest:
        path = self._root / MANIFEST
        return read_json(path, Manifest) if path.is_file() else Manifest()

    def _shown(self, image_id: str, manifest: Manifest) -> Shown:
        entry = manifest.pictures.get(image_id)
        predicted = entry.classes if entry is not None else ()
        labels = self._labels.get(image_id)
        return Shown(
            id=image_id,
            predicted=predicted,
            labels=predicted if labels is None else tuple(sorted(labels)),
            done=labels is not None,
            mask=self._masks.get(image_id, ""),
            has_mask=(self._root / f"Prelabels/{image_id}.png").is_file(),
            unknown=entry.unknown if entry is not None else 0.0,
        )

    def _most_frequent(self) -> tuple[int, ...]:
        counts = Counter(i for entry in self._manifest().pictures.values() for i in entry.classes)
        counts.update(i for labels in self._labels.values() for i in labels)
        return tuple(sorted(self._classes.objects, key=lambda i: (-counts[i], i)))

    def _require_agreement(self, image_id: str, labels: frozenset[int]) -> None:
        path = self.mask_path(image_id)
        if path is None:
            raise DataError(f"{image_id}: the engine gave no mask that could be accepted")
        if self._mask_of_set(image_id).is_file() and not self._accepted(image_id):
            raise DataError(
                f"{image_id}: has a mask of the set, which an accepted one would replace; label it without one"
            )
        seen = set(seen_classes(read_mask(path), self._classes))
        if seen != labels:
            shown, named = (
                ", ".join(self._classes.names[i] for i in sorted(ids)) or "nothing" for ids in (seen, labels)
            )
            raise DataError(f"the mask shows {shown}, the labels name {named}; accept it only where both agree")

    def _mask_of_set(self, image_id: str) -> Path:
        return self._root / f"SegmentationClass/{image_id}.png"

    def _accepted(self, image_id: str) -> bool:
        """Whether the picture's mask was put there by an answer."""
        return self._masks.get(image_id) == "accepted"

    def _put(self, image_id: str, labels: frozenset[int] | None, mask: MaskAnswer) -> None:
        """Write notes, mask and labels, the labels last: a kill leaves no accepted mask that the notes do not know. An accepted mask
        that its labels no longer fit is withdrawn; one that the set came with is never touched."""
        if mask == "accepted" and labels is None:
            mask = ""
        masks, rows = {**self._masks, image_id: mask}, {**self._labels, image_id: labels}
        if mask == "accepted" and labels is not None:
            path = self.mask_path(image_id)
            assert path is not None
            answer = read_mask(path)
            named = np.isin(answer, [0, *labels]) if self._classes.background else np.isin(answer, list(labels))
            self._write_notes(masks)
            write_mask(self._mask_of_set(image_id), np.where(named, answer, np.uint8(IGNORE)))
        else:
            if self._accepted(image_id):
                self._mask_of_set(image_id).unlink(missing_ok=True)
            self._write_notes(masks)
        known = {i: found for i, found in rows.items() if found is not None}
        write_bytes(self._root / LABELS, labels_csv(known))
        self._masks, self._labels = masks, known  # what could not be written was not answered

    def _write_notes(self, masks: dict[str, MaskAnswer]) -> None:
        write_json(self._root / NOTES, ReviewNotes(masks={i: m for i, m in masks.items() if m}))
