"""`synthetic://`: moving scenes with known masks -> frames with truth, so that live accuracy can be shown."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Frame
from tsss_edge.stream.sources.live import EndOfStream, FilePlayer
from tsss_edge.stream.uris import Uri

SCENE_FRAMES = 90  # then the next scene begins; ours: three seconds at 30 frames a second

Render = Callable[[int, float], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


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


class SyntheticCamera(FilePlayer):
    """The same scenes at the pace of a camera (`live=1`)."""

    @classmethod
    def open(cls, uri: Uri) -> SyntheticCamera:
        """As `SyntheticSource.open`."""
        return cls(SyntheticSource.open(uri))


__all__ = ["EndOfStream", "SyntheticCamera", "SyntheticSource"]
