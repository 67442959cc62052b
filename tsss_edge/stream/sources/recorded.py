"""Video files, pictures and generated scenes -> frames, every one, in order."""

from __future__ import annotations

import math
import re
import time
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

Render = Callable[[int, float], tuple[NDArray[np.uint8], NDArray[np.uint8]]]  # scene, seconds -> (RGB image, mask)


class VideoSource:
    """A video file, read with OpenCV's FFmpeg. `length` is what the container says, until the end is reached."""

    live = False

    def __init__(self, path: str, *, name: str, decode_threads: int | None = None) -> None:
        self._name = name
        self._check_size(path)
        options = [cv2.CAP_PROP_N_THREADS, decode_threads] if decode_threads else []
        with quiet():
            self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, options)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps: float = fps if math.isfinite(fps) and fps > 0 else 0.0
        self.length: int | None = int(count) if count > 0 else None
        self.state = "OPEN"
        self._index = 0
        self._first = self._read_first()
        self.size_hw: tuple[int, int] = (self._first.shape[0], self._first.shape[1])

    def _check_size(self, path: str) -> None:
        if "://" not in path and Path(path).stat().st_size == 0:
            raise DataError(f"{self._name}: the file is empty (0 bytes); copy or record it again")

    def _read_first(self) -> NDArray[np.uint8]:
        ok, image = self._capture.read() if self._capture.isOpened() else (False, None)
        if not ok or image is None:
            self._capture.release()
            raise DataError(
                f"{self._name}: not a readable video (cut short, damaged, or not a video); "
                "expected a file that FFmpeg plays"
            )
        return as_bgr(image)

    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        """The next frame, None at the end. Raises: DataError: the file ends well before its own frame count."""
        if self.state == "ENDED":
            return None
        image: NDArray[np.uint8] | None
        if self._index == 0:
            image = self._first
        else:
            ok, picture = self._capture.read(out)  # into `out` where it has the size
            image = as_bgr(picture) if ok and picture is not None else None
        if image is None:
            self._end()
            return None
        self.state = "STREAMING"
        self.size_hw = (image.shape[0], image.shape[1])
        frame = Frame(image=image, index=self._index, captured=time.monotonic())
        self._index += 1
        return frame

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
        self.state = "ENDED"
        self._capture.release()


class PictureSource:
    """Picture files, one frame each, in natural order. They may differ in size; `fps` is 0."""

    live = False
    fps = 0.0

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self.length: int | None = len(self._paths)
        self.state = "OPEN"
        self._index = 0
        self._first = _read_bgr(self._paths[0])
        self.size_hw: tuple[int, int] = (self._first.shape[0], self._first.shape[1])

    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        """The next picture, None at the end. Raises: DataError: a file is not a readable picture (the message names it)."""
        if self.state == "ENDED" or self._index == len(self._paths):
            self.close()
            return None
        self.state = "STREAMING"
        image = self._first if self._index == 0 else _read_bgr(self._paths[self._index])
        self.size_hw = (image.shape[0], image.shape[1])
        frame = Frame(image=image, index=self._index, captured=time.monotonic())
        self._index += 1
        return frame

    def close(self) -> None:
        self.state = "ENDED"


class SyntheticSource:
    """`frames` pictures (0: without end) of the generator's scenes, each with its mask. Deterministic by `seed`."""

    live = False

    def __init__(self, render: Render, *, size_hw: tuple[int, int], fps: float, frames: int) -> None:
        self._render = render
        self.size_hw = size_hw
        self.fps: float = fps
        self.length: int | None = frames or None
        self.state = "OPEN"
        self._index = 0

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

    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        """The next frame with its truth, None at the end."""
        if self.state == "ENDED" or self._index == self.length:
            self.close()
            return None
        self.state = "STREAMING"
        scene, step = divmod(self._index, SCENE_FRAMES)
        image, mask = self._render(scene, step / self.fps)
        frame = Frame(np.ascontiguousarray(image[..., ::-1]), self._index, time.monotonic(), truth=mask)
        self._index += 1
        return frame

    def close(self) -> None:
        self.state = "ENDED"


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
