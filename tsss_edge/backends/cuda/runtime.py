"""Device memory, pinned memory and streams through the CUDA driver's C API (ctypes), so that an engine runs without PyCUDA.

One primary context, shared with PyTorch and PyCUDA in the same process. Function names and the `_v2` suffixes are cuda.h's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends.cuda.gpus import driver_problem
from tsss_edge.errors import UnavailableError


class Cuda:
    """The CUDA driver with device 0's primary context current in the thread that made this object."""

    def __init__(self) -> None:
        """Raises: UnavailableError: no driver, or no GPU."""
        if problem := driver_problem():
            raise UnavailableError(f"{problem}; a TensorRT engine runs on an NVIDIA GPU only")
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []
        self._streams: list[int] = []
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), 0)
        self.use()

    def use(self) -> None:
        """Make the context current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes; its address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._device_memory.append(address.value)
        return address.value

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed host array that the GPU can copy from and to while the CPU goes on. Lives until `close`."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        pointer = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        assert pointer.value is not None
        self._host_memory.append(pointer.value)
        ctypes.memset(pointer, 0, size)
        buffer = (ctypes.c_uint8 * size).from_address(pointer.value)
        array: NDArray[Any] = np.frombuffer(memoryview(buffer).cast("B"), dtype=kind).reshape(shape)
        return array

    def stream(self) -> int:
        """A stream of its own (CU_STREAM_NON_BLOCKING: it does not wait for the default stream)."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), 1)
        assert handle.value is not None
        self._streams.append(handle.value)
        return handle.value

    def copy_in(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Host to device, behind what is in `stream`. `array` must be pinned, C-contiguous and stay as it is until then."""
        size = ctypes.c_size_t(array.nbytes)
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, ctypes.c_void_p(stream))

    def copy_out(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Device to host, behind what is in `stream`."""
        size = ctypes.c_size_t(array.nbytes)
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        """Wait until all in `stream` is done. Raises: UnavailableError: something in it failed."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def close(self) -> None:
        """Free everything and give the context back. Safe to call twice."""
        for address in self._device_memory:
            self._call("cuMemFree_v2", ctypes.c_uint64(address))
        for pointer in self._host_memory:
            self._call("cuMemFreeHost", ctypes.c_void_p(pointer))
        for handle in self._streams:
            self._call("cuStreamDestroy_v2", ctypes.c_void_p(handle))
        if self._context:
            self._call("cuDevicePrimaryCtxRelease_v2", 0)
        self._device_memory, self._host_memory, self._streams = [], [], []
        self._context = ctypes.c_void_p()

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            raise UnavailableError(f"CUDA: {function}: {(text.value or b'unknown error').decode()} (error {code})")
