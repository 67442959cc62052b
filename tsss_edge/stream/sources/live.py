"""A camera that may stall, freeze, change size or vanish -> the newest frame, always a real one.

A reader thread owns the capture, so that the camera's own buffer never ages:

    OPEN -> STREAMING <-> STALLED (no frame, or always the same one, for `stall_s` / `frozen_s`)
                      `-> RECONNECTING (bounded back-off) -> STREAMING | FAILED
    any -> ENDED (closed, or the stream says that it is over)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tsss_edge.errors import DataError, TsssEdgeError, UnavailableError, masked
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.stream.frames import Frame, Picture, picture_hw
from tsss_edge.stream.sources.pace import Pace


class Shot(NamedTuple):
    """One picture as a capture gives it, `time.monotonic()` of its arrival, (H,W) truth if known, how many pictures before
    it the camera gave that the capture was too late for, and when a played file shows it (None: on arrival)."""

    picture: Picture
    captured: float
    truth: NDArray[np.uint8] | None = None
    missed: int = 0
    time_s: float | None = None


class EndOfStream(Exception):
    """Raised by `Capture.read` when there will be no more frames, for good."""


class Capture(Protocol):
    """One open connection to a camera. Used by the reader thread alone."""

    @property
    def fps(self) -> float: ...  # nominal, 0 when unknown
    def read(self) -> Shot | None: ...  # None: lost; blocks until there is a frame
    def release(self) -> None: ...


@dataclass(frozen=True)
class Retry:
    """How a lost source is opened again: after `first_s`, then twice as long each time up to `longest_s`.

    `attempts` in a row without one frame, and the source has FAILED. `stall_s` without a frame, or `frozen_s` of
    identical frames, is STALLED.
    """

    first_s: float = 0.5
    longest_s: float = 8.0
    attempts: int = 10
    stall_s: float = 2.0
    frozen_s: float = 5.0

    @classmethod
    def forever(cls) -> Retry:
        """For one camera of many: it never counts as lost for good."""
        return cls(attempts=1_000_000_000)

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt` (from 0)."""
        return float(min(self.first_s * 2.0 ** min(attempt, 30), self.longest_s))


class LiveSource:
    """A `Source` over any `Capture`, with a single-slot newest-frame buffer ("latest") or a short queue ("block").

    The constructor opens the capture once, without retry: if the camera is not there, the user must fix that. With `patient`
    it returns at once, RECONNECTING, and the camera may come later.

    Every frame of the camera is counted once: `arrived` = `taken` + `dropped` (never read, or the capture was too late) +
    `thinned` (more than `max_fps`) + `waiting`. `reconnects` counts how often the source came back. `trouble` says why the last
    attempt to open it failed ("": it did not).

    Args: max_fps: frames a second that are wanted; of a faster camera the newest of each period is offered.
          on_change: called on the reader's thread when there is a frame, and when the state changes.
    """

    live = True
    length: int | None = None

    def __init__(
        self,
        open_capture: Callable[[], Capture],
        *,
        name: str,
        policy: str = "latest",
        retry: Retry | None = None,
        depth: int = 4,
        patient: bool = False,
        max_fps: float | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._open_capture = open_capture
        self._retry = retry or Retry()
        self._latest = policy == "latest"
        self._depth = 1 if self._latest else depth
        self._slot: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._state = "OPEN"
        self._error: TsssEdgeError | None = None
        self._index = 0
        self.dropped = self.missed = self.thinned = self.taken = 0
        self.reconnects = 0
        self.trouble = ""
        self._pace = Pace(max_fps)
        self._on_change = on_change
        self._last_frame = self._last_change = time.monotonic()
        self._previous: Picture | None = None
        self.fps = 0.0
        self.size_hw: tuple[int, int] = (0, 0)
        capture: Capture | None = None
        if not patient:
            capture, shot = self._first_shot()
            self._connected(capture, shot)
        self._thread = threading.Thread(target=self._run, args=(capture,), name=f"source {name}", daemon=True)
        self._thread.start()

    def _first_shot(self) -> tuple[Capture, Shot]:
        capture = self._open_capture()
        try:
            shot = capture.read()
        except EndOfStream:
            shot = None
        if shot is None:
            capture.release()
            raise DataError(f"{self.name}: opened, but it gives no picture; check the camera and try again")
        return capture, shot

    def _connected(self, capture: Capture, shot: Shot) -> None:
        self.fps = capture.fps
        self.size_hw = picture_hw(shot.picture)
        self.trouble = ""
        self._put(shot)

    @property
    def waiting(self) -> int:
        """Frames that can be read without waiting."""
        return len(self._slot)

    @property
    def arrived(self) -> int:
        """Frames that the camera gave."""
        return self._index + self.missed

    @property
    def over(self) -> bool:
        """There will be no more frames."""
        return self._state in ("FAILED", "ENDED") and not self._slot

    @property
    def state(self) -> str:
        """OPEN, STREAMING, STALLED, RECONNECTING, FAILED or ENDED, as of now."""
        state = self._state
        if state == "STREAMING" and (self.stalled_s > self._retry.stall_s or self.frozen):
            return "STALLED"
        return state

    @property
    def stalled_s(self) -> float:
        """Seconds since the last frame arrived."""
        return time.monotonic() - self._last_frame

    @property
    def frozen(self) -> bool:
        """True when frames arrive, but for `frozen_s` every one was identical to the one before."""
        return self._last_frame - self._last_change > self._retry.frozen_s

    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        """The newest frame not read yet ("block": the oldest); blocks until there is one. None at the end.

        Raises: DataError: the source was lost and did not come back.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._slot or self._state in ("FAILED", "ENDED"))
            if (frame := self.poll()) is not None:
                return frame
            if self._error is not None:
                raise self._error
            return None

    def poll(self) -> Frame | None:
        """The frame that `read` would give, or None where it would wait."""
        with self._changed:
            if not self._slot:
                return None
            frame = self._slot.popleft()
            self.taken += 1
            self._changed.notify_all()  # a blocked reader may go on
            self.size_hw = frame.size_hw
            return frame

    @property
    def error(self) -> TsssEdgeError | None:
        """Why it has FAILED."""
        return self._error

    def recycle(self, picture: Picture) -> None:
        """Nothing: a picture is compared with the next one."""

    def stop(self) -> None:
        """Tell the reader to end, without waiting for it. Safe to call twice and from any thread."""
        self._closing.set()
        with self._changed:
            self.dropped += len(self._slot)
            self._slot.clear()
            if self._state != "FAILED":
                self._state = "ENDED"
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the reader. Safe to call twice and from any thread."""
        self.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)  # a driver stuck in a read must not hold up the program

    # -- the reader thread ---------------------------------------------------------------------------------------------

    def _run(self, capture: Capture | None) -> None:
        try:
            current = capture or self._reconnect()
            while current is not None and not self._closing.is_set():
                try:
                    self._pump(current)
                finally:
                    current.release()
                current = self._reconnect()
        except EndOfStream:
            self._finish("ENDED")
        except TsssEdgeError as error:
            self._finish("FAILED", error)
        except Exception as error:  # a driver's own error must reach the reader, not die with the thread
            self._finish("FAILED", DataError(f"{self.name}: {type(error).__name__}: {error}"))
            if not isinstance(error, (OSError, RuntimeError)):
                raise

    def _pump(self, capture: Capture) -> None:
        """Hand on frames until the capture is lost or we are closed."""
        while not self._closing.is_set() and (shot := capture.read()) is not None:
            self._put(shot)

    def _put(self, shot: Shot) -> None:
        self._note_change(shot)
        with self._changed:
            if not self._latest:
                self._changed.wait_for(lambda: len(self._slot) < self._depth or self._closing.is_set())
            if self._closing.is_set():
                return
            self.missed += shot.missed
            self.dropped += shot.missed
            self._state = "STREAMING"
            if self._wanted(shot.captured):
                time_s = shot.captured if shot.time_s is None else shot.time_s
                frame = Frame(shot.picture, self._index, shot.captured, truth=shot.truth, time_s=time_s)
                frame.missed, frame.thinned = self.missed, self.thinned
                self._slot.append(frame)
            self._index += 1
            self._changed.notify_all()
        self._on_change()

    def _wanted(self, now: float) -> bool:
        """Whether a frame of now is offered. Makes room for it, and counts whichever frame is not offered any more."""
        due = self._pace.due(now)
        if not self._latest:
            self.thinned += not due
            return due
        if not self._slot:
            self.thinned += not due
            return due
        self._slot.clear()  # the newest frame of a period stands for it
        self.dropped += due
        self.thinned += not due
        return True

    def _note_change(self, shot: Shot) -> None:
        if self._previous is None or not _same(self._previous, shot.picture):
            self._last_change = shot.captured
        self._last_frame = shot.captured  # after _last_change: `frozen` reads both without a lock
        self._previous = shot.picture

    def _reconnect(self) -> Capture | None:
        """A new capture that has given a frame; None when we are closed. Raises: DataError: out of attempts."""
        first = not self._index  # of a patient source: it tries at once
        for attempt in range(self._retry.attempts):
            if not first:
                self._set_state("RECONNECTING")
            if self._closing.wait(0.0 if first else self._retry.delay_s(attempt)):
                return None
            first = False
            try:
                capture, shot = self._first_shot()
            except UnavailableError:  # this machine cannot: it will not heal
                raise
            except (TsssEdgeError, OSError) as error:
                self.trouble = masked(str(error))
                continue
            self.reconnects += bool(self._index)
            self._last_change = shot.captured  # the picture before the gap says nothing about a freeze
            self._connected(capture, shot)
            return capture
        raise DataError(
            f"{self.name}: lost after {self._index} frames and not back after {self._retry.attempts} attempts ({self.trouble})"
        )

    def _set_state(self, state: str) -> None:
        with self._changed:
            if self._state != "ENDED":
                self._state = state
            self._changed.notify_all()
        self._on_change()

    def _finish(self, state: str, error: TsssEdgeError | None = None) -> None:
        self._error = error
        self._set_state(state)


def _same(one: Picture, other: Picture) -> bool:
    """Whether two pictures are identical (of planes: their luma); a coarse grid first, for sensor noise shows there at once."""
    a, b = (picture.y if isinstance(picture, Yuv) else picture for picture in (one, other))
    return a.shape == b.shape and np.array_equal(a[::16, ::16], b[::16, ::16]) and np.array_equal(a, b)
