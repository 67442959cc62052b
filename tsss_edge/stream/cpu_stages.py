"""The stages of a frame on the CPU around any engine: preprocess, network, upsample + argmax, overlay."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import AsyncBackend, Outputs
from tsss_edge.errors import TsssEdgeError
from tsss_edge.kernels.overlay import OverlayPlan
from tsss_edge.kernels.overlay_yuv import YuvOverlayPlan
from tsss_edge.kernels.preprocess import PreprocessPlan
from tsss_edge.kernels.preprocess_yuv import YuvPreprocessPlan
from tsss_edge.kernels.upsample_argmax import UpsampleArgmaxPlan
from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.segment import resize_labels
from tsss_edge.stream.frames import Frame, FrameResult, Picture, picture_hw
from tsss_edge.stream.pipeline import FINITE_FRAMES, require_finite, slots_needed, timed

Kind = tuple[tuple[int, int], Colour | None]
Preprocessing = PreprocessPlan | YuvPreprocessPlan
Overlaying = OverlayPlan | YuvOverlayPlan

KEPT_SIZES = 4  # of frames: cameras on one engine have few different ones


class CpuSlot:
    """The arrays of one frame: outputs of the network, labels, blended picture. Made for the first frame of a size."""

    def __init__(self) -> None:
        self.outputs: dict[str, NDArray[Any]] = {}
        self.labels = np.empty((0, 0), np.uint8)
        self.blended: Picture = np.empty((0, 0, 3), np.uint8)
        self.request = -1  # of the engine, while the network runs
        self.started = 0.0
        self.upsample: UpsampleArgmaxPlan | None = None

    def keep(self, outputs: Outputs) -> None:
        """Copy the outputs: the request's memory is overwritten by its next picture."""
        for name, array in outputs.items():
            if name not in self.outputs:
                self.outputs[name] = np.empty_like(array)
            np.copyto(self.outputs[name], array)

    def fit(self, picture: Picture, *, blend: bool) -> None:
        """Have arrays of the picture's size and kind."""
        frame_hw = picture_hw(picture)
        if self.labels.shape != frame_hw:
            self.labels = np.empty(frame_hw, np.uint8)
        if blend and kind_of_picture(self.blended) != (kind := kind_of_picture(picture)):
            colour = kind[1]
            self.blended = np.empty((*frame_hw, 3), np.uint8) if colour is None else Yuv.empty(frame_hw, colour)


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
        self._slots = [CpuSlot() for _ in range(self.slots)]
        self._finite = 0
        # By kind of the frame. Of a request, because that is what the plan's arrays are good for at a time.
        self._preprocess: list[dict[Kind, Preprocessing]] = [{} for _ in range(backend.slots)]
        self._overlay: dict[Kind, Overlaying] = {}

    def thread(self) -> nullcontext[None]:
        """Nothing is needed."""
        return nullcontext()

    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None:
        """Resize the picture and begin the network; the picture may change afterwards."""
        request = self._idle.popleft()
        try:
            with timed(stages_ms, "preprocess"):
                self._resize(request, picture)
            self._slots[slot].started = time.monotonic()
            self._backend.start(request, self._inputs[request])
        except BaseException:
            self._idle.append(request)  # a frame that fails costs the engine no request
            raise
        self._slots[slot].request = request

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """Wait for the network and copy its outputs. Raises: ArtifactError: they are not finite."""
        done = self._slots[slot]
        request, done.request = done.request, -1
        try:
            done.keep(self._backend.wait(request))
        finally:
            self._idle.append(request)
        stages_ms["network"] = (time.monotonic() - done.started) * 1000
        if self._finite < FINITE_FRAMES:
            require_finite(done.outputs)
            self._finite += 1

    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> FrameResult:
        """The result of `frame`, in the arrays of its slot."""
        done, blend = self._slots[slot], slot in self._blended
        done.fit(frame.picture, blend=blend)
        with timed(stages_ms, "upsample_argmax"):
            self.segment(done, frame.size_hw)
        given = {name: array[0] for name, array in done.outputs.items()}
        objectness = given["objectness"][0] if "objectness" in given else None
        logits, features = given.get("logits"), given.get("features")
        result = FrameResult(frame, done.labels, objectness, None, stages_ms, logits=logits, features=features)
        if blend:
            result.painter = partial(self._paint, done, frame.picture, stages_ms)
        return result

    def free(self, slot: int) -> None:
        """Nothing: the arrays stay for the next frame."""

    def close(self) -> None:
        """Wait for frames that a loop left in flight: the engine's owner may go on with it. Safe to call twice."""
        for slot in self._slots:
            if slot.request >= 0:
                with suppress(TsssEdgeError):  # nobody wants these answers, so their failure is nobody's
                    self._backend.wait(slot.request)
                slot.request = -1

    def _resize(self, request: int, picture: Picture) -> None:
        plans, kind = self._preprocess[request], kind_of_picture(picture)
        if (plan := plans.get(kind)) is None:
            forget_all_but(plans, KEPT_SIZES - 1)
            spec, (frame_hw, colour) = self._backend.preprocess, kind
            plan = PreprocessPlan(frame_hw, spec, bgr=True) if colour is None else YuvPreprocessPlan(frame_hw, spec)
            plans[kind] = plan
        plan(picture, self._inputs[request, 0])  # type: ignore[arg-type]  # the kind says which of both it takes

    def segment(self, slot: CpuSlot, frame_hw: tuple[int, int]) -> None:
        """Write the labels of a slot, (H,W), from its outputs."""
        placement = self._backend.preprocess.place(frame_hw)
        if "logits" not in slot.outputs:
            resize_labels(slot.outputs["labels"][0], frame_hw, placement, slot.labels)
            return
        logits = self.logits_of(slot)
        if slot.upsample is None or slot.upsample.frame_hw != frame_hw:
            slot.upsample = UpsampleArgmaxPlan(logits.shape, frame_hw, placement)
        slot.upsample(logits, slot.labels)

    def logits_of(self, slot: CpuSlot) -> NDArray[Any]:
        """(K,h,w) float32 that the labels are the largest of."""
        logits: NDArray[Any] = slot.outputs["logits"][0]
        return logits

    def _paint(self, slot: CpuSlot, picture: Picture, stages_ms: dict[str, float]) -> Picture:
        with timed(stages_ms, "overlay"):
            if isinstance(picture, Yuv):
                assert isinstance(slot.blended, Yuv)
                picture.copy_to(slot.blended)
            else:
                np.copyto(slot.blended, picture)  # type: ignore[arg-type]
            self._overlay_for(kind_of_picture(picture))(slot.blended, slot.labels)  # type: ignore[arg-type]
        return slot.blended

    def _overlay_for(self, kind: Kind) -> Overlaying:
        if (plan := self._overlay.get(kind)) is None:
            forget_all_but(self._overlay, KEPT_SIZES - 1)
            (frame_hw, colour), classes = kind, self._backend.classes
            palette, shown = classes.palette, classes.objects
            plan = (
                OverlayPlan(frame_hw, palette, shown=shown)
                if colour is None
                else YuvOverlayPlan(frame_hw, palette, colour, shown=shown)
            )
            self._overlay[kind] = plan
        return plan


def kind_of_picture(picture: Picture) -> Kind:
    """Size, and what its planes mean (None: BGR)."""
    return picture_hw(picture), picture.colour if isinstance(picture, Yuv) else None


def forget_all_but(plans: dict[Kind, Any], count: int) -> None:
    """Leave the `count` newest."""
    for kind in list(plans)[: max(0, len(plans) - count)]:
        plans.pop(kind, None)
