"""Overlays -> a video file, whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.errors import DataError
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.process import quiet

SINK_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi")


class VideoSink:
    """A video of the source's size and rate, MPEG-4 part 2 (what every OpenCV wheel can write).

    Frames go to a hidden sibling that takes the real name in `close`, after it was opened again and its frames
    counted. The codec wants even sides: an odd one is padded by repeating its last row or column. A frame of another
    size (the camera changed its resolution) is scaled into the first size, with its aspect kept.
    """

    wants_overlay = True

    def __init__(self, path: Path, *, fps: float, size_hw: tuple[int, int]) -> None:
        self._path = path
        self._size_hw = size_hw
        self._even_hw = (size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2)
        self._frames = 0
        self._temporary = _sibling(path)
        codec = "MJPG" if path.suffix.lower() == ".avi" else "mp4v"
        with quiet():
            self._writer: cv2.VideoWriter | None = cv2.VideoWriter(
                str(self._temporary),
                cv2.CAP_FFMPEG,
                cv2.VideoWriter.fourcc(*codec),
                writable_rate(fps),
                self._even_hw[::-1],
            )
        if not self._writer.isOpened():
            self._discard()
            raise DataError(f"{path}: cannot write a {size_hw[1]}x{size_hw[0]} video at {fps:g} frames a second there")

    def write(self, result: FrameResult) -> None:
        """Append `result.overlay`."""
        assert self._writer is not None and result.overlay is not None
        self._writer.write(self._fit(result.overlay))
        self._frames += 1

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[:2] == self._even_hw:
            return image
        if image.shape[:2] != self._size_hw:
            image = _letterbox(image, self._size_hw)
        bottom, right = (even - odd for even, odd in zip(self._even_hw, self._size_hw, strict=True))
        return np.asarray(cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)

    def close(self) -> None:
        """Finish the file and give it its name; without a frame there is no file.

        Raises: DataError: the file does not hold the frames that were written (for one, a full disk).
        """
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if self._frames == 0:
            self._discard()
            return
        found = _count_frames(self._temporary)
        if found < self._frames:
            self._discard()
            raise DataError(f"{self._path}: only {found} of {self._frames} frames reached the file; is the disk full?")
        self._temporary.chmod(0o644)
        self._temporary.replace(self._path)

    def _discard(self) -> None:
        self._writer = None
        self._temporary.unlink(missing_ok=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Within the block an OSError becomes a DataError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror})") from error


def _sibling(path: Path) -> Path:
    """An empty hidden file beside `path`, with its suffix. Raises: DataError: the folder cannot be written."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    return Path(name)


def writable_rate(fps: float) -> float:
    """A rate that MPEG-4 can hold, which counts a second in at most 65535 parts: 239.651 becomes 239.65."""
    return next(rate for digits in (3, 2, 1, 0) if (rate := round(fps, digits)) * 10**digits <= 65535 or digits == 0)


def _letterbox(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """`image` scaled to fit `size_hw`, centred on black."""
    (height, width), (rows, columns) = image.shape[:2], size_hw
    ratio = min(rows / height, columns / width)
    h, w = max(1, min(rows, round(height * ratio))), max(1, min(columns, round(width * ratio)))
    canvas = np.zeros((rows, columns, 3), np.uint8)
    top, left = (rows - h) // 2, (columns - w) // 2
    canvas[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    return canvas


def _count_frames(path: Path) -> int:
    """Frames a player would find; from the container's index, so without decoding."""
    with quiet():
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
