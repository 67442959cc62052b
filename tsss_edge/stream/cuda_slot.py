"""One frame on its way through the GPU: a stream, its memory, and a CUDA graph of all its work.

A discrete GPU has its own frame and labels, and copies. An integrated one (Jetson) works on the pinned host arrays. Times are
the GPU's own (events between the stages).
"""
# Letters: K class, h, w grid (network input / 8), H, W frame.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends.base import Described
from tsss_edge.backends.cuda.device import CudaDevice
from tsss_edge.backends.cuda.driver import CudaEvent, CudaGraph
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels import DevicePlanes
from tsss_edge.kernels.yuv import Colour, Yuv, yuv_bytes
from tsss_edge.stream.frames import Picture, picture_hw


@runtime_checkable
class DeviceEngine(Described, Protocol):
    """A network whose tensors lie on the GPU (`TensorRTBackend`, `TorchEngine`).

    `contexts` of it may run at once: two slots with the same `slot % contexts` must not.
    """

    @property
    def slots(self) -> int: ...
    @property
    def contexts(self) -> int: ...
    def addresses(self, slot: int) -> dict[str, int]: ...
    def enqueue(self, slot: int, batch: int, stream: int) -> None: ...


class Tints(NamedTuple):
    """`overlay.tint_table`, or of planes `yuv_tint_table`, on the GPU."""

    address: int
    keep: int


class Kind(NamedTuple):
    """What a slot is made for: size, what planes mean (None: BGR), and whether U and V lie in one plane."""

    frame_hw: tuple[int, int]
    colour: Colour | None
    pairs: bool

    @classmethod
    def of(cls, picture: Picture) -> Kind:
        """The kind of a picture."""
        if isinstance(picture, Yuv):
            return cls(picture.frame_hw, picture.colour, picture.pairs)
        return cls(picture_hw(picture), None, False)


class CudaSlot:
    """For frames of one kind. Every call within `CudaDevice.current`, one at a time."""

    def __init__(self, device: CudaDevice, engine: DeviceEngine, slot: int, kind: Kind, tints: Tints | None) -> None:
        """Make memory and graph. `tints` None: no overlay."""
        frame_hw = kind.frame_hw
        self.kind, self.frame_hw = kind, frame_hw
        self.eager_because = ""  # why there is no graph, if there is none
        self._device, self._engine, self._slot, self._tints = device, engine, slot, tints
        self._specs = {spec.name: spec for spec in engine.outputs}
        self._placement = engine.preprocess.place(frame_hw)
        self._tensors = engine.addresses(slot)
        self._stream = device.stream()
        self._memory: list[int | NDArray[Any]] = []  # to free
        shape = (*frame_hw, 3) if kind.colour is None else (yuv_bytes(frame_hw),)
        self.frame: NDArray[np.uint8] = self._pinned(shape, np.uint8)
        self.labels: NDArray[np.uint8] = self._pinned(frame_hw, np.uint8)
        spec = self._specs.get("objectness")
        self.objectness = None if spec is None else self._pinned(spec.shape[2:], np.float32)
        self._frame, self._labels = self._mirror(self.frame), self._mirror(self.labels)
        self._best = self._allocate(self._grid_shape[1] * self._grid_shape[2])
        self._stages = self._plan()
        self._events = [CudaEvent() for _ in range(len(self._stages) + 1)]
        self._done = CudaEvent()  # outside the graph, so that other streams may wait for it
        self._graph = self._capture()

    def start(self, picture: Picture, after: CudaSlot | None = None) -> None:
        """Copy a picture of this kind and put its work into the stream; on the GPU it begins when `after` is done."""
        if isinstance(picture, Yuv):
            planes = self.picture
            assert isinstance(planes, Yuv)
            picture.copy_to(planes)
        else:
            np.copyto(self.frame, picture)
        if after is not None:
            after._done.hold(self._stream)
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue(capturing=False)
        self._done.record(self._stream, capturing=False)

    @property
    def picture(self) -> Picture:
        """The pinned frame as what it is: until the work begins the source's, after it the overlay."""
        frame_hw, colour, pairs = self.kind
        return self.frame if colour is None else Yuv.over(self.frame, frame_hw, colour, pairs=pairs)

    def wait(self) -> dict[str, float]:
        """Wait for the work -> milliseconds by stage. `labels`, `objectness` and `frame`, now the overlay, hold until
        the next `start`."""
        self._done.synchronize()
        pairs = zip(self._stages, self._events[:-1], self._events[1:], strict=True)
        return {name: after.ms_since(before) for name, before, after in pairs}

    def logits(self) -> NDArray[np.floating]:
        """(K,h,w) of the last frame, fresh memory; slow, for checks."""
        pinned = self._device.pinned(self._grid_shape, self._specs["logits"].dtype)
        self._device.copy_out(pinned, self._tensors["logits"], self._stream)
        self._stream.synchronize()
        values = pinned.copy()
        self._device.free(pinned)
        return values

    def close(self) -> None:
        """Wait for what runs, and free everything."""
        self._stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        for event in (*self._events, self._done):
            event.close()
        while self._memory:
            self._device.free(self._memory.pop())
        self._stages = {}  # its functions refer to this slot: the stream must go now, not with the garbage

    # -- Memory

    @property
    def _grid_shape(self) -> tuple[int, int, int]:
        classes, h, w = self._specs["logits"].shape[1:]
        return classes, h, w

    def _allocate(self, size: int) -> int:
        address = self._device.allocate(size)
        self._memory.append(address)
        return address

    def _pinned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        array = self._device.pinned(shape, dtype)
        self._memory.append(array)
        return array

    def _mirror(self, array: NDArray[np.uint8]) -> int:
        """Where the GPU has its side of a pinned array."""
        return self._device.address(array) if self._device.integrated else self._allocate(array.nbytes)

    @property
    def _planes(self) -> DevicePlanes:
        return DevicePlanes.dense(self._frame, self.frame_hw, pairs=self.kind.pairs)

    # -- Work

    def _plan(self) -> dict[str, Callable[[], None]]:
        """Stages in their order, each a function that puts its work into the stream."""
        stages: dict[str, Callable[[], None]] = {}
        if not self._device.integrated:
            stages["copy_in"] = lambda: self._device.copy_in(self._frame, self.frame, self._stream)
        stages["preprocess"] = self._preprocess
        stages["network"] = lambda: self._engine.enqueue(self._slot, 1, self._stream.handle)
        stages["upsample_argmax"] = self._upsample_argmax
        if self._tints is not None:
            stages["overlay"] = self._overlay
        if not self._device.integrated or self.objectness is not None:
            stages["copy_out"] = self._copy_out
        return stages

    def _preprocess(self) -> None:
        spec = self._engine.preprocess
        image, colour = self._tensors["image"], self.kind.colour
        if colour is not None:
            matrix = colour.terms
            self._device.preprocess_yuv(self._planes, image, self._placement, matrix, spec.size_hw, self._stream)
            return
        self._device.preprocess(self._frame, image, self._placement, self.frame_hw, spec.size_hw, self._stream)

    def _upsample_argmax(self) -> None:
        self._device.upsample_argmax(
            self._tensors["logits"],
            self._best,
            self._labels,
            self._placement,
            self._grid_shape,
            self.frame_hw,
            self._stream,
            dtype=self._specs["logits"].dtype,
        )

    def _overlay(self) -> None:
        assert self._tints is not None
        if self.kind.colour is not None:
            self._device.overlay_yuv(self._planes, self._labels, *self._tints, self.frame_hw, self._stream)
            return
        self._device.overlay(self._frame, self._labels, *self._tints, self.frame_hw, self._stream)

    def _copy_out(self) -> None:
        if not self._device.integrated:
            self._device.copy_out(self.labels, self._labels, self._stream)
            if self._tints is not None:
                self._device.copy_out(self.frame, self._frame, self._stream)
        if self.objectness is not None:
            self._device.copy_out(self.objectness, self._tensors["objectness"], self._stream)

    def _enqueue(self, *, capturing: bool) -> None:
        self._events[0].record(self._stream, capturing=capturing)
        for work, after in zip(self._stages.values(), self._events[1:], strict=True):
            work()
            after.record(self._stream, capturing=capturing)

    def _capture(self) -> CudaGraph | None:
        """All stages as a graph, after one run that gets the network's first-time work (TensorRT) out of the way."""
        self._enqueue(capturing=False)
        self._events[-1].synchronize()
        try:
            with self._device.current():  # PyCUDA's errors become UnavailableError here, not in our caller's block
                return CudaGraph(self._stream, lambda: self._enqueue(capturing=True))
        except UnavailableError as error:
            self.eager_because = str(error)
            return None
