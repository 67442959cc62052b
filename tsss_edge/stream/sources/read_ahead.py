"""A source of every frame in order -> the same frames decoded ahead on a thread, to be taken without waiting."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tsss_edge.errors import DataError, TsssEdgeError
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.stream.frames import Frame, Picture, Source
from tsss_edge.stream.sources.pace import Pace


class ReadAhead:
    """Opens, reads and closes a file on one thread, for its decoder allows one only. An error, also of opening, is kept.

    Args: max_fps: frames a second of the file that are wanted, None for all; a folder, which has no clock, gives all.
          depth: decoded frames that may wait. on_change: called on that thread when there is a frame, and at the end.
    """

    live = False
    trouble = ""  # a file is not tried again

    def __init__(
        self,
        open_file: Callable[[], Source],
        *,
        name: str,
        max_fps: float | None = None,
        depth: int = 2,
        on_change: Callable[[], None],
    ) -> None:
        self.name, self.fps = name, 0.0
        self.size_hw: tuple[int, int] = (0, 0)
        self.length: int | None = None
        self.aspect: Fraction | None = None  # of a pixel
        self.error: TsssEdgeError | None = None
        self.taken = self.dropped = self.missed = self.thinned = self.reconnects = 0
        self._open_file, self._depth, self._on_change = open_file, depth, on_change
        self._source: Source | None = None
        self._pace = Pace(max_fps)
        self._frames: deque[Frame] = deque()
        self._images: deque[NDArray[np.uint8]] = deque()  # that nobody needs any more
        self._changed = threading.Condition()
        self._closed = self._done = False
        self._thread = threading.Thread(target=self._run, name=f"source {name}", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        if self.error is not None:
            return "FAILED"
        return self._source.state if self._source is not None else "OPEN"

    @property
    def waiting(self) -> int:
        return len(self._frames)

    @property
    def arrived(self) -> int:
        return self.taken + self.dropped + self.thinned + len(self._frames)

    @property
    def over(self) -> bool:
        return self._done and not self._frames

    def poll(self) -> Frame | None:
        """The next frame, or None where it is not decoded yet."""
        with self._changed:
            if not self._frames:
                return None
            self.taken += 1
            self._changed.notify_all()
            return self._frames.popleft()

    def recycle(self, picture: Picture) -> None:
        """Nobody needs `picture` any more."""
        if not isinstance(picture, Yuv):
            self._images.append(picture)

    def stop(self) -> None:
        """Tell the reader to end, without waiting. Frames that nobody took are counted as dropped. Safe to call twice."""
        with self._changed:
            self._closed = True
            self.dropped += len(self._frames)
            self._frames.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop. Safe to call twice."""
        self.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            with closing(self._open_file()) as source:
                self._source = source
                self.fps, self.size_hw, self.length = source.fps, source.size_hw, source.length
                self.aspect = getattr(source, "aspect", None)
                while not self._closed and self._read(source):
                    self._on_change()
        except TsssEdgeError as error:
            self.error = error
        except Exception as error:  # a decoder's own error must reach the reader, not die with the thread
            self.error = DataError(f"{self.name}: {type(error).__name__}: {error}")
        finally:
            self._done = True
            self._on_change()

    def _read(self, source: Source) -> bool:
        started = time.monotonic()
        frame = source.read(self._images.popleft() if self._images else None)
        if frame is None:
            return False
        if not self._wanted(frame):
            self.thinned += 1
            self.recycle(frame.picture)
            return True
        frame.thinned = self.thinned
        frame.decode_ms = (time.monotonic() - started) * 1000
        self.size_hw = frame.size_hw
        with self._changed:
            self._frames.append(frame)
            self._changed.wait_for(lambda: len(self._frames) < self._depth or self._closed)
        return True

    def _wanted(self, frame: Frame) -> bool:
        """Whether this frame is one of those that were asked for, by the file's own times, else by its rate."""
        if frame.time_s is not None:
            return self._pace.due(frame.time_s)
        return not self.fps or self._pace.due(frame.index / self.fps)
