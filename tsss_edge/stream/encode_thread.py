"""A video writer on a thread of its own: encoding costs what it costs, and no mask waits for it."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress

import av

from tsss_edge.errors import DataError
from tsss_edge.stream.av_writer import VideoWriter
from tsss_edge.stream.frames import Picture

WAITING = 4  # frames that may wait for the encoder
PATIENCE_S = 30.0  # no encoder takes so long for so few; a server that is gone would be waited for without end


class EncodeThread:
    """Copies a picture, returns, and encodes it later, in order.

    Where the encoder does not keep up a file's loop waits, because every frame is wanted; a live one leaves the frame out of
    the recording and counts it in `left_out`. What goes wrong on the thread is raised by the next `write`, or `close`.
    """

    def __init__(self, writer: VideoWriter, *, live: bool) -> None:
        self.encode_ms = 0.0  # of the last frame that is encoded
        self.left_out = 0
        self._writer, self._live = writer, live
        self._error: Exception | None = None
        self._waiting: queue.Queue[tuple[av.VideoFrame, float | None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._thread.start()

    def write(self, picture: Picture, time_s: float | None) -> None:
        """As `VideoWriter.write`; the picture may change afterwards."""
        self._raise()
        if self._live and self._waiting.full():
            self.left_out += 1
            return
        try:
            self._waiting.put((self._writer.prepare(picture), time_s), timeout=PATIENCE_S)
        except queue.Full:
            raise DataError(
                f"{self._writer.target}: takes no more frames; does its server or disk still answer?"
            ) from None

    def close(self) -> None:
        """Encode what waits and finish the file. Raises: DataError: the disk is full, or nothing moves any more."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=PATIENCE_S)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():  # it has the writer, which nobody may close under it; it goes with the process
            raise DataError(f"{self._writer.target}: does not answer, so the end of the video was not written")
        self._writer.close()
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        failed = False
        while (entry := self._waiting.get()) is not None:
            if failed:
                continue  # the loop's thread may wait for room, and learns of it with the next frame
            started = time.monotonic()
            try:
                self._writer.encode(*entry)
            except Exception as error:  # whatever it is belongs to the loop
                self._error, failed = error, True
            self.encode_ms = (time.monotonic() - started) * 1000
