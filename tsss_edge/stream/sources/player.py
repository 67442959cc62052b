"""A recorded source -> the same, at its own rate, as a camera would give it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tsss_edge.stream.frames import Source
from tsss_edge.stream.sources.live import EndOfStream, Shot


class FilePlayer:
    """A file played at its own rate, as a camera would give it: frames that come too late are passed over and counted.

    One that cannot be read at its rate plays more slowly, and every frame of it is counted all the same.
    """

    def __init__(self, source: Source, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._source = source
        self._sleep = sleep
        self._due = 0.0
        self.fps: float = source.fps or 30.0

    def read(self) -> Shot | None:
        frame = self._source.read()
        if frame is None:
            raise EndOfStream
        now, period = time.monotonic(), 1.0 / self.fps
        self._due = self._due + period if self._due else now
        late, missed = int((now - self._due) / period), 0
        while missed < late and (newer := self._source.read()) is not None:
            frame, missed = newer, missed + 1
        if missed:  # what passing over took is forgiven: a slow file would have to catch up with that too
            self._due += missed * period + time.monotonic() - now
        if (wait := self._due - time.monotonic()) > 0:
            self._sleep(wait)
        return Shot(frame.picture, time.monotonic(), frame.truth, missed, frame.time_s)

    def release(self) -> None:
        self._source.close()
