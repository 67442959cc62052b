"""The loop checks itself while it runs: against the PyTorch reference, and against the truth where that is known."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, require_same_preprocess
from tsss_edge.backends import Backend, open_backend
from tsss_edge.errors import ArtifactError, GateError
from tsss_edge.field.drift import DriftReport
from tsss_edge.metrics import agreement_counts, confusion, iou_of, miou_of
from tsss_edge.segment import segment_image
from tsss_edge.stream.field_watch import FieldWatch
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.recorder import Parity
from tsss_edge.stream.truth import Pair, TruthFolder
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
        raise ArtifactError(f"{path}: other classes than the engine's; use the checkpoint it was made from")
    return reference


class ParityWatch:
    """Runs every n-th frame through the reference, on a thread of its own, and counts the labels that agree.

    Nobody waits for the reference: while it is busy, frames that are due are counted and skipped.
    """

    def __init__(self, reference: Backend, *, every: int, min_agreement: float | None = None) -> None:
        self._reference = reference
        self._every = every
        self._min_agreement = min_agreement
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parity watch", initializer=be_nice)
        self._check: Future[tuple[int, int, int]] | None = None
        self._frames = self._due = self._same = self._pixels = self._checked = 0
        self._last: dict[str, Any] = {}
        self._worst: tuple[float, int] | None = None

    def offer(self, result: FrameResult) -> dict[str, Any]:
        """Take a copy of the frame if it is due. Returns the last verdict: {"agreement": 0-1, "frame": index}, or {}.

        Raises: GateError: an agreement was below `min_agreement`. And what the reference raised.
        """
        if self._check is not None and self._check.done():
            self._count(self._check)
        if result.classes not in (None, self._reference.classes):
            return self._last  # of another engine, which took over
        if self._frames % self._every == 0:
            self._due += 1
            if self._check is None:
                image, labels = result.frame.image.copy(), result.labels.copy()
                self._check = self._thread.submit(self._compare, image, labels, result.frame.index)
        self._frames += 1
        return self._last

    def finish(self) -> None:
        """Wait for the check under way. Raises: as `offer`."""
        if self._check is not None:
            self._count(self._check)

    def close(self) -> None:
        """End the thread and let the reference go. Safe to call twice."""
        self._thread.shutdown()
        self._reference.close()

    @property
    def verdict(self) -> Parity:
        """The sum of all checks so far."""
        low, frame = self._worst or (None, None)
        mean = self._same / self._pixels if self._pixels else None
        return Parity(agreement=mean, agreement_min=low, worst_frame=frame, checked=self._checked, due=self._due)

    def _compare(self, image: NDArray[np.uint8], labels: NDArray[np.uint8], index: int) -> tuple[int, int, int]:
        """On the thread: (H,W,3) BGR, (H,W) -> pixels that agree, pixels, frame index."""
        return *agreement_counts(labels, segment_image(self._reference, image[..., ::-1])), index

    def _count(self, check: Future[tuple[int, int, int]]) -> None:
        same, pixels, index = check.result()
        self._check, agreement = None, same / pixels
        self._same, self._pixels, self._checked = self._same + same, self._pixels + pixels, self._checked + 1
        self._last = {"agreement": round(agreement, 6), "frame": index}
        self._worst = min(self._worst or (agreement, index), (agreement, index))
        if self._min_agreement is not None and agreement < self._min_agreement:
            raise GateError(
                f"frame {index}: {agreement:.4f} of the pixels agree with the reference, expected at least "
                f"{self._min_agreement:g}; stopped. Check the engine with `tsss-edge parity`"
            )


def be_nice() -> None:
    """Give the thread that calls this low priority."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class LiveAccuracy:
    """mIoU (percent) against the truth of frames: of the whole stream, and of the last `MIOU_FRAMES`. And flicker.

    The truth comes with the frame or, where there is one, from a `folder`.
    """

    def __init__(
        self, num_classes: int, folder: TruthFolder | None = None, *, engine_classes: Classes | None = None
    ) -> None:
        """Args: num_classes: that are scored. engine_classes: results of an engine with others, which took over, do not count."""
        self._folder, self._engine_classes = folder, engine_classes
        self._total = np.zeros((num_classes, num_classes + 1), np.int64)
        self._recent = np.zeros_like(self._total)
        self._ring = np.zeros((MIOU_FRAMES, *self._total.shape), np.int64)
        self._frames = 0
        self._before: tuple[int, Pair] | None = None  # frame's number, its labels and truth
        self._flickered = self._stayed = 0  # pixels

    def add(self, result: FrameResult) -> float | None:
        """Count a result -> mIoU of the last frames; None for a frame without a truth."""
        if self._engine_classes is not None and result.classes not in (None, self._engine_classes):
            return None
        pair = self._pair(result)
        if pair is None:
            return None
        self._compare(result.frame.number, pair)
        counts = confusion(*pair, len(self._total))
        oldest = self._ring[self._frames % MIOU_FRAMES]
        self._recent += counts - oldest
        oldest[...] = counts
        self._total += counts
        self._frames += 1
        return float(miou_of(self._recent))

    def _compare(self, number: int, pair: Pair) -> None:
        """Count pixels of one truth in this frame and the one before, and those of them whose label changed."""
        labels, truth = pair
        if self._before is not None and self._before[0] == number - 1 and self._before[1][1].shape == truth.shape:
            earlier, earlier_truth = self._before[1]
            stayed = (truth == earlier_truth) & (truth != IGNORE)
            self._stayed += int(np.count_nonzero(stayed))
            self._flickered += int(np.count_nonzero(stayed & (labels != earlier)))
        self._before = number, (labels.copy(), truth.copy())  # both may be a loop's buffers

    def _pair(self, result: FrameResult) -> Pair | None:
        if self._folder is not None:
            return self._folder.pair(result.frame.number, result.labels)
        return (result.labels, result.frame.truth) if result.frame.truth is not None else None

    @property
    def per_class(self) -> dict[str, float] | None:
        """IoU in percent over the whole stream, of the classes that a `folder`'s masks or the network show."""
        if self._folder is None or not self._frames:
            return None
        found = zip(self._folder.names, iou_of(self._total), strict=True)
        return {name: round(100 * float(value), 2) for name, value in found if not np.isnan(value)}

    @property
    def flicker(self) -> float | None:
        """Percent of the pixels whose truth stayed from a frame to the next; None without two frames that follow each other."""
        return 100 * self._flickered / self._stayed if self._stayed else None

    @property
    def miou(self) -> float | None:
        """Of the whole stream; None without a frame."""
        return float(miou_of(self._total)) if self._frames else None


@dataclass(frozen=True)
class Checks:
    """What a stream is checked against: a reference, a truth, both or nothing."""

    watch: ParityWatch | None = None
    accuracy: LiveAccuracy | None = None
    field: FieldWatch | None = None

    @classmethod
    def open(
        cls,
        engine: Backend,
        source: str,
        reference: Path | None,
        every: int,
        min_agreement: float | None,
        truth: TruthFolder | None = None,
        field: FieldWatch | None = None,
    ) -> Checks:
        """The parity watch where there is a `reference`; live mIoU where there is a `truth`, or where `source` has masks of the
        engine's classes; drift and collection where there is a `field` watch."""
        watch = None
        if reference is not None:
            watch = ParityWatch(open_reference(reference, engine), every=every, min_agreement=min_agreement)
        if truth is not None:
            return cls(watch, LiveAccuracy(len(truth.names), truth, engine_classes=engine.classes), field)
        known = _has_truth(source, engine.classes)
        accuracy = LiveAccuracy(len(engine.classes), engine_classes=engine.classes) if known else None
        return cls(watch, accuracy, field)

    def add(self, result: FrameResult) -> dict[str, Any] | None:
        """Check a result -> {"agreement", "frame", "miou"} as far as they are known, None when nothing is."""
        verdict = dict(self.watch.offer(result)) if self.watch else {}
        if self.field is not None:
            self.field.add(result)
        if self.accuracy is not None and (miou := self.accuracy.add(result)) is not None:
            verdict["miou"] = miou
        return verdict or None

    def finish(self) -> None:
        """Wait for the check under way. Raises: GateError, and what the reference raised."""
        if self.watch is not None:
            self.watch.finish()

    def close(self) -> None:
        if self.watch is not None:
            self.watch.close()
        if self.field is not None:
            self.field.close()

    @property
    def drift(self) -> DriftReport | None:
        """Alarms over the whole stream; None where no drift is looked for."""
        return self.field.report if self.field else None

    @property
    def parity(self) -> Parity | None:
        return self.watch.verdict if self.watch else None

    @property
    def miou(self) -> float | None:
        """Percent, over the whole stream."""
        return self.accuracy.miou if self.accuracy else None

    @property
    def flicker(self) -> float | None:
        """Percent of pixels whose label changed and whose truth did not."""
        return self.accuracy.flicker if self.accuracy else None

    @property
    def per_class(self) -> dict[str, float] | None:
        """Percent, over the whole stream, against a folder of masks."""
        return self.accuracy.per_class if self.accuracy else None


def _has_truth(source: str, classes: Classes) -> bool:
    if parse_source(source).scheme != "synthetic":
        return False
    from tsss_edge.data.synthetic import CLASSES

    return classes == CLASSES
