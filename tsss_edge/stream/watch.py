"""The loop checks itself while it runs: against the PyTorch reference, and against the truth where that is known."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, require_same_preprocess
from tsss_edge.backends import Backend, open_backend
from tsss_edge.errors import ArtifactError, GateError
from tsss_edge.metrics import agreement_counts, confusion, miou_of
from tsss_edge.segment import segment_image
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.recorder import Parity
from tsss_edge.stream.uris import parse_source

MIOU_FRAMES = 90  # what the shown mIoU looks back on: three seconds at 30 frames a second
NICENESS = 10  # of the reference's thread where threads have one (Linux): it takes what the loop leaves


def open_reference(path: Path, engine: Backend) -> Backend:
    """The checkpoint that an engine is compared with, on one CPU thread.

    Raises: ArtifactError: it has other classes or another preprocessing than the engine.
    """
    reference = open_backend(path, threads=1)
    require_same_preprocess(engine.preprocess, reference.preprocess, f"engine and reference {path}")
    if engine.classes != reference.classes:
        raise ArtifactError(
            f"{path}: other classes than the engine's; use the checkpoint that the engine was made from"
        )
    return reference


class ParityWatch:
    """Runs every n-th frame through the reference, on a thread of its own, and counts the labels that agree.

    Nobody waits for the reference: while it is busy, frames that are due are counted and passed over.
    """

    def __init__(self, reference: Backend, *, every: int, min_agreement: float | None = None) -> None:
        self._reference = reference
        self._every = every
        self._min_agreement = min_agreement
        self._changed = threading.Condition()
        self._job: tuple[NDArray[np.uint8], NDArray[np.uint8], int] | None = None  # BGR image, labels, frame index
        self._closed = False
        self._error: BaseException | None = None
        self._frames = self._due = self._same = self._pixels = self._checked = 0
        self._last: dict[str, Any] = {}
        self._worst: tuple[float, int] | None = None
        self._thread = threading.Thread(target=self._run, name="parity watch", daemon=True)
        self._thread.start()

    def offer(self, result: FrameResult) -> dict[str, Any]:
        """Take a copy of the frame if it is due -> the last verdict: {"agreement": 0-1, "frame": index}, empty before.

        Raises: GateError: an agreement was below `min_agreement`. And what the reference raised.
        """
        due = self._frames % self._every == 0
        self._frames += 1
        with self._changed:
            self._raise_error()
            if due:
                self._due += 1
                if self._job is None:
                    self._job = (result.frame.image.copy(), result.labels.copy(), result.frame.index)
                    self._changed.notify_all()
            return self._last

    def finish(self) -> None:
        """Wait for the check under way. Raises: as `offer`."""
        with self._changed:
            self._changed.wait_for(lambda: self._job is None or self._error is not None)
            self._raise_error()

    def close(self) -> None:
        """End the thread and let the reference go. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._reference.close()

    @property
    def verdict(self) -> Parity:
        """The sum of all checks so far."""
        with self._changed:
            low, frame = self._worst or (None, None)
            mean = self._same / self._pixels if self._pixels else None
            return Parity(agreement=mean, agreement_min=low, worst_frame=frame, checked=self._checked, due=self._due)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        _be_nice()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._job is not None)
                if self._closed or self._job is None:
                    return
                image, labels, index = self._job
            try:
                self._check(image, labels, index)
            except BaseException as error:  # for the loop's thread, at its next frame
                self._error = error
                return self._done()
            self._done()

    def _done(self) -> None:
        with self._changed:
            self._job = None
            self._changed.notify_all()

    def _check(self, image: NDArray[np.uint8], labels: NDArray[np.uint8], index: int) -> None:
        expected = segment_image(self._reference, image[..., ::-1])
        same, pixels = agreement_counts(labels, expected)
        agreement = same / pixels
        with self._changed:
            self._same, self._pixels, self._checked = self._same + same, self._pixels + pixels, self._checked + 1
            self._last = {"agreement": round(agreement, 6), "frame": index}
            self._worst = min(self._worst or (agreement, index), (agreement, index))
        if self._min_agreement is not None and agreement < self._min_agreement:
            raise GateError(
                f"frame {index}: {agreement:.4f} of the pixels agree with the reference, expected at least "
                f"{self._min_agreement:g}; stopped. Check the engine with `tsss-edge parity`"
            )


def _be_nice() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class LiveAccuracy:
    """mIoU (percent) against frames that bring their truth: of the whole stream, and of the last `MIOU_FRAMES`."""

    def __init__(self, num_classes: int) -> None:
        self._total = np.zeros((num_classes, num_classes + 1), np.int64)
        self._recent = np.zeros_like(self._total)
        self._ring = np.zeros((MIOU_FRAMES, *self._total.shape), np.int64)
        self._frames = 0

    def add(self, result: FrameResult) -> float:
        """Count a result, whose frame has a truth -> mIoU of the last frames."""
        assert result.frame.truth is not None
        counts = confusion(result.labels, result.frame.truth, len(self._total))
        oldest = self._ring[self._frames % MIOU_FRAMES]
        self._recent += counts - oldest
        oldest[...] = counts
        self._total += counts
        self._frames += 1
        return float(miou_of(self._recent))

    @property
    def miou(self) -> float | None:
        """Of the whole stream; None without a frame."""
        return float(miou_of(self._total)) if self._frames else None


class Checks:
    """What a stream is checked against: a reference, a truth, both or nothing."""

    def __init__(self, watch: ParityWatch | None = None, accuracy: LiveAccuracy | None = None) -> None:
        self._watch = watch
        self._accuracy = accuracy

    @classmethod
    def open(
        cls, engine: Backend, source: str, reference: Path | None, every: int, min_agreement: float | None
    ) -> Checks:
        """The parity watch where there is a `reference`, live mIoU where `source` has masks of the engine's classes."""
        watch = None
        if reference is not None:
            watch = ParityWatch(open_reference(reference, engine), every=every, min_agreement=min_agreement)
        return cls(watch, LiveAccuracy(len(engine.classes)) if _has_truth(source, engine.classes) else None)

    def add(self, result: FrameResult) -> dict[str, Any] | None:
        """Check a result -> {"agreement", "frame", "miou"} as far as they are known, None when nothing is."""
        verdict = dict(self._watch.offer(result)) if self._watch else {}
        if self._accuracy is not None and result.frame.truth is not None:
            verdict["miou"] = self._accuracy.add(result)
        return verdict or None

    def finish(self) -> None:
        """Wait for the check under way. Raises: GateError, and what the reference raised."""
        if self._watch is not None:
            self._watch.finish()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()

    @property
    def parity(self) -> Parity | None:
        return self._watch.verdict if self._watch else None

    @property
    def miou(self) -> float | None:
        """Percent, over the whole stream."""
        return self._accuracy.miou if self._accuracy else None


def _has_truth(source: str, classes: Classes) -> bool:
    if parse_source(source).scheme != "synthetic":
        return False
    from tsss_edge.data.synthetic import CLASSES

    return classes == CLASSES
