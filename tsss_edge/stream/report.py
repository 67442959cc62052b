"""What a stream did: counts, rates, and percentiles of every stage, kept in memory that does not grow."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from tsss_edge.artifacts import Struct
from tsss_edge.metrics import Percentiles, percentiles
from tsss_edge.stream.frames import Result

KEPT = 100_000  # times that percentiles look back on: an hour at 28 frames a second


class Parity(Struct, frozen=True):
    """What the parity watch found. Agreement is the share of pixels with the reference's class, 0-1."""

    agreement: float | None  # over all frames checked; None: none was
    agreement_min: float | None
    worst_frame: int | None  # index at the source
    checked: int
    due: int  # every n-th frame; more than `checked` where the reference did not keep up


class StreamReport(Struct, frozen=True):
    """A finished stream. Times in milliseconds unless a name ends in `_s`, mIoU in percent."""

    engine: str
    source: str
    runs_on: str
    frames: int  # with a mask
    dropped: int  # of the source, without a mask, up to the last one with a mask
    fps: float  # first mask to last mask
    latency_ms: Percentiles | None  # sum of a frame's stages
    stages_ms: dict[str, Percentiles]  # `network`: from request to outputs, other requests running beside it
    frame_age_ms: Percentiles | None  # capture (files: decoding) to the sinks, waiting included
    first_mask_s: float | None  # since the call
    parity: Parity | None
    miou: float | None  # against the known truth of synthetic://
    reconnects: int
    ended: str  # source, max-frames, interrupted

    def summary(self) -> str:
        """For a terminal."""
        head = f"{self.frames} frames, {self.dropped} dropped, {self.fps:.1f} frames/s ({self.engine}, {self.runs_on})"
        rows = [(name, p) for name, p in self.stages_ms.items()]
        rows += [("all stages", self.latency_ms)] if self.latency_ms else []
        rows += [("frame age", self.frame_age_ms)] if self.frame_age_ms else []
        lines = [head, *(f"{n:<16} p50 {p.p50:8.2f}  p95 {p.p95:8.2f}  p99 {p.p99:8.2f} ms" for n, p in rows)]
        if self.parity is not None and self.parity.agreement is not None:
            p = self.parity
            lines.append(
                f"parity           {p.agreement:.4f} agreement, lowest {p.agreement_min:.4f}, {p.checked} frames"
            )
        if self.miou is not None:
            lines.append(f"live mIoU        {self.miou:.2f}")
        if self.reconnects:
            lines.append(f"reconnects       {self.reconnects}")
        return "\n".join(lines)


class Times:
    """The last `KEPT` values of one number."""

    def __init__(self) -> None:
        self._values = np.empty(KEPT, np.float32)
        self._count = 0

    def add(self, value: float) -> None:
        self._values[self._count % KEPT] = value
        self._count += 1

    def percentiles(self) -> Percentiles | None:
        """None before the first value."""
        return percentiles(self._values[: min(self._count, KEPT)]) if self._count else None


class Last(NamedTuple):
    """Of the newest result: its number at the source, its age, what it was checked with ("agreement", "miou")."""

    frame: int
    age_ms: float
    checks: dict[str, float]


class Recorder:
    """Counts results as they leave the loop. Other threads may read it."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.frames = self.dropped = 0
        self.last: Last | None = None
        self.runs_on = ""  # what ran where
        self._first = self._last = 0.0
        self._stages: dict[str, Times] = {}
        self._latency, self._age = Times(), Times()

    def add(self, result: Result) -> None:
        """Take the numbers of a result whose sinks are done with it."""
        self._last = time.monotonic()
        self._first = self._first if self.frames else self._last
        self.frames += 1
        self.dropped = result.frame.index + 1 - self.frames
        for name, value in result.stages_ms.items():
            if name not in self._stages:
                self._stages[name] = Times()
            self._stages[name].add(value)
        self._latency.add(sum(result.stages_ms.values()))
        self._age.add(result.age_ms)
        checks = {name: value for name, value in (result.parity or {}).items() if name != "frame"}
        self.last = Last(result.frame.index, result.age_ms, checks)

    @property
    def fps(self) -> float:
        """n - 1 intervals for n results; 0 before the second."""
        return (self.frames - 1) / (self._last - self._first) if self._last > self._first else 0.0

    @property
    def first_mask_s(self) -> float | None:
        return self._first - self.started if self.frames else None

    def numbers(self) -> dict[str, Any]:
        """The fields of `StreamReport` that are counted here."""
        stages = {name: found for name, times in self._stages.items() if (found := times.percentiles())}
        return {
            "frames": self.frames,
            "dropped": self.dropped,
            "fps": self.fps,
            "latency_ms": self._latency.percentiles(),
            "stages_ms": stages,
            "frame_age_ms": self._age.percentiles(),
            "first_mask_s": self.first_mask_s,
        }
