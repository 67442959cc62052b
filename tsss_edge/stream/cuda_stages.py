"""The stages of a frame on one GPU, in slots. `pipeline.py` decides what runs when."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from tsss_edge.artifacts import TensorSpec
from tsss_edge.backends.cuda.device import CudaDevice
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels.overlay import tint_table
from tsss_edge.kernels.overlay_yuv import yuv_tint_table
from tsss_edge.kernels.yuv import Colour
from tsss_edge.stream.cuda_slot import CudaSlot, DeviceEngine, Kind, Tints
from tsss_edge.stream.frames import Frame, FrameResult, Picture
from tsss_edge.stream.pipeline import FINITE_FRAMES, require_finite, timed

ALPHA = 0.5
IN_FLIGHT = 3  # of a file: one frame is copied in, one in the network, one copied out


class CudaStages:
    """`Stages` whose results are the pinned memory of their slots: the CPU copies nothing after the GPU is done.

    A slot is made when it is first used, and again when the frames change their size.

    Args: blend: make `FrameResult.overlay`. device: closed with this object.
    """

    def __init__(self, engine: DeviceEngine, device: CudaDevice, *, blend: bool) -> None:
        self.slots, self.in_flight = engine.slots, min(IN_FLIGHT, engine.slots)
        self._engine, self._device = engine, device
        self._made: dict[int, CudaSlot] = {}
        self._last: dict[int, int] = {}  # the slot that used each of the engine's contexts last
        self._waits = 0
        self._eager_because = ""
        with device.current():
            self._blend, self._tints = blend, dict[Colour | None, Tints]()

    @property
    def name(self) -> str:
        """The engine's, and how it is driven (known once a frame started)."""
        how = f"no CUDA graph: {self._eager_because}" if self._eager_because else "CUDA graphs"
        return f"{self._engine.name}, all stages on the GPU, {how}"

    def thread(self) -> AbstractContextManager[None]:
        """The CUDA context is current in the block."""
        return self._device.current()

    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None:
        """Begin a picture in `slot` and return; it may change afterwards."""
        kind = Kind.of(picture)
        made = self._made.get(slot)
        if made is None or made.kind != kind:
            made = self._make(slot, kind)
        context = slot % self._engine.contexts
        before = self._last.get(context, slot)
        self._last[context] = slot
        with timed(stages_ms, "to_pinned"):
            made.start(picture, after=self._made[before] if before != slot else None)

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """Wait for the GPU. Raises: ArtifactError: NaN or infinity in one of the first frames."""
        done = self._made[slot]
        stages_ms.update(done.wait())
        if self._waits < FINITE_FRAMES:
            require_finite({"logits": done.logits()})
        self._waits += 1

    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> FrameResult:
        """The arrays of `slot`, which hold until its next `start`."""
        done = self._made[slot]
        return FrameResult(frame, done.labels, done.objectness, done.picture if self._blend else None, stages_ms)

    def free(self, slot: int) -> None:
        """Nothing: the memory stays for the next frame."""

    def close(self) -> None:
        """Wait for what is in flight and free everything but the engine. Safe to call twice."""
        with self._device.current():
            for slot in list(self._made):
                self._made.pop(slot).close()
        self._device.close()

    def _make(self, slot: int, kind: Kind) -> CudaSlot:
        if slot in self._made:
            self._made.pop(slot).close()
        if (before := self._last.pop(slot % self._engine.contexts, slot)) != slot:
            self._made[before].wait()  # the new slot tries the network, which two must not at once
        tints = self._tints_of(kind.colour) if self._blend else None
        made = self._made[slot] = CudaSlot(self._device, self._engine, slot, kind, tints)
        self._eager_because = made.eager_because
        return made

    def _tints_of(self, colour: Colour | None) -> Tints:
        """For planes that mean `colour`, or for BGR; uploaded once."""
        if colour not in self._tints:
            self._tints[colour] = self._upload_tints(colour)
        return self._tints[colour]

    def _upload_tints(self, colour: Colour | None) -> Tints:
        palette, shown = self._engine.classes.palette, self._engine.classes.objects
        if colour is None:
            table, keep = tint_table(palette, ALPHA, shown)
        else:
            table, keep = yuv_tint_table(palette, colour, ALPHA, shown)
        pinned, stream = self._device.pinned(table.shape, np.uint16), self._device.stream()
        np.copyto(pinned, table)
        address = self._device.allocate(table.nbytes)
        self._device.copy_in(address, pinned, stream)
        stream.synchronize()
        return Tints(address, keep)


def open_cuda_stages(engine: DeviceEngine, *, blend: bool) -> CudaStages:
    """Open all stages on the GPU around `engine`.

    Raises: UnavailableError: the engine gives no logits, takes no batch of 1, or PyCUDA or the kernels are not there.
    """
    _require_logits(engine.outputs)
    return CudaStages(engine, CudaDevice(), blend=blend)


def _require_logits(outputs: Sequence[TensorSpec]) -> None:
    logits = next((spec for spec in outputs if spec.name == "logits"), None)
    if logits is None:
        raise UnavailableError("the GPU kernels take logits; export with --head logits")
    if logits.shape[0] > 1:
        raise UnavailableError(f"the GPU kernels take one frame at a time; build with batch 1, not {logits.shape[0]}")
