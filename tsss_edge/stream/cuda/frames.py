"""Frames in, labels and blended pictures out, by slots on one GPU. What runs when is the pipeline's business."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsss_edge.errors import ArtifactError
from tsss_edge.kernels.launch import CudaDevice
from tsss_edge.kernels.overlay import tint_table
from tsss_edge.stream.cuda.slot import DeviceEngine, FrameSlot, Tints
from tsss_edge.stream.postprocess import FINITE_FRAMES, require_finite

ALPHA = 0.5


class Answer(NamedTuple):
    """What a slot holds after `CudaFrames.wait`, until its next `start`."""

    labels: NDArray[np.uint8]  # (H,W)
    objectness: NDArray[np.float32] | None  # (h,w)
    overlay: NDArray[np.uint8] | None  # (H,W,3) BGR
    stages_ms: dict[str, float]  # the GPU's own times


class CudaFrames:
    """As many frames at once as the engine has slots. `start` and `wait` may be called from two threads, each within
    `current()`; a slot is made when it is first used and when the frames change their size."""

    def __init__(self, engine: DeviceEngine, *, blend: bool, device: CudaDevice | None = None) -> None:
        """Args: blend: make overlays.

        Raises: ArtifactError: the engine gives no logits, or takes no batch of 1. UnavailableError: as `CudaDevice`.
        """
        require_logits(engine)
        self.slots = engine.slots
        self._engine = engine
        self._device = device or CudaDevice()
        self._slots: dict[int, FrameSlot] = {}
        self._waits = 0
        with self.current():
            self._tints = self._upload_tints() if blend else None

    def current(self) -> AbstractContextManager[None]:
        """What a thread needs around its calls."""
        return self._device.current()

    @property
    def eager_because(self) -> str:
        """Why CUDA graphs are not used; empty where they are."""
        return next((slot.eager_because for slot in self._slots.values() if slot.eager_because), "")

    def start(self, slot: int, image: NDArray[np.uint8]) -> None:
        """Begin (H,W,3) uint8 BGR in `slot` and return; `image` may change afterwards."""
        frame_hw = (image.shape[0], image.shape[1])
        made = self._slots.get(slot)
        if made is not None and made.frame_hw != frame_hw:
            self._slots.pop(slot).close()
            made = None
        if made is None:
            made = self._slots[slot] = FrameSlot(self._device, self._engine, slot, frame_hw, self._tints)
        made.start(image)

    def wait(self, slot: int) -> Answer:
        """Wait for `slot`. Raises: ArtifactError: NaN or infinity in one of the first frames."""
        done = self._slots[slot]
        stages_ms = done.wait()
        if self._waits < FINITE_FRAMES:
            require_finite({"logits": done.logits()})
        self._waits += 1
        return Answer(done.labels, done.objectness, done.frame if self._tints else None, stages_ms)

    def close(self) -> None:
        """Wait for what is in flight and free everything but the engine. Safe to call twice."""
        if self._slots:
            with self.current():
                for slot in self._slots.values():
                    slot.close()
                self._slots.clear()
        self._device.close()

    def _upload_tints(self) -> Tints:
        classes = self._engine.classes
        table, keep = tint_table(classes.palette, ALPHA, classes.objects)
        pinned, stream = self._device.pinned(table.shape, np.uint16), self._device.stream()
        np.copyto(pinned, table)
        address = self._device.allocate(table.nbytes)
        self._device.copy_in(address, pinned, stream)
        stream.synchronize()
        return Tints(address, keep)


def require_logits(engine: DeviceEngine) -> None:
    """Raise ArtifactError unless the engine gives logits for one picture at a time."""
    logits = next((spec for spec in engine.outputs if spec.name == "logits"), None)
    if logits is None:
        raise ArtifactError("the CUDA loop upsamples logits itself; export with --head logits (or both)")
    if logits.shape[0] > 1:
        raise ArtifactError(f"the CUDA loop runs one frame at a time; build with batch 1, not {logits.shape[0]}")
