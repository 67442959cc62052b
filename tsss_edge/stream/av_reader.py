"""A video file -> its frames by PyAV: AV1, VP9, HEVC, 10 bits, variable frame rate; turned as the file says.

Every picture is (H,W,3) uint8 BGR, in the order of display, with its time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.logging import PANIC, set_level
from numpy.typing import NDArray

from tsss_edge.errors import DataError

LOG = logging.getLogger("tsss_edge")

HDR_CURVES = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
FAULTS = (av.FFmpegError, OSError, ValueError)  # all that PyAV raises for files and addresses
MOST_DAMAGED = 500  # packets before the first picture, then it is no video
EXACT = (".mp4", ".mov", ".m4v")  # containers whose frame count is exact, unless they are fragmented


class VideoReader:
    """One open video. `length` is what the container says (None: nothing), `fps` its average rate (0: unknown)."""

    def __init__(self, path: str, *, name: str | None = None, threads: int | None = None) -> None:
        """Open a path or address and decode the first frame.

        Raises: DataError: empty, not a video, without pictures, or damaged before the first frame.
        """
        self.name = name or path
        if "://" not in path and Path(path).is_file() and Path(path).stat().st_size == 0:
            raise DataError(f"{self.name}: the file is empty (0 bytes); copy or record it again")
        self._container = self._open(path)
        self._stream = self._video_stream()
        self._stream.thread_type = "AUTO"
        if threads:
            self._stream.codec_context.thread_count = threads
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate and math.isfinite(float(rate)) and float(rate) > 0 else 0.0
        self.length: int | None = self._stream.frames or None
        self.decoded = self.damaged = 0  # frames given, packets passed over
        self.time_s: float | None = None  # of the last frame given, from the start
        self._turns: int | None = None
        self._frames = self._decode()
        self._first: NDArray[np.uint8] | None = self._next(None)
        if self._first is None:
            self.close()
            raise self._unreadable("no picture could be decoded")
        self.size_hw: tuple[int, int] = (self._first.shape[0], self._first.shape[1])
        self._warn_of_hdr()

    def _open(self, path: str) -> av.container.InputContainer:
        set_level(PANIC)  # FFmpeg writes about every damaged packet; our error says it once
        try:
            return av.open(path)
        except FAULTS as error:
            raise self._unreadable(str(error)) from error

    def _video_stream(self) -> Any:
        streams = self._container.streams.video
        pictures = [s for s in streams if not s.disposition & s.disposition.__class__.attached_pic] or list(streams)
        if not pictures:
            self._container.close()
            raise DataError(f"{self.name}: holds no pictures, only sound or other data; expected a video")
        return pictures[0]

    def _unreadable(self, why: str) -> DataError:
        return DataError(
            f"{self.name}: not a readable video ({why}); cut short, damaged, or not a video; expected a file that FFmpeg plays"
        )

    def _warn_of_hdr(self) -> None:
        curve = HDR_CURVES.get(int(getattr(self._stream.codec_context, "color_trc", 0) or 0))
        if curve:
            LOG.warning("%s: is HDR (%s); its colours are taken as they are, without tone mapping", self.name, curve)

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames until the end; damaged packets are counted and passed over."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except FAULTS:
                self.damaged += 1
                if self.damaged > MOST_DAMAGED and self.decoded == 0:
                    return
                continue
            yield from frames

    def read(self, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8] | None:
        """The next picture, (H,W,3) BGR, None at the end. `out` may be written where it has the size."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return self._next(out)

    def _next(self, out: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        frame = next(self._frames, None)
        if frame is None:
            return None
        self.decoded += 1
        self.time_s = frame.time
        if self._turns is None:
            self._turns = round(frame.rotation / 90) % 4
        image = frame.to_ndarray(format="bgr24")
        if self._turns:
            image = np.rot90(image, self._turns)
        if out is not None and out.shape == image.shape:
            np.copyto(out, image)
            return out
        return np.ascontiguousarray(image)

    def require_whole(self) -> None:
        """After the end: raise DataError when frames are missing that the container promised, or packets were damaged."""
        got, promised = self.decoded, self.length
        exact = Path(self.name).suffix.lower() in EXACT
        if promised is not None and got < promised - (1 if exact else max(30, promised // 10)):
            raise DataError(
                f"{self.name}: ends after {got} of {promised} frames; the file is cut short or damaged "
                f"(the {got} frames before were processed)"
            )
        if self.damaged:
            raise DataError(
                f"{self.name}: {self.damaged} packets are damaged and were passed over; the {got} frames around were processed"
            )

    def close(self) -> None:
        """Safe to call twice."""
        self._container.close()
