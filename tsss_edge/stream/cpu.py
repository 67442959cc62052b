"""The stages of a frame on the CPU around any engine: preprocess, network, upsample + argmax, overlay."""

from __future__ import annotations

import time
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import AsyncBackend
from tsss_edge.kernels.preprocess import PreprocessPlan
from tsss_edge.stream.frames import Frame, Result
from tsss_edge.stream.postprocess import Postprocess, timed


class CpuStages:
    """`Stages` whose slots are the engine's requests. Results have arrays of their own, so a slot is free early.

    Args: blend: make `Result.overlay`.
    """

    holds_slot = False

    def __init__(self, backend: AsyncBackend, *, blend: bool) -> None:
        self.name = backend.name
        self.slots = self.in_flight = backend.slots
        self._backend = backend
        self._postprocess = Postprocess(backend, blend=blend)
        self._inputs = np.zeros((backend.slots, 1, *backend.preprocess.size_hw, 3), np.uint8)
        self._plan: PreprocessPlan | None = None
        self._started = [0.0] * backend.slots
        self._running: set[int] = set()

    def thread(self) -> nullcontext[None]:
        """Nothing is needed."""
        return nullcontext()

    def start(self, slot: int, image: NDArray[np.uint8], stages_ms: dict[str, float]) -> None:
        """Resize (H,W,3) uint8 BGR and begin the network; `image` may change afterwards."""
        with timed(stages_ms, "preprocess"):
            self._resize(image, self._inputs[slot, 0])
        self._started[slot] = time.monotonic()
        self._backend.start(slot, self._inputs[slot])
        self._running.add(slot)

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """Wait for the network and copy its outputs. Raises: ArtifactError: they are not finite."""
        self._running.discard(slot)
        self._postprocess.keep(self._backend.wait(slot))
        stages_ms["network"] = (time.monotonic() - self._started[slot]) * 1000

    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> Result:
        """The result of the outputs copied last."""
        return self._postprocess.result(frame, stages_ms)

    def recycle(self, result: Result) -> None:
        """Take back the arrays of a result."""
        self._postprocess.recycle(result)

    def close(self) -> None:
        """Wait for frames that a loop left in flight: the engine's owner may go on with it. Safe to call twice."""
        while self._running:
            self._backend.wait(self._running.pop())

    def _resize(self, image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        frame_hw = (image.shape[0], image.shape[1])
        if self._plan is None or self._plan.frame_hw != frame_hw:
            self._plan = PreprocessPlan(frame_hw, self._backend.preprocess, bgr=True)
        self._plan(image, out)
