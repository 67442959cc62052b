"""A second engine beside the one in service: it sees frames when it has time, and its masks are compared."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes
from tsss_edge.backends import Backend
from tsss_edge.files import reason
from tsss_edge.metrics import confusion, miou_of
from tsss_edge.segment import segment_image
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.watch import be_nice

LOG = logging.getLogger("tsss_edge")
KEPT = 1000  # comparisons that percentiles look back on
NOBODY = 254  # label of a category that the other engine does not know


class Comparison(NamedTuple):
    """One frame that both engines saw."""

    same: int  # pixels
    both: int  # pixels of categories that both know
    pixels: int
    latency_ms: float
    age_ms: float


class ShadowWatch:
    """Offers frames to a back end of its own, on a thread of low priority. Nobody waits for it."""

    def __init__(self, other: Backend) -> None:
        self._other = other
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=be_nice)
        self._check: Future[Comparison] | None = None
        self._kept: deque[Comparison] = deque(maxlen=KEPT)
        self._counts: list[NDArray[np.int64]] | None = (
            None  # of the engine in service and of the other, against the truth
        )
        self.compared = self.failures = 0
        self.sum, self.lowest = 0.0, 1.0

    def offer(self, result: FrameResult, classes: Classes) -> bool:
        """Take a copy of the frame if the thread is free. Returns whether a comparison was finished since the last call.

        classes: of the engine that made `result`.
        """
        finished = self._check is not None and self._check.done()
        if finished:
            self._count()
        if self._check is None:
            frame = result.frame
            truth = frame.truth.copy() if frame.truth is not None else None
            self._check = self._thread.submit(
                self._compare, frame.image.copy(), result.labels.copy(), classes, frame.captured, truth
            )
        return finished

    def close(self) -> None:
        """Wait for the frame at hand, count it, and let the engine go. Safe to call twice."""
        self._thread.shutdown()
        if self._check is not None:
            self._count()
        self._other.close()

    @property
    def agreement(self) -> float | None:
        """Mean over the frames compared."""
        return self.sum / self.compared if self.compared else None

    def percentile(self, name: str, share: float) -> float | None:
        """Of a field of the last comparisons."""
        values = [getattr(one, name) for one in self._kept]
        return round(float(np.percentile(values, share)), 3) if values else None

    @property
    def beyond(self) -> float | None:
        """Share of pixels of a category that only one of the engines knows."""
        pixels = sum(one.pixels for one in self._kept)
        return round(1 - sum(one.both for one in self._kept) / pixels, 6) if pixels else None

    @property
    def mious(self) -> tuple[float | None, float | None]:
        """mIoU (percent) of the engine in service and of the other, on the frames with a truth."""
        if self._counts is None:
            return None, None
        service, other = (float(miou_of(counts)) for counts in self._counts)
        return service, other

    def _count(self) -> None:
        assert self._check is not None
        check, self._check = self._check, None
        if (error := check.exception()) is not None:
            if not self.failures:
                LOG.warning("the shadow fails, and is not compared on such frames: %s", reason(error))
            self.failures += 1
            return
        one = check.result()
        self._kept.append(one)
        agreement = one.same / one.both if one.both else 1.0
        self.compared, self.sum, self.lowest = self.compared + 1, self.sum + agreement, min(self.lowest, agreement)

    def _compare(
        self,
        image: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        classes: Classes,
        captured: float,
        truth: NDArray[np.uint8] | None,
    ) -> Comparison:
        """On the thread: (H,W,3) BGR, (H,W), (H,W) or None."""
        started = time.monotonic()
        found = segment_image(self._other, image[..., ::-1])
        now = time.monotonic()
        ours, theirs = (
            shared_labels(labels, classes, self._other.classes),
            shared_labels(found, self._other.classes, classes),
        )
        known = (ours != NOBODY) & (theirs != NOBODY)
        if truth is not None and classes == self._other.classes:
            pair = [confusion(mask, truth, len(classes)) for mask in (labels, found)]
            self._counts = pair if self._counts is None else [a + b for a, b in zip(self._counts, pair, strict=True)]
        return Comparison(
            same=int(np.count_nonzero((ours == theirs) & known)),
            both=int(np.count_nonzero(known)),
            pixels=known.size,
            latency_ms=1000 * (now - started),
            age_ms=1000 * (now - captured),
        )


def shared_labels(labels: NDArray[np.uint8], own: Classes, other: Classes) -> NDArray[np.uint8]:
    """Ids of `own` -> ids that both engines share: the place of the name among all names that both have, sorted.

    A category that `other` does not know becomes NOBODY, 255 stays.
    """
    names = sorted(set(own.names) & set(other.names))
    table = np.full(256, NOBODY, np.uint8)
    table[IGNORE] = IGNORE
    for i, name in enumerate(own.names):
        if name in names:
            table[i] = names.index(name)
    return table[labels]
