"""The CUDA driver's C API through ctypes: contexts, memory, copies, streams, events, graphs. No other file makes these calls.

It needs no CUDA package. `gpus.py` asks the same driver what this machine has, `device.py` launches kernels with PyCUDA.
Function names and the `_v2` suffixes are cuda.h's. Addresses are integers. A stream is an integer handle, or an object of
PyCUDA's that has a `handle`. Every call needs a current context, except those of `PrimaryContext`, which makes one current.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends.cuda.gpus import driver_problem
from tsss_edge.errors import UnavailableError

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP: the GPU has an address for it
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a stream that does not wait for the default stream
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads (PyTorch) do at the time is theirs
EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: a node of the graph that records, not only an edge

_handle, _address, _size, _flags = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, *arguments: Any) -> None:
    """Raise UnavailableError with the driver's own text unless the function succeeds."""
    code = getattr(_driver(), function)(*arguments)
    if code:
        if code == OUT_OF_MEMORY:
            raise UnavailableError(f"out of GPU memory ({function}); use fewer slots, or close what else uses the GPU")
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise UnavailableError(f"CUDA: {function}: {(text.value or b'unknown error').decode()} (error {code})")


def _stream(stream: Any) -> ctypes.c_void_p:
    return _handle(getattr(stream, "handle", stream))


class CudaMemory:
    """Memory of the GPU and pinned memory of the host, which copies run beside the CPU with. `free_all` frees the rest."""

    def __init__(self) -> None:
        self._on_gpu: set[int] = set()
        self._pinned: set[int] = set()

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of GPU memory."""
        address = _address()
        _call("cuMemAlloc_v2", ctypes.byref(address), _size(size))
        self._on_gpu.add(address.value)
        return address.value

    def pinned(self, shape: tuple[int, ...], dtype: Any, *, mapped: bool = False) -> NDArray[Any]:
        """A zeroed host array; with `mapped` it has an `address` too. It must not be used after it is freed."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        pointer = _handle()
        _call("cuMemHostAlloc", ctypes.byref(pointer), _size(size), _flags(MAPPED if mapped else 0))
        assert pointer.value is not None
        self._pinned.add(pointer.value)
        ctypes.memset(pointer, 0, size)
        buffer = (ctypes.c_uint8 * size).from_address(pointer.value)
        array: NDArray[Any] = np.frombuffer(memoryview(buffer).cast("B"), dtype=kind).reshape(shape)
        return array

    def address(self, array: NDArray[Any]) -> int:
        """Where the GPU sees a mapped `pinned` array."""
        address = _address()
        _call("cuMemHostGetDevicePointer_v2", ctypes.byref(address), _handle(array.ctypes.data), _flags(0))
        return address.value

    def free(self, memory: int | NDArray[Any]) -> None:
        """Free what `allocate` or `pinned` gave."""
        if isinstance(memory, int):
            self._on_gpu.remove(memory)
            _call("cuMemFree_v2", _address(memory))
        else:
            self._pinned.remove(memory.ctypes.data)
            _call("cuMemFreeHost", _handle(memory.ctypes.data))

    def free_all(self) -> None:
        """Free what is left. Safe to call twice."""
        while self._on_gpu:
            _call("cuMemFree_v2", _address(self._on_gpu.pop()))
        while self._pinned:
            _call("cuMemFreeHost", _handle(self._pinned.pop()))

    def copy_in(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Host to GPU, behind what is in `stream`. `array` is pinned and C-contiguous, and must stay as it is until then."""
        _call(
            "cuMemcpyHtoDAsync_v2", _address(address), _handle(array.ctypes.data), _size(array.nbytes), _stream(stream)
        )

    def copy_out(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """GPU to host, behind what is in `stream`. `array` is pinned and C-contiguous."""
        _call(
            "cuMemcpyDtoHAsync_v2", _handle(array.ctypes.data), _address(address), _size(array.nbytes), _stream(stream)
        )


class PrimaryContext(CudaMemory):
    """Device 0's primary context, shared with PyTorch and PyCUDA, with memory and streams; for users without PyCUDA."""

    def __init__(self) -> None:
        """Make it current in the calling thread. Raises: UnavailableError: no driver, or no GPU."""
        if problem := driver_problem():
            raise UnavailableError(f"{problem}; a TensorRT engine runs on an NVIDIA GPU only")
        super().__init__()
        self._context = _handle()
        self._streams: list[int] = []
        self._events: list[CudaEvent] = []
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), 0)
        self.use()

    def use(self) -> None:
        """Make the context current in the calling thread."""
        _call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """A stream of its own, which does not wait for the default stream."""
        handle = _handle()
        _call("cuStreamCreate", ctypes.byref(handle), _flags(NON_BLOCKING))
        assert handle.value is not None
        self._streams.append(handle.value)
        return handle.value

    def event(self) -> CudaEvent:
        """An event, which `close` frees."""
        self._events.append(CudaEvent())
        return self._events[-1]

    def synchronize(self, stream: int) -> None:
        """Wait until all in `stream` is done. Raises: UnavailableError: something in it failed."""
        _call("cuStreamSynchronize", _stream(stream))

    def close(self) -> None:
        """Free everything and give the context back. Safe to call twice."""
        self.free_all()
        while self._events:
            self._events.pop().close()
        while self._streams:
            _call("cuStreamDestroy_v2", _handle(self._streams.pop()))
        if self._context:
            _call("cuDevicePrimaryCtxRelease_v2", 0)
        self._context = _handle()


class CudaEvent:
    """A point in a stream, with its time. PyCUDA (2026.1) has events that a graph cannot record."""

    def __init__(self) -> None:
        self._event = _handle()
        _call("cuEventCreate", ctypes.byref(self._event), _flags(0))

    def record(self, stream: Any, *, capturing: bool) -> None:
        """Put the event behind what is in `stream`; while that is `capturing`, into the graph."""
        _call("cuEventRecordWithFlags", self._event, _stream(stream), _flags(EXTERNAL if capturing else 0))

    def hold(self, stream: Any) -> None:
        """Let what is put into `stream` from now on wait for this event, on the GPU. Nothing waits for one never recorded."""
        _call("cuStreamWaitEvent", _stream(stream), self._event, _flags(0))

    def synchronize(self) -> None:
        """Wait until the GPU came to the event that was put into a stream last."""
        _call("cuEventSynchronize", self._event)

    def ms_since(self, earlier: CudaEvent) -> float:
        """Milliseconds between two events that are done."""
        milliseconds = ctypes.c_float()
        _call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier._event, self._event)
        return milliseconds.value

    def close(self) -> None:
        """Free it. Safe to call twice."""
        if self._event:
            _call("cuEventDestroy_v2", self._event)
            self._event = _handle()


class CudaGraph:
    """Work of a stream, recorded once and launched as one. PyCUDA (2026.1) has no graphs."""

    def __init__(self, stream: Any, work: Callable[[], None]) -> None:
        """Call `work`, which puts operations into `stream` and into no other; they are recorded, not run.

        Raises: UnavailableError: something in `work` cannot be captured. The stream is usable again.
        """
        graph, self._executable = _handle(), _handle()
        _call("cuStreamBeginCapture_v2", _stream(stream), ctypes.c_int(THREAD_LOCAL))
        try:
            work()
        except BaseException:
            # End the capture and ignore what the driver says: the error of `work` is the one that counts.
            _driver().cuStreamEndCapture(_stream(stream), ctypes.byref(graph))
            _destroy(graph)
            raise
        _call("cuStreamEndCapture", _stream(stream), ctypes.byref(graph))
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            _destroy(graph)

    def launch(self, stream: Any) -> None:
        """Put all of it into `stream`."""
        _call("cuGraphLaunch", self._executable, _stream(stream))

    def close(self) -> None:
        """Free it; it must not be running. Safe to call twice."""
        if self._executable:
            _call("cuGraphExecDestroy", self._executable)
            self._executable = _handle()


def _destroy(graph: ctypes.c_void_p) -> None:
    if graph:
        _call("cuGraphDestroy", graph)
