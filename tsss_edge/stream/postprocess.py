"""A network's outputs and their frame -> a `Result`: labels at frame resolution, objectness, blended picture.

Arrays are made once and go round: `recycle` brings back what the sinks are done with.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import Backend, Outputs
from tsss_edge.errors import ArtifactError
from tsss_edge.kernels.overlay import OverlayPlan
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan
from tsss_edge.segment import resize_labels
from tsss_edge.stream.frames import Frame, Result

FINITE_FRAMES = 8  # an engine that overflows does so on its first pictures


class Spares:
    """Arrays of one kind that are used again and again; those of another shape (the camera changed it) are let go."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._dtype = dtype
        self._arrays: deque[NDArray[Any]] = deque()  # its append and popleft are thread-safe

    def take(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """One of `shape`; new when there is none."""
        while (array := self.take_any()) is not None:
            if array.shape == shape:
                return array
        return np.empty(shape, self._dtype)

    def take_any(self) -> NDArray[Any] | None:
        """One of any shape, None when there is none."""
        try:
            return self._arrays.popleft()
        except IndexError:
            return None

    def give(self, array: NDArray[Any] | None) -> None:
        """Take one back."""
        if array is not None:
            self._arrays.append(array)


class Postprocess:
    """For one stream. `keep` and `result` belong to one thread, `recycle` may be called from another.

    Args: blend: make `Result.overlay`.
    """

    def __init__(self, backend: Backend, *, blend: bool) -> None:
        self._preprocess, self._classes = backend.preprocess, backend.classes
        self._blend = blend
        self._outputs: dict[str, NDArray[Any]] = {}
        self._kept = 0
        self._upsample: UpsampleArgmaxPlan | None = None
        self._overlay: OverlayPlan | None = None
        self._labels, self._blended, self._objectness = Spares(np.uint8), Spares(np.uint8), Spares(np.float32)

    def keep(self, outputs: Outputs) -> None:
        """Copy a network's outputs (one picture); their memory may be overwritten from then on.

        Raises: ArtifactError: NaN or infinity in one of the first frames.
        """
        for name, array in outputs.items():
            if name not in self._outputs:
                self._outputs[name] = np.empty_like(array)
            np.copyto(self._outputs[name], array)
        if self._kept < FINITE_FRAMES:
            require_finite(self._outputs)
        self._kept += 1

    def result(self, frame: Frame, stages_ms: dict[str, float]) -> Result:
        """The result of `frame` from the outputs kept last; adds the time of its steps to `stages_ms`."""
        with timed(stages_ms, "upsample_argmax"):
            labels = self._segment((frame.image.shape[0], frame.image.shape[1]))
        blended = None
        if self._blend:
            with timed(stages_ms, "overlay"):
                blended = self._paint(frame.image, labels)
        return Result(frame, labels, self._copy_objectness(), blended, stages_ms)

    def recycle(self, result: Result) -> None:
        """Take back the arrays of a result, but for its frame's."""
        self._labels.give(result.labels)
        self._blended.give(result.overlay)
        self._objectness.give(result.objectness)

    def _segment(self, frame_hw: tuple[int, int]) -> NDArray[np.uint8]:
        if "logits" not in self._outputs:
            place, out = self._preprocess.place(frame_hw), self._labels.take(frame_hw)
            return resize_labels(self._outputs["labels"][0], frame_hw, place, out)
        logits = self._outputs["logits"][0]
        if self._upsample is None or self._upsample.frame_hw != frame_hw:
            self._upsample = UpsampleArgmaxPlan(logits.shape, frame_hw, self._preprocess.place(frame_hw))
        return self._upsample(logits, self._labels.take(frame_hw))

    def _paint(self, image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._overlay is None or self._overlay.frame_hw != labels.shape:
            frame_hw = (labels.shape[0], labels.shape[1])
            self._overlay = OverlayPlan(frame_hw, self._classes.palette, shown=self._classes.objects)
        blended = self._blended.take(image.shape)
        np.copyto(blended, image)
        return self._overlay(blended, labels)

    def _copy_objectness(self) -> NDArray[np.float32] | None:
        if (array := self._outputs.get("objectness")) is None:
            return None
        copy = self._objectness.take(array.shape[2:])
        np.copyto(copy, array[0, 0])
        return copy


@contextmanager
def timed(stages_ms: dict[str, float], name: str) -> Iterator[None]:
    """Put the milliseconds of the block into `stages_ms[name]`."""
    started = time.monotonic()
    yield
    stages_ms[name] = (time.monotonic() - started) * 1000


def require_finite(outputs: Outputs) -> None:
    """Raise ArtifactError when an output holds NaN or infinity."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(
                f"the engine's {name} hold NaN or infinity, expected finite numbers; "
                "build it again, in FP32 where this machine's lower precision overflows"
            )
