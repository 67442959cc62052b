"""The stages of a frame on the CPU around any engine: preprocess, network, upsample + argmax, overlay."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import AsyncBackend, Outputs
from tsss_edge.kernels.overlay import OverlayPlan
from tsss_edge.kernels.preprocess import PreprocessPlan
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan
from tsss_edge.segment import resize_labels
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.pipeline import FINITE_FRAMES, require_finite, slots_needed, timed

KEPT_SIZES = 4  # of frames: cameras on one engine have few different ones


class _CpuSlot:
    """The arrays of one frame: outputs of the network, labels, blended picture. Made for the first frame of a size."""

    def __init__(self) -> None:
        self.outputs: dict[str, NDArray[Any]] = {}
        self.labels = np.empty((0, 0), np.uint8)
        self.blended = np.empty((0, 0, 3), np.uint8)
        self.request = -1  # of the engine, while the network runs
        self.started = 0.0
        self.upsample: UpsampleArgmaxPlan | None = None

    def keep(self, outputs: Outputs) -> None:
        """Copy the outputs: the request's memory is overwritten by its next picture."""
        for name, array in outputs.items():
            if name not in self.outputs:
                self.outputs[name] = np.empty_like(array)
            np.copyto(self.outputs[name], array)

    def fit(self, frame_hw: tuple[int, int], *, blend: bool) -> None:
        """Have arrays of the frame's size."""
        if self.labels.shape != frame_hw:
            self.labels = np.empty(frame_hw, np.uint8)
            self.blended = np.empty((*frame_hw, 3) if blend else (0, 0, 3), np.uint8)


class CpuStages:
    """`Stages` whose slots own their arrays. A slot borrows one of the engine's requests while its network runs.

    Several threads may work on different slots at once; not more than the engine has requests.

    Args: blend: make `FrameResult.overlay`; or the slots in which it is made. slots: default: what one source needs.
    """

    def __init__(self, backend: AsyncBackend, *, blend: bool | Collection[int], slots: int | None = None) -> None:
        self.name = backend.name
        self.in_flight, self.slots = backend.slots, slots or slots_needed(backend.slots)
        self._backend = backend
        self._blended = frozenset(range(self.slots) if blend else ()) if isinstance(blend, bool) else frozenset(blend)
        self._inputs = np.zeros((backend.slots, 1, *backend.preprocess.size_hw, 3), np.uint8)
        self._idle = deque(range(backend.slots))  # requests; append and popleft are thread-safe
        self._slots = [_CpuSlot() for _ in range(self.slots)]
        self._finite = 0
        # By size of the frame. Of a request, because that is what the plan's arrays are good for at a time.
        self._preprocess: list[dict[tuple[int, int], PreprocessPlan]] = [{} for _ in range(backend.slots)]
        self._overlay: dict[tuple[int, int], OverlayPlan] = {}

    def thread(self) -> nullcontext[None]:
        """Nothing is needed."""
        return nullcontext()

    def start(self, slot: int, image: NDArray[np.uint8], stages_ms: dict[str, float]) -> None:
        """Resize (H,W,3) uint8 BGR and begin the network; `image` may change afterwards."""
        request = self._idle.popleft()
        with timed(stages_ms, "preprocess"):
            self._resize(request, image)
        self._slots[slot].started = time.monotonic()
        self._backend.start(request, self._inputs[request])
        self._slots[slot].request = request

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """Wait for the network and copy its outputs. Raises: ArtifactError: they are not finite."""
        done = self._slots[slot]
        request, done.request = done.request, -1
        done.keep(self._backend.wait(request))
        self._idle.append(request)
        stages_ms["network"] = (time.monotonic() - done.started) * 1000
        if self._finite < FINITE_FRAMES:
            require_finite(done.outputs)
            self._finite += 1

    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> FrameResult:
        """The result of `frame`, in the arrays of its slot."""
        done, frame_hw = self._slots[slot], (frame.image.shape[0], frame.image.shape[1])
        blend = slot in self._blended
        done.fit(frame_hw, blend=blend)
        with timed(stages_ms, "upsample_argmax"):
            self._segment(done, frame_hw)
        if blend:
            with timed(stages_ms, "overlay"):
                self._paint(done, frame.image)
        given = {name: array[0] for name, array in done.outputs.items()}
        objectness = given["objectness"][0] if "objectness" in given else None
        blended = done.blended if blend else None
        logits, features = given.get("logits"), given.get("features")
        return FrameResult(frame, done.labels, objectness, blended, stages_ms, logits=logits, features=features)

    def free(self, slot: int) -> None:
        """Nothing: the arrays stay for the next frame."""

    def close(self) -> None:
        """Wait for frames that a loop left in flight: the engine's owner may go on with it. Safe to call twice."""
        for slot in self._slots:
            if slot.request >= 0:
                self._backend.wait(slot.request)
                slot.request = -1

    def _resize(self, request: int, image: NDArray[np.uint8]) -> None:
        plans, frame_hw = self._preprocess[request], (image.shape[0], image.shape[1])
        if frame_hw not in plans:
            forget_all_but(plans, KEPT_SIZES - 1)
            plans[frame_hw] = PreprocessPlan(frame_hw, self._backend.preprocess, bgr=True)
        plans[frame_hw](image, self._inputs[request, 0])

    def _segment(self, slot: _CpuSlot, frame_hw: tuple[int, int]) -> None:
        placement = self._backend.preprocess.place(frame_hw)
        if "logits" not in slot.outputs:
            resize_labels(slot.outputs["labels"][0], frame_hw, placement, slot.labels)
            return
        logits = slot.outputs["logits"][0]
        if slot.upsample is None or slot.upsample.frame_hw != frame_hw:
            slot.upsample = UpsampleArgmaxPlan(logits.shape, frame_hw, placement)
        slot.upsample(logits, slot.labels)

    def _paint(self, slot: _CpuSlot, image: NDArray[np.uint8]) -> None:
        frame_hw, classes = (image.shape[0], image.shape[1]), self._backend.classes
        if (plan := self._overlay.get(frame_hw)) is None:
            forget_all_but(self._overlay, KEPT_SIZES - 1)
            plan = self._overlay[frame_hw] = OverlayPlan(frame_hw, classes.palette, shown=classes.objects)
        np.copyto(slot.blended, image)
        plan(slot.blended, slot.labels)


def forget_all_but(plans: dict[tuple[int, int], Any], count: int) -> None:
    """Leave the `count` newest."""
    for frame_hw in list(plans)[: max(0, len(plans) - count)]:
        plans.pop(frame_hw, None)
