"""Video files, pictures and generated scenes -> frames, every one, in order."""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.pictures import is_picture, read_image
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Frame, Picture, picture_hw
from tsss_edge.stream.sources.hardware import open_reader
from tsss_edge.stream.uris import VIDEO_SUFFIXES, Uri, printf_pattern

LOG = logging.getLogger("tsss_edge")
SCENE_FRAMES = 90  # of synthetic:// without `scene`, then the next begins; ours: three seconds at 30 frames a second

# A picture, None at the end; (H,W) true labels where they are known
Shown = tuple[Picture | None, NDArray[np.uint8] | None]
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
    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Shown:
        """Picture number `index` and its truth."""

    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        """Give the next frame, None at the end. Raises: DataError: a video is cut short, a picture is not readable."""
        if self.state == "ENDED":
            return None
        picture, truth = self._picture(self._index, out)
        if picture is None:
            self._end()
            return None
        self.state = "STREAMING"
        self.size_hw = picture_hw(picture)
        frame = Frame(picture, self._index, time.monotonic(), truth=truth, time_s=self._time_s, place=self._listed)
        self._index += 1
        return frame

    @property
    def _time_s(self) -> float | None:
        """When the last picture is shown, seconds from the start; None where its source has no clock."""
        return None

    @property
    def _listed(self) -> int | None:
        """The place of the last picture in the list that the source is; None where it is none."""
        return None

    def _end(self) -> None:
        self.close()

    def close(self) -> None:
        """Give no more frames. Safe to call twice."""
        self.state = "ENDED"


class VideoSource(_Recorded):
    """A video file or address, read with PyAV or by a hardware decoder. `length` is what the container says, until the end is reached."""

    def __init__(self, path: str, *, name: str, decode_threads: int | None = None) -> None:
        super().__init__()
        self._reader = open_reader(path, name=name, threads=decode_threads)
        self.fps, self.length, self.size_hw = self._reader.fps, self._reader.length, self._reader.size_hw
        self.colour = self._reader.colour  # None: BGR
        self.aspect = self._reader.aspect  # of a pixel

    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Shown:
        return self._reader.read(out), None

    @property
    def _time_s(self) -> float | None:
        return self._reader.time_s

    def _end(self) -> None:
        """Close; complain when frames are missing that the container promised."""
        self.close()
        self.length = self._index
        self._reader.require_whole()

    def close(self) -> None:
        super().close()
        self._reader.close()


class PictureSource(_Recorded):
    """Picture files, one frame each, in natural order. They may differ in size; `fps` is 0.

    One that cannot be read is named on the log, kept in `unreadable` and passed over, unless none can be read. `listed` counts all.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = list(paths)
        self.listed = len(self._paths)
        self._place = 0  # in the list, of the next picture
        self.unreadable: list[str] = []
        first = self._next()
        if first is None:
            raise DataError(self.unreadable[0])
        self._first: NDArray[np.uint8] | None = first
        self.length = len(self._paths) - len(self.unreadable)
        self.size_hw = (first.shape[0], first.shape[1])

    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Shown:
        first, self._first = self._first, None
        return (self._next() if first is None else first), None

    @property
    def _listed(self) -> int | None:
        return self._place - 1

    def _next(self) -> NDArray[np.uint8] | None:
        """The next picture that can be read, (H,W,3) BGR; None after the last."""
        while self._place < len(self._paths):
            path = self._paths[self._place]
            self._place += 1
            try:
                return _read_bgr(path)
            except DataError as error:
                LOG.warning("passed over: %s", error)
                self.unreadable.append(str(error))
        return None


class SyntheticSource(_Recorded):
    """`frames` pictures (0: without end) of the generator's scenes, each with its mask. Deterministic by `seed`."""

    def __init__(
        self, render: Render, *, size_hw: tuple[int, int], fps: float, frames: int, scene_frames: int = SCENE_FRAMES
    ) -> None:
        super().__init__()
        self._render, self._scene_frames = render, scene_frames
        self.size_hw = size_hw
        self.fps = fps
        self.length = frames or None

    @classmethod
    def open(cls, uri: Uri) -> SyntheticSource:
        """From `synthetic://?size=640x480&fps=30&frames=300&scene=90&seed=0`. Raises: DataError: a setting is wrong."""
        from tsss_edge.data.synthetic import Scenes

        size_hw = uri.size_hw((480, 640))
        assert size_hw is not None
        try:
            scenes = Scenes(uri.whole("seed", 0), size_hw)
        except ValueError as error:
            raise DataError(f"{uri.shown}: {error}") from error
        fps = uri.number("fps", 30.0, minimum=0.1)
        each = uri.whole("scene", SCENE_FRAMES, minimum=1)
        return cls(scenes.frame, size_hw=size_hw, fps=fps, frames=uri.whole("frames", 300), scene_frames=each)

    def _picture(self, index: int, out: NDArray[np.uint8] | None) -> Shown:
        if index == self.length:
            return None, None
        scene, step = divmod(index, self._scene_frames)
        image, mask = self._render(scene, step / self.fps)
        return np.ascontiguousarray(image[..., ::-1]), mask


def find_pictures(text: str) -> list[Path]:
    """A picture, a folder, a glob, or a `%i` sequence -> picture paths in natural order (2 before 10).

    Raises: DataError: nothing matches.
    """
    path = Path(text)
    field = printf_pattern(path.name)
    if path.is_dir():
        found = [p for p in path.iterdir() if is_picture(p)]
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
        raise DataError(f"{text}: no picture there (.jpg, .png, .webp, .tif, ...)")
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple[str, list[tuple[int, int, str]]]:
    """Sort key: numbers inside a name compare as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return str(path.parent), [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def _read_bgr(path: Path) -> NDArray[np.uint8]:
    return np.ascontiguousarray(read_image(path)[..., ::-1])
