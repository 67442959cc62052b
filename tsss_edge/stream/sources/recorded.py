"""Video files, pictures and generated scenes -> frames, every one, in order."""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.voc import read_image
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Frame
from tsss_edge.stream.process import as_bgr, quiet
from tsss_edge.stream.uris import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Uri, printf_pattern

SCENE_FRAMES = 90  # of synthetic://, then the next scene begins; ours: three seconds at 30 frames a second

# (H,W,3) BGR, None at the end; (H,W) true labels where they are known
Picture = tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]
Render = Callable[[int, float], tuple[NDArray[np.uint8], NDArray[np.uint8]]]  # scene, seconds -> (RGB image, mask)


class _Recorded(ABC):
    """A `Source` that gives every frame in order."""

    live = False
    fps = 0.0
    length: int | None = None
    size_hw: tuple[int, int]

    def __init__(self) -> None:
        self.state = "OPEN"
        self._index = 0

    @abstractmethod
    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Picture:
        """Picture number `index` and its truth."""

    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        """Give the next frame, None at the end. Raises: DataError: a video is cut short, a picture is not readable."""
        if self.state == "ENDED":
            return None
        image, truth = self._picture(self._index, out)
        if image is None:
            self._end()
            return None
        self.state = "STREAMING"
        self.size_hw = (image.shape[0], image.shape[1])
        frame = Frame(image, self._index, time.monotonic(), truth=truth)
        self._index += 1
        return frame

    def _end(self) -> None:
        self.close()

    def close(self) -> None:
        """Give no more frames. Safe to call twice."""
        self.state = "ENDED"


class VideoSource(_Recorded):
    """A video file, read with OpenCV's FFmpeg. `length` is what the container says, until the end is reached."""

    def __init__(self, path: str, *, name: str, decode_threads: int | None = None) -> None:
        super().__init__()
        self._name = name
        if "://" not in path and Path(path).stat().st_size == 0:
            raise DataError(f"{name}: the file is empty (0 bytes); copy or record it again")
        options = [cv2.CAP_PROP_N_THREADS, decode_threads] if decode_threads else []
        with quiet():
            self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, options)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = fps if math.isfinite(fps) and fps > 0 else 0.0
        self.length = int(count) if count > 0 else None
        self._first = self._decode(None) if self._capture.isOpened() else None
        if self._first is None:
            self._capture.release()
            raise DataError(f"{name}: not a readable video (cut short or damaged?); expected a file that FFmpeg plays")
        self.size_hw = (self._first.shape[0], self._first.shape[1])

    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Picture:
        return (self._first if index == 0 else self._decode(out)), None

    def _decode(self, out: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """The next picture, in `out` where that has the size."""
        ok, picture = self._capture.read(out)
        return as_bgr(picture) if ok and picture is not None else None

    def _end(self) -> None:
        """Close; complain when frames are missing that the container promised."""
        promised, got = self.length, self._index
        self.close()
        self.length = got
        # MP4 and MOV hold an exact count, the others only duration x rate.
        exact = Path(self._name).suffix.lower() in (".mp4", ".mov", ".m4v")
        tolerance = 1 if exact else max(30, (promised or 0) // 10)
        if promised is not None and got < promised - tolerance:
            raise DataError(
                f"{self._name}: ends after {got} of {promised} frames; the file is cut short or damaged "
                f"(the {got} frames before were processed)"
            )

    def close(self) -> None:
        super().close()
        self._capture.release()


class PictureSource(_Recorded):
    """Picture files, one frame each, in natural order. They may differ in size; `fps` is 0."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = list(paths)
        self.length = len(self._paths)
        self._first = _read_bgr(self._paths[0])
        self.size_hw = (self._first.shape[0], self._first.shape[1])

    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Picture:
        if index == len(self._paths):
            return None, None
        return (self._first if index == 0 else _read_bgr(self._paths[index])), None


class SyntheticSource(_Recorded):
    """`frames` pictures (0: without end) of the generator's scenes, each with its mask. Deterministic by `seed`."""

    def __init__(self, render: Render, *, size_hw: tuple[int, int], fps: float, frames: int) -> None:
        super().__init__()
        self._render = render
        self.size_hw = size_hw
        self.fps = fps
        self.length = frames or None

    @classmethod
    def open(cls, uri: Uri) -> SyntheticSource:
        """From `synthetic://?size=640x480&fps=30&frames=300&seed=0`. Raises: DataError: a setting is wrong."""
        from tsss_edge.data.synthetic import Scenes

        size_hw = uri.size_hw((480, 640))
        assert size_hw is not None
        try:
            scenes = Scenes(uri.whole("seed", 0), size_hw)
        except ValueError as error:
            raise DataError(f"{uri.shown}: {error}") from error
        fps = uri.number("fps", 30.0, minimum=0.1)
        return cls(scenes.frame, size_hw=size_hw, fps=fps, frames=uri.whole("frames", 300))

    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Picture:
        if index == self.length:
            return None, None
        scene, step = divmod(index, SCENE_FRAMES)
        image, mask = self._render(scene, step / self.fps)
        return np.ascontiguousarray(image[..., ::-1]), mask


def find_pictures(text: str) -> list[Path]:
    """A picture, a folder, a glob, or a `%i` sequence -> picture paths in natural order (2 before 10).

    Raises: DataError: nothing matches.
    """
    path = Path(text)
    field = printf_pattern(path.name)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".")]
    elif field:
        before, _, after = path.name.partition(field)
        numbered = re.compile(re.escape(before) + r"\d+" + re.escape(after))
        found = [p for p in path.parent.glob("*") if numbered.fullmatch(p.name)]
    elif "*" in text:
        found = list(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor) if path.anchor else path)))
        if any(p.suffix.lower() in VIDEO_SUFFIXES for p in found):
            raise DataError(f"{text}: matches video files; stream one video at a time")
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise DataError(f"{text}: no picture there ({', '.join(PICTURE_SUFFIXES)})")
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple[str, list[tuple[int, int, str]]]:
    """Sort key: numbers inside a name compare as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return str(path.parent), [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def _read_bgr(path: Path) -> NDArray[np.uint8]:
    return np.ascontiguousarray(read_image(path)[..., ::-1])
