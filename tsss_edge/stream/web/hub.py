"""Results of the live loop -> the numbers that the page, its graphs and `/metrics` show."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.stream.frames import Result, Source
from tsss_edge.stream.sinks.jsonl import class_areas

WINDOW = 300  # frames that the percentiles look back on
HISTORY = 180  # points of a graph, one a second
AREA_PERIOD_S = 0.1  # nobody reads areas faster, and counting pixels of 1080p costs a millisecond


class Percentiles(Struct, frozen=True):
    """Of the last `WINDOW` frames, milliseconds."""

    now: float
    p50: float
    p95: float
    p99: float


class History(Struct, frozen=True):
    """One value a second and graph; None where there was nothing to measure. `t` in seconds before now, negative."""

    t: list[float]
    fps: list[float]
    latency_ms: list[float | None]
    age_ms: list[float | None]
    dropped: list[float]  # frames dropped in that second
    agreement: list[float | None]
    miou: list[float | None]


class Status(Struct, frozen=True):
    """Everything live, as of one moment. Areas are shares of the frame (0-1), agreement is 0-1, mIoU is percent."""

    state: str
    size: tuple[int, int]  # width, height
    uptime_s: float
    frames: int
    dropped: int
    reconnects: int
    fps: float
    source_fps: float
    latency_ms: Percentiles | None  # sum of the stages of one frame
    age_ms: Percentiles | None  # capture to mask, waiting included
    stages_ms: dict[str, float]
    areas: dict[str, float]
    agreement: float | None
    miou: float | None
    history: History


class _Second(Struct, frozen=True):
    at: float
    fps: float
    latency_ms: float | None
    age_ms: float | None
    dropped: int
    agreement: float | None
    miou: float | None


class Hub:
    """Counts results (from the loop's thread) and answers `status` (from the web's thread)."""

    def __init__(
        self, classes: Classes, *, source: Source | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.classes = classes
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._started = self._last_second = clock()
        self._ticks: deque[float] = deque(maxlen=WINDOW)
        self._ages: deque[float] = deque(maxlen=WINDOW)
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._history: deque[_Second] = deque(maxlen=HISTORY)
        self._frames = self._dropped = self._dropped_before = 0
        self._stages: dict[str, float] = {}
        self._areas: dict[str, float] = {}
        self._areas_at = float("-inf")
        self._checks: Mapping[str, float | None] = {}
        self._size = (0, 0)

    def add(self, result: Result) -> None:
        """Take the numbers of one result; nothing of it is kept."""
        now = self._clock()
        areas = None
        if now - self._areas_at >= AREA_PERIOD_S:
            areas = class_areas(result.labels, self.classes)
        with self._lock:
            self._count(result, now)
            if areas is not None:
                self._areas, self._areas_at = areas, now
            self._close_second(now)

    def _count(self, result: Result, now: float) -> None:
        self._frames += 1
        self._dropped = max(self._dropped, result.frame.index + 1 - self._frames)
        self._size = (result.frame.image.shape[1], result.frame.image.shape[0])
        self._ticks.append(now)
        self._ages.append(result.age_ms)
        self._latencies.append(sum(result.stages_ms.values()))
        self._stages = dict(result.stages_ms)
        if result.parity is not None:
            self._checks = {name: _number(result.parity.get(name)) for name in ("agreement", "miou")}

    def _close_second(self, now: float) -> None:
        """Add a point to the graphs when a second is over; also without frames, so that a stall shows."""
        if now - self._last_second < 1.0:
            return
        fresh = bool(self._ticks) and self._ticks[-1] >= self._last_second
        self._history.append(
            _Second(
                at=now,
                fps=self._fps(now),
                latency_ms=self._latencies[-1] if fresh else None,
                age_ms=self._age_ms(now) if self._frames else None,
                dropped=self._dropped - self._dropped_before,
                agreement=self._checks.get("agreement"),
                miou=self._checks.get("miou"),
            )
        )
        self._last_second, self._dropped_before = now, self._dropped

    def _fps(self, now: float) -> float:
        """Over the last two seconds: n - 1 intervals for n results."""
        ticks = [t for t in self._ticks if t > now - 2.0]
        return (len(ticks) - 1) / (ticks[-1] - ticks[0]) if len(ticks) > 1 and ticks[-1] > ticks[0] else 0.0

    def _age_ms(self, now: float) -> float:
        """Age of the newest mask; it goes on growing while no other comes."""
        waiting_ms = (now - self._ticks[-1]) * 1000
        return self._ages[-1] + (waiting_ms if waiting_ms > 1000 else 0.0)

    def status(self) -> Status:
        """The numbers as of now."""
        now = self._clock()
        with self._lock:
            self._close_second(now)
            source = self._source
            return Status(
                state=source.state if source else "STREAMING",
                size=self._size,
                uptime_s=round(now - self._started, 1),
                frames=self._frames,
                dropped=self._dropped,
                reconnects=int(getattr(source, "reconnects", 0)),
                fps=round(self._fps(now), 2),
                source_fps=source.fps if source else 0.0,
                latency_ms=_percentiles(self._latencies),
                age_ms=_percentiles(self._ages, now_ms=self._age_ms(now) if self._frames else None),
                stages_ms={name: round(value, 3) for name, value in self._stages.items()},
                areas=self._areas,
                agreement=self._checks.get("agreement"),
                miou=self._checks.get("miou"),
                history=self._columns(now),
            )

    def _columns(self, now: float) -> History:
        points = list(self._history)
        return History(
            t=[round(p.at - now, 2) for p in points],
            fps=[round(p.fps, 2) for p in points],
            latency_ms=[_rounded(p.latency_ms) for p in points],
            age_ms=[_rounded(p.age_ms) for p in points],
            dropped=[float(p.dropped) for p in points],
            agreement=[p.agreement for p in points],
            miou=[p.miou for p in points],
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _percentiles(values: deque[float], *, now_ms: float | None = None) -> Percentiles | None:
    if not values:
        return None
    p50, p95, p99 = (round(float(v), 3) for v in np.percentile(values, (50, 95, 99)))
    return Percentiles(now=round(values[-1] if now_ms is None else now_ms, 3), p50=p50, p95=p95, p99=p99)
