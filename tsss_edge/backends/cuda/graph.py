"""CUDA graphs, and events that a graph can record: what PyCUDA (2026.1) lacks, through the driver's C API (ctypes).

Every call needs a current context (`CudaDevice.current`). Streams are integer handles. Names are cuda.h's.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from tsss_edge.errors import UnavailableError

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads (PyTorch) do at the time is theirs
EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: a node of the graph that records, not only an edge

_handle, _flags = ctypes.c_void_p, ctypes.c_uint


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, *arguments: Any) -> None:
    code = getattr(_driver(), function)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise UnavailableError(f"CUDA: {function}: {(text.value or b'unknown error').decode()} (error {code})")


class Event:
    """A point in a stream, with its time."""

    def __init__(self) -> None:
        self._event = _handle()
        _call("cuEventCreate", ctypes.byref(self._event), _flags(0))

    def record(self, stream: int, *, capturing: bool) -> None:
        """Put the event behind what is in `stream`; while that is `capturing`, into the graph."""
        _call("cuEventRecordWithFlags", self._event, _handle(stream), _flags(EXTERNAL if capturing else 0))

    def synchronize(self) -> None:
        """Wait until the GPU came to the event that was put into a stream last."""
        _call("cuEventSynchronize", self._event)

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds between two events that are done."""
        milliseconds = ctypes.c_float()
        _call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier._event, self._event)
        return milliseconds.value

    def close(self) -> None:
        """Free it. Safe to call twice."""
        if self._event:
            _call("cuEventDestroy_v2", self._event)
            self._event = _handle()


class Graph:
    """Work of a stream, recorded once and launched as one."""

    def __init__(self, executable: ctypes.c_void_p) -> None:
        self._executable = executable

    @classmethod
    def capture(cls, stream: int, work: Callable[[], None]) -> Graph:
        """Call `work`, which puts operations into `stream` and into no other; they are recorded, not run.

        Raises: UnavailableError: something in `work` cannot be captured. The stream is usable again.
        """
        graph, executable = _handle(), _handle()
        _call("cuStreamBeginCapture_v2", _handle(stream), ctypes.c_int(THREAD_LOCAL))
        try:
            work()
        except BaseException:
            # Ends the capture, whatever the driver thinks of it: the error that counts is that of `work`.
            _driver().cuStreamEndCapture(_handle(stream), ctypes.byref(graph))
            _destroy(graph)
            raise
        _call("cuStreamEndCapture", _handle(stream), ctypes.byref(graph))
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            _destroy(graph)
        return cls(executable)

    def launch(self, stream: int) -> None:
        """Put all of it into `stream`."""
        _call("cuGraphLaunch", self._executable, _handle(stream))

    def close(self) -> None:
        """Free it; it must not be running. Safe to call twice."""
        if self._executable:
            _call("cuGraphExecDestroy", self._executable)
            self._executable = _handle()


def _destroy(graph: ctypes.c_void_p) -> None:
    if graph:
        _call("cuGraphDestroy", graph)
