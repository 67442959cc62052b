"""What the recorder counted, shown while the stream runs: a line on stderr, numbers for the page and for Prometheus."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.backends.triton_client import READY
from tsss_edge.field.collector import CollectStatus
from tsss_edge.field.drift import Drift
from tsss_edge.field.rules import RolloutStatus
from tsss_edge.stream.frames import FrameResult, Source
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sinks import class_areas

LINE_PERIOD_S = 0.5
HISTORY = 180  # points of a graph, one a second
AREA_PERIOD_S = 0.1  # nobody reads areas faster, and counting pixels of 1080p costs a millisecond
ENGINE_LOST = "ENGINE_LOST"  # frames wait for an engine elsewhere
STATES = ("OPEN", "STREAMING", "STALLED", "RECONNECTING", "FAILED", "ENDED", ENGINE_LOST)


# -- The line


class StatusLine:
    """One line that rewrites itself on a terminal; elsewhere a line when the source changes its state.

    It runs on a thread of its own, so that a source that stalls is told too.
    """

    def __init__(self, source: Source, recorder: Recorder) -> None:
        self._source = source
        self._recorder = recorder
        self._terminal = sys.stderr.isatty()
        self._state = "STREAMING"  # no news
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status line", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and clear the line. Safe to call twice."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(LINE_PERIOD_S):
            if self._terminal:
                _write(f"\r\x1b[K{status_text(self._source, self._recorder)}")
            elif self._source.live and (state := self._source.state) != self._state:
                _write(f"{status_text(self._source, self._recorder)}\n")
                self._state = state
        if self._terminal:
            _write("\r\x1b[K")


def status_text(source: Source, recorder: Recorder) -> str:
    """`STREAMING  frame 120/250  31.2 frames/s  age 14 ms  3 dropped  agreement 0.998`."""
    parts = [source.state]
    if (last := recorder.last) is not None:
        total = f"/{source.length}" if source.length else ""
        parts += [f"frame {last.frame + 1}{total}", f"{recorder.fps:.1f} frames/s", f"age {last.age_ms:.0f} ms"]
        parts += [f"{recorder.dropped} dropped"]
        parts += [f"{name} {value:.4g}" for name, value in last.checks.items()]
    if recorder.drift is not None and recorder.drift.raised:
        parts.append(f"DRIFT: {recorder.drift.figure}")
    return "  ".join(parts)


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


# -- The page


class RecentTimes(Struct, frozen=True):
    """Of the last `RECENT` frames, milliseconds."""

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
    thinned: int  # left out because fewer were asked for
    reconnects: int
    fps: float
    source_fps: float
    latency_ms: RecentTimes | None  # sum of the stages of one frame
    age_ms: RecentTimes | None  # capture to mask, waiting included
    stages_ms: dict[str, float]
    areas: dict[str, float]
    agreement: float | None
    miou: float | None
    history: History
    drift: Drift | None = None
    rollout: RolloutStatus | None = None
    collected: CollectStatus | None = None


class Watched(Protocol):
    """What is shown of a source beside its results."""

    @property
    def state(self) -> str: ...
    @property
    def fps(self) -> float: ...


class LiveStatus:
    """A recorder's numbers with class areas and graphs. `add` is for the loop's thread, `status` for the web's."""

    def __init__(
        self,
        classes: Classes,
        recorder: Recorder,
        source: Watched | None = None,
        engine_state: Callable[[], str] = lambda: READY,
    ) -> None:
        self._classes, self._recorder, self._source, self._engine_state = classes, recorder, source, engine_state
        self._started = self._last_second = recorder.clock()
        self._dropped_before = 0
        self._seconds: deque[dict[str, float | None]] = deque(maxlen=HISTORY)  # the names are those of `History`
        self._areas: dict[str, float] = {}
        self._areas_at = float("-inf")

    @property
    def state(self) -> str:
        """Of the source; ENGINE_LOST while it gives frames and an engine elsewhere does not answer."""
        state = self._source.state if self._source else "STREAMING"
        return ENGINE_LOST if state == "STREAMING" and self._engine_state() != READY else state

    @property
    def recorder(self) -> Recorder:
        """Whose numbers these are."""
        return self._recorder

    def add(self, result: FrameResult) -> None:
        """Take the class areas of a result, now and then; nothing of it is kept."""
        now = self._recorder.clock()
        if now - self._areas_at >= AREA_PERIOD_S:
            self._areas, self._areas_at = class_areas(result.labels, result.classes or self._classes), now
        with self._recorder.lock:
            self._close_second(now)

    def status(self) -> Status:
        """The numbers as of now."""
        recorder, source, now = self._recorder, self._source, self._recorder.clock()
        with recorder.lock:
            self._close_second(now)
            last = recorder.last
            return Status(
                state=self.state,
                size=last.size if last else (0, 0),
                uptime_s=round(now - self._started, 1),
                frames=recorder.frames,
                dropped=max(
                    recorder.dropped, int(getattr(source, "dropped", 0))
                ),  # also of a source that gets no mask at all
                thinned=int(getattr(source, "thinned", 0)),
                reconnects=int(getattr(source, "reconnects", 0)),
                fps=round(recorder.recent_fps(), 2),
                source_fps=source.fps if source else 0.0,
                latency_ms=_recent(recorder.latency.recent()),
                age_ms=_recent(recorder.age.recent(), self._age_ms(now)),
                stages_ms={name: round(value, 3) for name, value in last.stages_ms.items()} if last else {},
                areas=self._areas,
                agreement=last.checks.get("agreement") if last else None,
                miou=last.checks.get("miou") if last else None,
                drift=recorder.drift,
                rollout=recorder.rollout,
                collected=recorder.collected,
                history=self._history(now),
            )

    def _close_second(self, now: float) -> None:
        """Add a point to the graphs when a second is over; also without frames, so that a stall shows."""
        if now - self._last_second < 1.0:
            return
        recorder, last = self._recorder, self._recorder.last
        fresh = last is not None and last.at >= self._last_second
        self._seconds.append(
            {
                "t": now,
                "fps": round(recorder.recent_fps(), 2),
                "latency_ms": round(float(recorder.latency.recent()[-1]), 3) if fresh else None,
                "age_ms": self._age_ms(now),
                "dropped": float(recorder.dropped - self._dropped_before),
                "agreement": last.checks.get("agreement") if last else None,
                "miou": last.checks.get("miou") if last else None,
            }
        )
        self._last_second, self._dropped_before = now, recorder.dropped

    def _age_ms(self, now: float) -> float | None:
        """Age of the newest mask; it goes on growing while no other comes."""
        if (last := self._recorder.last) is None:
            return None
        waiting_ms = (now - last.at) * 1000
        return round(last.age_ms + (waiting_ms if waiting_ms > 1000 else 0.0), 3)

    def _history(self, now: float) -> History:
        columns: dict[str, Any] = {name: [one[name] for one in self._seconds] for name in History.__struct_fields__}
        return History(**{**columns, "t": [round(t - now, 2) for t in columns["t"]]})


def _recent(values: NDArray[np.float32], now: float | None = None) -> RecentTimes | None:
    """`now` None: the last value."""
    if not values.size:
        return None
    p50, p95, p99 = (round(float(v), 3) for v in np.percentile(values, (50, 95, 99)))
    return RecentTimes(now=round(float(values[-1]), 3) if now is None else now, p50=p50, p95=p95, p99=p99)
