"""A video file -> its frames by PyAV: AV1, VP9, HEVC, 10 bits, variable frame rate; turned as the file says.

8 bits of 4:2:0, which is nearly every video, stay in the decoder's planes (`Yuv`, without a copy); so do 10 bits, cut to 8. Other
kinds, and what is turned, become (H,W,3) uint8 BGR. In the order of display, each with its time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from tsss_edge.errors import DataError
from tsss_edge.kernels.yuv import Colour, Yuv, chroma_hw
from tsss_edge.stream.frames import Picture, picture_hw

LOG = logging.getLogger("tsss_edge")

PLANES = ("yuv420p", "yuvj420p", "nv12")
DEEPER = ("yuv420p10le", "yuv420p12le", "p010le")  # FFmpeg makes planes of 8 bits of them
MATRICES: dict[int, Literal["bt601", "bt709"]] = {1: "bt709", 2: "bt601", 4: "bt601", 5: "bt601", 6: "bt601"}  # H.273;
# 2 is "not told", which FFmpeg and OpenCV read as BT.601
FULL_RANGE = 2  # AVCOL_RANGE_JPEG
HDR_CURVES = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
FAULTS = (av.FFmpegError, OSError, ValueError)  # all that PyAV raises for files and addresses
SERVER_S = 5.0  # seconds that a server may say nothing
MOST_BACK_S = 0.5  # a time further back than this is another recording's; less is a sloppy file, and stays
MOST_DAMAGED = 500  # packets before the first picture, then it is no video
EXACT = (".mp4", ".mov", ".m4v")  # containers whose frame count is exact, unless they are fragmented


class VideoReader:
    """One open video. `length` is what the container says (None: nothing), `fps` its average rate (0: unknown).

    FFmpeg's log is nobody's: PyAV drops it by itself. `av.logging.set_level`, whatever the level, would bring a callback that
    needs Python's lock, and with decoder threads a process then hangs at its end.
    """

    def __init__(self, path: str, *, name: str | None = None, threads: int | None = None) -> None:
        """Open a path or address and decode the first frame.

        Raises: DataError: empty, not a video, without pictures, or damaged before the first frame.
        """
        self.name = name or path
        if "://" not in path and Path(path).is_file() and Path(path).stat().st_size == 0:
            raise DataError(f"{self.name}: the file is empty (0 bytes); copy or record it again")
        self.decoded = self.damaged = 0  # frames given, packets passed over
        self._container = self._open(path)
        self._stream = self._video_stream()
        self._stream.thread_type = "AUTO"
        if threads:
            self._stream.codec_context.thread_count = threads
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate and math.isfinite(float(rate)) and float(rate) > 0 else 0.0
        self.length = self._promised()
        self.codec: str = self._stream.codec_context.name  # FFmpeg's
        self.time_s: float | None = None  # of the last frame given, from the start
        self._shift_s = 0.0  # what the file's times are moved by
        self._turns: int | None = None
        self.bits = 8  # of a value
        self.colour: Colour | None = None  # of the whole stream, from its first frame; None: frames are BGR
        self._frames = self._decode()
        self._first: Picture | None = self._next(None)
        if self._first is None:
            self.close()
            raise self._unreadable("no picture could be decoded")
        self.size_hw: tuple[int, int] = picture_hw(self._first)
        self.aspect = self._aspect()  # of a pixel, width over height; None: square, or not told
        self._warn_of_hdr()

    def _open(self, path: str) -> av.container.InputContainer:
        try:
            return av.open(path, timeout=(SERVER_S, SERVER_S) if "://" in path else None)
        except av.ExitError as error:
            raise self._silent() from error
        except FAULTS as error:
            raise self._unreadable(str(error)) from error

    def _video_stream(self) -> Any:
        streams = self._container.streams.video
        pictures = [s for s in streams if not s.disposition & s.disposition.__class__.attached_pic] or list(streams)
        if not pictures:
            self._container.close()
            raise DataError(f"{self.name}: holds no pictures, only sound or other data; expected a video")
        return pictures[0]

    def _promised(self) -> int | None:
        """Frames by the container; where its index is exact, without those that an edit list cuts off."""
        frames: int = self._stream.frames
        if frames and self._exact:
            return sum(not entry.is_discard for entry in self._stream.index_entries) or frames
        return frames or None

    @property
    def _exact(self) -> bool:
        return Path(self.name).suffix.lower() in EXACT

    def _unreadable(self, why: str) -> DataError:
        return DataError(
            f"{self.name}: not a readable video ({why}); cut short, damaged, or not a video; expected a file that FFmpeg plays"
        )

    def _silent(self) -> DataError:
        """After FFmpeg waited in vain."""
        return DataError(
            f"{self.name}: the server has not answered for {SERVER_S:g} s ({self.decoded} frames came before); "
            "check it and the network, or copy the file here"
        )

    def _aspect(self) -> Fraction | None:
        told: Fraction | None = self._stream.sample_aspect_ratio
        return 1 / told if told and self._turns in (1, 3) else told or None

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
            except av.ExitError as error:
                raise self._silent() from error
            except FAULTS:
                self.damaged += 1
                if self.damaged > MOST_DAMAGED and self.decoded == 0:
                    return
                continue
            yield from frames

    def read(self, out: NDArray[np.uint8] | None = None) -> Picture | None:
        """The next picture, None at the end. `out` may be written where BGR is made and it has the size."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return self._next(out)

    def _next(self, out: NDArray[np.uint8] | None) -> Picture | None:
        frame = next(self._frames, None)
        if frame is None:
            return None
        self.decoded += 1
        self.time_s = self._on_from(frame.time)
        if self._turns is None:
            self._turns = round(frame.rotation / 90) % 4
            self.colour = None if self._turns else _colour_of(frame)
            self.bits = max(part.bits for part in frame.format.components)
        if self.colour is not None:
            return _planes_of(frame, self.colour)
        image = frame.to_ndarray(format="bgr24")
        if self._turns:
            image = np.rot90(image, self._turns)
        if out is not None and out.shape == image.shape:
            np.copyto(out, image)
            return out
        return np.ascontiguousarray(image)

    def _on_from(self, told_s: float | None) -> float | None:
        """The frame's time. Where the file's clock jumps back (two recordings in one) time goes on after the frame before."""
        if told_s is None:
            return None
        if self.time_s is not None and told_s + self._shift_s < self.time_s - MOST_BACK_S:
            self._shift_s = self.time_s + (1 / self.fps if self.fps else 0.04) - told_s
        return told_s + self._shift_s

    @property
    def variable_rate(self) -> bool:
        """Whether the file's index says that frames come at uneven times. A file without one says nothing."""
        times = sorted(entry.timestamp for entry in self._stream.index_entries)
        steps = [b - a for a, b in pairwise(times)]
        return bool(steps) and max(steps) - min(steps) > 1  # a tick is rounding

    def require_whole(self) -> None:
        """After the end: raise DataError when frames are missing that the container promised, or packets were damaged."""
        got, promised = self.decoded, self.length
        if promised is not None and got < promised - (1 if self._exact else max(30, promised // 10)):
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


def _colour_of(frame: av.VideoFrame) -> Colour | None:
    """What the planes mean; None where they are to become BGR."""
    matrix = MATRICES.get(int(frame.colorspace))
    if matrix is None or frame.format.name not in (*PLANES, *DEEPER):
        return None
    return Colour(matrix, full=int(frame.color_range) == FULL_RANGE or frame.format.name == "yuvj420p")


def _planes_of(frame: av.VideoFrame, colour: Colour) -> Yuv:
    """The frame's own memory, which lives as long as the result."""
    if frame.format.name not in PLANES:
        frame = frame.reformat(format="yuv420p")
    (h, w), frame_hw = chroma_hw((frame.height, frame.width)), (frame.height, frame.width)
    y = plane_rows(frame.planes[0], *frame_hw)
    if frame.format.name == "nv12":
        return Yuv(y, (plane_rows(frame.planes[1], h, 2 * w).reshape(h, w, 2),), colour, frame)
    return Yuv(y, (plane_rows(frame.planes[1], h, w), plane_rows(frame.planes[2], h, w)), colour, frame)


def plane_rows(plane: Any, rows: int, columns: int) -> NDArray[np.uint8]:
    """(rows, columns) view of a plane of PyAV, without what FFmpeg keeps behind each row."""
    return np.frombuffer(plane, np.uint8)[: rows * plane.line_size].reshape(rows, plane.line_size)[:, :columns]
