"""What a stream did, counted once: for the report, the page, `/metrics`, JSON lines and the status line.

Memory does not grow with the stream.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Struct
from tsss_edge.field.collector import CollectStatus
from tsss_edge.field.drift import Drift, DriftReport
from tsss_edge.field.rules import RolloutStatus
from tsss_edge.metrics import Percentiles, percentiles
from tsss_edge.stream.frames import FrameResult

KEPT = 100_000  # by default: times that percentiles of the report look back on: an hour at 28 frames a second
RECENT = 300  # times that percentiles of the page look back on
AFTER = ("sinks", "encode")  # stages that come when the mask is there
RATE_S = 2.0  # seconds that the rate on the page looks back on


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
    stages_ms: dict[str, Percentiles]  # `network`: from request to outputs, other requests running beside it;
    # `encode`: on the encoder's own thread, no part of the latency
    frame_age_ms: Percentiles | None  # capture (files: decoding) to the sinks, waiting included
    first_mask_s: float | None  # since the call
    parity: Parity | None
    miou: float | None  # against the known truth of synthetic://, or the masks of --truth
    iou: dict[str, float] | None  # by class, against the masks of --truth
    flicker: float | None  # percent of the pixels whose truth stayed from a frame to the next, but whose label changed
    reconnects: int
    ended: str  # source, max-frames, interrupted
    drift: DriftReport | None = None  # against the profile in the engine's record; None without one
    rollout: RolloutStatus | None = None  # of the shadow engine
    threads: str = ""  # how the cores are shared, and why; of a file on a CPU
    unreadable: tuple[str, ...] = ()  # pictures of a folder that were passed over, a line each

    def summary(self) -> str:
        """For a terminal."""
        head = f"{self.frames} frames, {self.dropped} dropped, {self.fps:.1f} frames/s ({self.engine}, {self.runs_on})"
        rows = [*self.stages_ms.items(), ("all stages", self.latency_ms), ("frame age", self.frame_age_ms)]
        times = [f"{n:<16} p50 {p.p50:8.2f}  p95 {p.p95:8.2f}  p99 {p.p99:8.2f} ms" for n, p in rows if p]
        lines = [head, *times]
        if self.threads:
            lines.append(f"threads          {self.threads}")
        if self.parity is not None and self.parity.agreement is not None:
            p = self.parity
            lines.append(
                f"parity           {p.agreement:.4f} agreement, lowest {p.agreement_min:.4f}, {p.checked} frames"
            )
        if self.miou is not None:
            lines.append(f"live mIoU        {self.miou:.2f}")
        if self.flicker is not None:
            lines.append(f"flicker          {self.flicker:.2f}% of pixels changed their label and not their truth")
        if self.iou is not None:
            lines.append("live IoU         " + ", ".join(f"{name} {value:.2f}" for name, value in self.iou.items()))
        if self.drift is not None and self.drift.alarms:
            told = "; ".join(f"frame {a.raised}: {a.moved[0].text()}" for a in self.drift.alarms if a.moved)
            lines.append(f"drift            {told}")
        if self.rollout is not None:
            lines.append(f"rollout          {self.rollout.line()}")
        if self.reconnects:
            lines.append(f"reconnects       {self.reconnects}")
        if self.unreadable:
            lines.append(f"passed over      {len(self.unreadable)} pictures, the first: {self.unreadable[0]}")
        return "\n".join(lines)


class Times:
    """The last `kept` values of one number, milliseconds."""

    def __init__(self, kept: int = KEPT) -> None:
        self._values = np.full(kept, np.nan, np.float32)  # written now, so that memory does not grow while it fills
        self._count = 0

    def add(self, value: float) -> None:
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def all(self) -> Percentiles | None:
        """Of everything kept; None before the first value."""
        return percentiles(self._values[: min(self._count, len(self._values))]) if self._count else None

    def recent(self) -> NDArray[np.float32]:
        """The last values, `RECENT` at most, in their order."""
        return self._values[np.arange(max(0, self._count - RECENT), self._count) % len(self._values)]


class Last(NamedTuple):
    """Of the newest result: its number at the source, when it came, its age and size, its stages before the sinks, its checks."""

    frame: int
    at: float  # by the recorder's clock
    age_ms: float
    size: tuple[int, int]  # width, height
    stages_ms: dict[str, float]
    checks: dict[str, float]  # "agreement" and "miou" as far as known


class Recorder:
    """Counts results as they leave the loop. Other threads may read it, and hold `lock` where numbers must fit together.

    Args: clock: seconds; a test's own. kept: times that percentiles of the report look back on.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, kept: int = KEPT) -> None:
        self.clock, self._kept = clock, kept
        self.lock = threading.RLock()
        self.started = clock()
        self.frames = self.dropped = 0
        self.last: Last | None = None
        self.drift: Drift | None = None  # as of the newest result
        self.collected: CollectStatus | None = None
        self.rollout: RolloutStatus | None = None  # of the shadow engine, where there is one
        self.runs_on = ""  # what ran where
        self.observers: list[Callable[[FrameResult], None]] = []  # told of every result
        self.latency, self.age = Times(kept), Times(kept)  # of a frame until the sinks get it, as the page shows it
        self._latency_with_sinks = Times(kept)  # as the report shows it
        self._first = 0.0
        self._ticks: deque[float] = deque(maxlen=RECENT)
        self._stages: dict[str, Times] = {}

    def dropped_before(self, result: FrameResult) -> int:
        """Frames of the source without a mask, up to this result, which has not been added yet."""
        frame = result.frame
        return frame.index + frame.missed - frame.thinned - self.frames

    def add(self, result: FrameResult) -> None:
        """Take the numbers of a result when its sinks are done with it."""
        with self.lock:
            now = self.clock()
            self._first = self._first if self.frames else now
            self.dropped = self.dropped_before(result)
            self.frames += 1
            self._ticks.append(now)
            for name, value in result.stages_ms.items():
                if name not in self._stages:
                    self._stages[name] = Times(self._kept)
                self._stages[name].add(value)
            self.latency.add(sum(value for name, value in result.stages_ms.items() if name not in AFTER))
            self._latency_with_sinks.add(sum(value for name, value in result.stages_ms.items() if name != "encode"))
            self.age.add(result.age_ms)
            self.last = self._newest(result, now)
            self.drift, self.collected = result.drift, result.collected
        for observe in self.observers:
            observe(result)

    def _newest(self, result: FrameResult, now: float) -> Last:
        """A result without a verdict leaves the last verdict standing."""
        checks = self.last.checks if self.last else {}
        if result.parity is not None:
            checks = {name: float(value) for name, value in result.parity.items() if name != "frame"}
        height, width = result.labels.shape
        stages = {name: value for name, value in result.stages_ms.items() if name not in AFTER}
        return Last(result.frame.index, now, result.age_ms, (width, height), stages, checks)

    @property
    def fps(self) -> float:
        """Over the whole stream: n - 1 intervals for n results; 0 before the second."""
        return (self.frames - 1) / (self.last.at - self._first) if self.last and self.last.at > self._first else 0.0

    def recent_fps(self) -> float:
        """Over the last `RATE_S` seconds: n - 1 intervals for n results; 0 when there are fewer than two."""
        with self.lock:
            ticks = [at for at in self._ticks if at > self.clock() - RATE_S]
        return (len(ticks) - 1) / (ticks[-1] - ticks[0]) if len(ticks) > 1 and ticks[-1] > ticks[0] else 0.0

    def numbers(self) -> dict[str, Any]:
        """The fields of `StreamReport` that are counted here."""
        return {
            "frames": self.frames,
            "dropped": self.dropped,
            "fps": self.fps,
            "latency_ms": self._latency_with_sinks.all(),
            "stages_ms": {name: times.all() for name, times in self._stages.items()},
            "frame_age_ms": self.age.all(),
            "first_mask_s": self._first - self.started if self.frames else None,
        }
