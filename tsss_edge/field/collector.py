"""Frames as they come -> those worth labelling, one a period, in a folder with a budget.

Of each period (an hour over the rate) one frame is kept: first those that show why drift is raised, then those with an unknown
object, among them the one with the highest entropy times distance to all kept before (greedy k-centre on features, Sener and
Savarese, arXiv 1708.00489). What resembles a kept one is passed over. A period's best so far is on disk at once and replaced by
a better one, so a kill loses nothing that was chosen.
"""
# Letters: C features, N kept.

from __future__ import annotations

import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.disk import held
from tsss_edge.errors import DataError
from tsss_edge.field.kept import UNKNOWN, Entry, KeptFrames, packed, seen_classes, unpacked

LOG = logging.getLogger("tsss_edge")
NEAR = 0.02  # cosine distance below which two pictures show the same; measured, see docs/results/loop.md
GRID = 4  # cells a side that answers are pooled to, where the engine gives no features
UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class CollectPlan:
    """Where, how much and how often. `budget` bytes, `period_s` between two frames."""

    folder: Path
    budget: int
    period_s: float

    @classmethod
    def parse(cls, folder: Path, budget: str, rate: str) -> CollectPlan:
        """`2GiB`, `10/h` -> a plan. Raises: DataError: not of this form."""
        return cls(folder, parse_bytes(budget), parse_period_s(rate))


def parse_bytes(text: str) -> int:
    """`500MiB` -> bytes. Raises: DataError: not a positive number with one of the units."""
    found = re.fullmatch(r"([0-9.]+) ?([A-Za-z]*)", text.strip())
    if found is None or found[2] not in UNITS or not _positive(found[1]):
        raise DataError(f"budget {text!r}: expected a number and a unit, as 500MiB or 2GiB")
    return int(float(found[1]) * UNITS[found[2]])


def parse_period_s(text: str) -> float:
    """`10/h` -> seconds between two frames. Raises: DataError: not a positive number over s, min, h or d."""
    count, _, unit = text.strip().partition("/")
    if unit not in PERIODS or not _positive(count):
        raise DataError(f"rate {text!r}: expected frames over a time, as 10/h, 2/min or 100/d")
    return PERIODS[unit] / float(count)


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


class CollectStatus(Struct, frozen=True):
    """How full the folder is, in bytes."""

    frames: int
    bytes: int
    budget: int
    disk_free: int


@dataclass(frozen=True)
class Offered:
    """A frame that might be kept. `image` (H,W,3) uint8 BGR and `labels` (H,W) are copied only if it is."""

    at_s: float
    frame: int
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    features: NDArray[np.floating]  # (C,)
    unknown: float
    entropy: float
    drift: bool = False
    engine: str = ""  # that answered; "": the one that the collector was opened for


class Collector:
    """Offer it frames in order. `wait`: of a file nothing is lost to a busy disk; of a camera the loop goes on.

    Args: features: "encoder" or "answers", see `KeptFrames`.
    """

    def __init__(
        self, plan: CollectPlan, classes: Classes, *, features: str, source: str, engine: str, wait: bool
    ) -> None:
        """Raises: BusyError: another process collects into this folder. DataError: as `KeptFrames`."""
        self._plan, self._wait, self._source, self._engine = plan, wait, source, engine
        self._lock = ExitStack()
        self._lock.enter_context(held(plan.folder, f"{plan.folder}: this folder of collected frames"))
        try:
            self.kept = KeptFrames(plan.folder, classes, features=features)
        except BaseException:
            self._lock.close()
            raise
        self._vectors = {i: unpacked(e.features) for i, e in self.kept.entries.items() if e.features}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collector")
        self._writing: Future[None] | None = None
        self._started = datetime.now(timezone.utc)
        self._period = -1
        self._best: tuple[str, tuple[bool, bool, float]] | None = None  # of the period at hand: its id and rank
        self._first_s: float | None = None
        self.full = False

    def offer(self, seen: Offered) -> bool:
        """Keep the frame if it is the best of its period so far. Returns whether it was kept.

        Raises: what writing raised: DataError, OSError.
        """
        self._turn(seen.at_s)
        vector = unit(seen.features)
        distance = self._distance(vector)
        rank = (seen.drift, seen.unknown >= UNKNOWN, seen.entropy * distance)
        if self.full or distance < NEAR or (self._best is not None and rank <= self._best[1]) or not self._free():
            return False
        before = self._best[0] if self._best is not None else None
        image_id = f"{self._started:%Y%m%dT%H%M%S}-{seen.frame:07d}"
        entry = self._entry(seen, vector, distance, rank[2])
        self._best = (image_id, rank)
        if before is not None:
            self._vectors.pop(before, None)
        self._vectors[image_id] = vector
        self._writing = self._thread.submit(self._keep, image_id, seen.image.copy(), seen.labels.copy(), entry, before)
        return True

    @property
    def status(self) -> CollectStatus:
        """As of now."""
        free = shutil.disk_usage(self._plan.folder).free
        entries = list(self.kept.entries.values())
        total = sum(entry.size for entry in entries)
        return CollectStatus(frames=len(entries), bytes=total, budget=self._plan.budget, disk_free=free)

    def close(self) -> None:
        """Finish what is being written. Safe to call twice."""
        self._thread.shutdown()
        self._lock.close()
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _turn(self, at_s: float) -> None:
        """Begin the period in which `at_s` lies."""
        self._first_s = at_s if self._first_s is None else self._first_s
        period = int((at_s - self._first_s) / self._plan.period_s)
        if period != self._period:
            self._period, self._best = period, None

    def _distance(self, vector: NDArray[np.float32]) -> float:
        """Cosine distance to the nearest kept one, but the one it would replace; 1 where there is none."""
        own = self._best[0] if self._best is not None else None
        others = [v for i, v in self._vectors.items() if i != own and len(v) == len(vector)]
        return float(1 - (np.stack(others) @ vector).max()) if others else 1.0

    def _free(self) -> bool:
        """Whether the thread can write; raises what it raised before."""
        if self._writing is None:
            return True
        if not self._wait and not self._writing.done():
            return False
        writing, self._writing = self._writing, None
        writing.result()
        self._vectors = {i: vector for i, vector in self._vectors.items() if i in self.kept.entries}
        return True

    def _entry(self, seen: Offered, vector: NDArray[np.float32], distance: float, score: float) -> Entry:
        return Entry(
            at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            source=self._source,
            frame=seen.frame,
            engine=seen.engine or self._engine,
            classes=seen_classes(seen.labels, self.kept.classes),
            unknown=round(seen.unknown, 5),
            entropy=round(seen.entropy, 5),
            distance=round(distance, 5),
            score=round(score, 6),
            size=0,
            features=packed(vector),
            drift=seen.drift,
        )

    def _keep(
        self,
        image_id: str,
        image: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        entry: Entry,
        before: str | None,
    ) -> None:
        """On the thread: the new one first, then the one that it replaces goes."""
        try:
            self.kept.add(image_id, image, labels, entry)
            if before is not None and before not in self.kept.reviewed():
                self.kept.drop([before])
            if not self.kept.make_room(self._plan.budget):
                self.full = True
                LOG.warning("%s: the budget is full of labelled pictures; nothing more is collected", self.kept.root)
        except OSError as error:
            raise DataError(f"{self.kept.root}: cannot be written ({error.strerror or error})") from error


def unit(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """(C,) of length 1."""
    flat = vector.astype(np.float32).ravel()
    length = max(float(np.linalg.norm(flat)), 1e-9)
    return np.asarray(flat / length, np.float32)


def pooled_features(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """(C,h,w) of an encoder -> (C,) means."""
    means: NDArray[np.float32] = features.astype(np.float32).mean(axis=(1, 2))
    return means


def answer_features(labels: NDArray[np.uint8], image: NDArray[np.uint8], num_classes: int) -> NDArray[np.float32]:
    """Where an engine gives no features: shares of the classes and mean colours of GRID x GRID parts of the frame."""
    import cv2

    small = cv2.resize(labels, (8 * GRID, 8 * GRID), interpolation=cv2.INTER_NEAREST)
    cells = small.reshape(GRID, 8, GRID, 8).transpose(0, 2, 1, 3).reshape(GRID * GRID, 64)
    shares = (cells[:, :, None] == np.arange(num_classes)).mean(axis=1)
    colours = cv2.resize(image, (GRID, GRID), interpolation=cv2.INTER_AREA).reshape(GRID * GRID, 3) / 255.0
    both: NDArray[np.float32] = np.concatenate([shares.ravel(), colours.ravel() - 0.5]).astype(np.float32)
    return both
