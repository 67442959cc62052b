"""Overlays -> a video file or stream that plays whatever ends the process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.disk import settle
from tsss_edge.errors import DataError, masked
from tsss_edge.kernels.yuv import Colour
from tsss_edge.stream.av_writer import DEFAULT_COLOUR, WRITABLE, VideoWriter, kind_of
from tsss_edge.stream.encode_thread import EncodeThread
from tsss_edge.stream.encoders import Preset
from tsss_edge.stream.frames import FrameResult, bgr_of, picture_hw

LOG = logging.getLogger("tsss_edge")
ONE_FILE = tuple(kind for kind in WRITABLE if kind != ".m3u8")  # HLS is a list and many pieces


class VideoSink:
    """A video of the source's size and rate, as `av_writer` writes its kind.

    A file is written beside its place, as NAME.recording.mp4, and takes its name in `close`: an older one stays until then, and
    what a killed process leaves plays up to the last second. A frame of another size (the camera changed its resolution) is
    scaled into the first size, with its aspect kept.
    """

    wants_overlay = True

    def __init__(
        self,
        target: str,
        *,
        fps: float,
        size_hw: tuple[int, int],
        audio_from: str | None = None,
        colour: Colour | None = None,
        aspect: Fraction | None = None,
        preset: Preset = "auto",
        live: bool = False,
    ) -> None:
        kind = kind_of(target)
        assert kind is not None
        self._size_hw = size_hw
        self._path = Path(target) if kind in ONE_FILE else None
        self._written = recording_path(self._path) if self._path else None
        if kind != "rtsp":
            with writable(Path(target)):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
        place = target if self._written is None else str(self._written)
        self._target, self._colour = target, colour or DEFAULT_COLOUR
        self._thread: EncodeThread | None = None
        try:
            self._writer = VideoWriter(
                place,
                kind=kind,
                fps=fps,
                size_hw=size_hw,
                audio_from=audio_from,
                colour=self._colour,
                aspect=aspect,
                preset=preset,
            )
        except DataError:
            self._discard()
            raise
        self._thread = EncodeThread(self._writer, live=live)
        if self._writer.encoder is not None:
            LOG.info("%s: encoded by %s", masked(target), self._writer.encoder.why)

    def write(self, result: FrameResult) -> None:
        """Append `result.painted`, at the source's own time where it has one. Raises: DataError: it cannot be written."""
        assert self._thread is not None and result.painted is not None
        picture = result.painted
        if picture_hw(picture) != self._size_hw:
            picture = _letterbox(bgr_of(picture), self._size_hw)
        self._thread.write(picture, result.frame.time_s)

    @property
    def encode_ms(self) -> float:
        """What the last frame cost on the encoder's thread, milliseconds; 0 before the first."""
        return self._thread.encode_ms if self._thread is not None else 0.0

    def close(self) -> None:
        """Finish the file and give it its name; without a frame there is no file. Raises: DataError: a full disk."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.close()
        if thread.left_out:
            LOG.warning(
                "%s: %d frames are not in it, because the encoder did not keep up",
                masked(self._target),
                thread.left_out,
            )
        if self._written is None or self._path is None:
            return
        if self._writer.frames:
            with writable(self._path):  # a disk may say only now that it is full
                settle(self._written)
                self._written.replace(self._path)
        else:
            self._discard()

    def _discard(self) -> None:
        if self._written is not None:
            self._written.unlink(missing_ok=True)


def recording_path(path: Path) -> Path:
    """Where a file is written before it has its name: out.mp4 -> out.recording.mp4."""
    return path.with_name(f"{path.stem}.recording{path.suffix}")


def growing_path(path: Path) -> Path:
    """What grows while `path` is recorded: the file before it has its name; of HLS the list, written anew with each piece."""
    return recording_path(path) if kind_of(str(path)) in ONE_FILE else path


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Within the block an OSError becomes a DataError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror})") from error


def _letterbox(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """`image` scaled to fit `size_hw`, centred on black."""
    (height, width), (rows, columns) = image.shape[:2], size_hw
    ratio = min(rows / height, columns / width)
    h, w = max(1, min(rows, round(height * ratio))), max(1, min(columns, round(width * ratio)))
    canvas = np.zeros((rows, columns, 3), np.uint8)
    top, left = (rows - h) // 2, (columns - w) // 2
    canvas[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    return canvas
