"""A stand-in for a CUDA GPU: PyCUDA's driver module and the C calls of `backends/cuda/driver.py`, on host memory.

"Device" memory is host memory that only kernels and copies may touch, so a wrong pointer, size or order shows as a wrong
answer or an error. Work waits in its stream until somebody synchronizes. Kernels are the `.cu` files, built by g++, and get
the bytes that PyCUDA would pack. A GPU operation takes 1 ms of a clock of its own.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tsss_edge.artifacts import Placement, Preprocess
from tsss_edge.backends.cuda import driver
from tsss_edge.kernels import fatbin
from tsss_edge.kernels.yuv import Matrix, Yuv

CAPTURE_UNSUPPORTED = 900  # CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
Work = Callable[[], None]


class PlacementStruct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("sx", "sy", "sw", "sh", "tx", "ty", "tw", "th")]


class PitchesStruct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("luma", "chroma", "step")]


class MatrixStruct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in Matrix._fields]


def build_kernels(folder: Path) -> Path:
    """The kernels as plain loops in a shared library; skips the test where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    library = folder / "kernels.so"
    flags = ["-x", "c++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", str(library), str(fatbin.FOLDER / "kernels.cu")], check=True, timeout=120)
    return library


def signature(name: str) -> list[Any]:
    """ctypes of a kernel's parameters, read from its source (LABELS(name, T) and LARGEST(name, T) are macros)."""
    source = "".join((fatbin.FOLDER / file).read_text() for file in fatbin.SOURCES).replace("\\\n", "")
    macro = {"labels": "LABELS", "largest": "LARGEST"}.get(name.split("_")[0])
    body = re.search(rf"#define {macro}.*?\(([^)]*)\) \{{" if macro else rf"KERNEL {name}\(([^)]*)\)", source)
    assert body is not None, f"no kernel {name} in the sources"
    text = body[1] if macro is None else source[body.start() : body.end()].split("KERNEL name(")[1]
    kinds = {"int": ctypes.c_int, "Placement": PlacementStruct, "Pitches": PitchesStruct, "Matrix": MatrixStruct}
    return [ctypes.c_void_p if "*" in p else kinds[p.split()[0]] for p in text.split(")")[0].split(",")]


class HostKernels:
    """The kernels that g++ built, called with arrays."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def call(self, name: str, *args: Any) -> None:
        """A kernel over everything. Arrays are passed by address, a Placement by value."""
        function = getattr(self._library, name)
        function.argtypes, function.restype = signature(name), None
        function(*map(_native, args))

    def preprocess(self, frame: np.ndarray, spec: Preprocess, *, bgr: bool) -> np.ndarray:
        out = np.full((*spec.size_hw, 3), 7, np.uint8)
        placement = spec.place(frame.shape[:2])
        self.call("preprocess", frame, out, placement, frame.shape[1], *spec.size_hw, int(bgr))
        return out

    def preprocess_yuv(self, picture: Yuv, spec: Preprocess) -> np.ndarray:
        out = np.full((*spec.size_hw, 3), 7, np.uint8)
        placement = spec.place(picture.frame_hw)
        self.call(
            "preprocess_yuv", *_planes(picture), out, _pitches(picture), placement, picture.colour.terms, *spec.size_hw
        )
        return out

    def overlay_yuv(self, picture: Yuv, labels: np.ndarray, tints: np.ndarray, keep: int) -> None:
        self.call("overlay_yuv", *_planes(picture), _pitches(picture), labels, tints, keep, *picture.frame_hw)

    def largest(self, logits: np.ndarray) -> np.ndarray:
        classes, h, w = logits.shape
        best = np.full((h, w), 7, np.uint8)
        self.call(f"largest_{logits.dtype}", logits, best, classes, h * w)
        return best

    def upsample_argmax(self, logits: np.ndarray, frame_hw: tuple[int, int], placement: Placement) -> np.ndarray:
        labels = np.full(frame_hw, 7, np.uint8)
        best = self.largest(logits)
        self.call(f"labels_{logits.dtype}", logits, best, labels, placement, *logits.shape, *frame_hw)
        return labels


def _planes(picture: Yuv) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return picture.y, picture.u, picture.v


def _pitches(picture: Yuv) -> PitchesStruct:
    return PitchesStruct(picture.y.strides[0], picture.chroma[0].strides[0], 2 if picture.pairs else 1)


def _native(value: Any) -> Any:
    if isinstance(value, Matrix):
        return MatrixStruct(*value)
    if isinstance(value, Placement):
        return PlacementStruct(*value.source, *value.target)
    return value.ctypes.data if isinstance(value, np.ndarray) else value


class Stream:
    def __init__(self, cuda: HostCuda) -> None:
        cuda.need_context()
        self.handle = next(cuda.handles)
        self.queue: list[Work] = []
        self.recording: list[Work] | None = None
        self._cuda = cuda
        with cuda.lock:
            cuda.streams[self.handle] = self

    def put(self, work: Work) -> None:
        self._cuda.need_context()
        with self._cuda.lock:
            (self.queue if self.recording is None else self.recording).append(work)

    def synchronize(self) -> None:
        self._cuda.need_context()
        assert self.recording is None, "synchronized while capturing"
        with self._cuda.lock:
            while self.queue:
                self.queue.pop(0)()
                self._cuda.clock_ms += 1


class Kernel:
    """A kernel's function. Its arguments go through the bytes that PyCUDA packs."""

    def __init__(self, cuda: HostCuda, name: str) -> None:
        self._cuda, self._name = cuda, name
        self._function, self._kinds = getattr(cuda.library, name), signature(name)
        self._function.argtypes, self._function.restype = self._kinds, None

    def prepare(self, format: str) -> None:
        self._format = format

    def prepared_async_call(
        self, grid: tuple[int, int], block: tuple[int, int, int], stream: Stream, *args: int
    ) -> None:
        fields = [(f"p{i}", kind) for i, kind in enumerate(self._kinds)]
        layout = type("Parameters", (ctypes.Structure,), {"_fields_": fields})
        data = struct.pack(self._format, *args)
        last = getattr(layout, fields[-1][0])
        assert len(data) == last.offset + last.size, f"{self._name} takes other parameters than {self._format}"
        parameters = layout.from_buffer_copy(data.ljust(ctypes.sizeof(layout), b"\0"))
        values = [getattr(parameters, name) for name, _ in fields]
        for value, kind in zip(values, self._kinds, strict=True):
            if kind is ctypes.c_void_p:
                self._cuda.need_device_memory(value)
        assert all(grid) and block in ((256, 1, 1), (32, 8, 1))
        stream.put(lambda: self._function(*values))


class HostCuda:
    """`install` puts it in the place of PyCUDA and of libcuda. The test sets what goes wrong."""

    def __init__(self, library: Path, *, integrated: bool = False) -> None:
        self.library = ctypes.CDLL(str(library))
        self.integrated = integrated
        self.refuses_capture = False
        self.clock_ms = 0.0
        self.lock = threading.RLock()  # one GPU, whichever thread waits for it
        self.handles = itertools.count(1)
        self.streams: dict[int, Stream] = {}
        self.device_memory: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.mapped: set[int] = set()
        self.most_bytes = 1 << 40
        self._buffers: dict[int, Any] = {}
        self.events: dict[int, float | None] = {}
        self.recorded_in: dict[int, tuple[Stream, list[bool]]] = {}  # of the last record: where, and whether it is done
        self.graphs: dict[int, list[Work]] = {}
        self.captures = self.launches = 0
        self._local = threading.local()
        self.driver = self._pycuda_driver()

    def install(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> HostCuda:
        monkeypatch.setitem(__import__("sys").modules, "pycuda", SimpleNamespace(driver=self.driver))
        monkeypatch.setitem(__import__("sys").modules, "pycuda.driver", self.driver)
        monkeypatch.setattr(driver, "_driver", lambda: self)
        (cache / "fatbin").write_bytes(b"fatbin")
        monkeypatch.setattr("tsss_edge.backends.cuda.device.find_or_build", lambda capability: cache / "fatbin")
        return self

    # The calling thread's contexts

    def push(self) -> None:
        self._local.depth = self.depth + 1

    def pop(self) -> None:
        assert self.depth, "popped a context that was not pushed"
        self._local.depth -= 1

    @property
    def depth(self) -> int:
        return getattr(self._local, "depth", 0)

    def need_context(self) -> None:
        assert self.depth, "a CUDA call without a current context"

    def need_device_memory(self, address: int) -> None:
        inside = (start <= address < start + size for start, size in self.device_memory.items())
        assert any(inside), "a kernel or copy got an address that is not device memory"

    # pycuda.driver

    def _pycuda_driver(self) -> Any:
        class Error(Exception):
            pass

        class MemoryError(Error):
            pass

        gpu = SimpleNamespace(
            name=lambda: "stand-in",
            compute_capability=lambda: (8, 7),
            get_attribute=lambda attribute: self.integrated,
            retain_primary_context=lambda: SimpleNamespace(push=self.push, pop=self.pop, detach=lambda: None),
        )
        pycuda = ModuleType("pycuda.driver")
        pycuda.__dict__.update(
            Error=Error,
            MemoryError=MemoryError,
            init=lambda: None,
            Device=lambda ordinal: gpu,
            device_attribute=SimpleNamespace(INTEGRATED=18),
            Stream=lambda flags: Stream(self),
            module_from_buffer=lambda data: SimpleNamespace(get_function=lambda name: Kernel(self, name)),
        )
        return pycuda

    # cuda.h, as `backends/cuda/driver.py` calls it: every function gives an error code

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        self.need_context()
        if size.value > self.most_bytes:
            return driver.OUT_OF_MEMORY
        address._obj.value = self._reserve(size.value)
        self.device_memory[address._obj.value] = size.value
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        self.need_context()
        del self.device_memory[address.value], self._buffers[address.value]
        return 0

    def cuMemHostAlloc(self, pointer: Any, size: Any, flags: Any) -> int:
        self.need_context()
        pointer._obj.value = self._reserve(size.value)
        self.pinned[pointer._obj.value] = size.value
        if flags.value == driver.MAPPED:
            self.mapped.add(pointer._obj.value)
        return 0

    def cuMemHostGetDevicePointer_v2(self, address: Any, pointer: Any, flags: Any) -> int:
        assert pointer.value in self.mapped, "not allocated with DEVICEMAP"
        address._obj.value = pointer.value
        self.device_memory[pointer.value] = self.pinned[pointer.value]
        return 0

    def cuMemFreeHost(self, pointer: Any) -> int:
        self.need_context()
        self.mapped.discard(pointer.value)
        self.device_memory.pop(pointer.value, None)
        del self.pinned[pointer.value], self._buffers[pointer.value]
        return 0

    def _reserve(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        self._buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def cuMemcpyHtoDAsync_v2(self, address: Any, pointer: Any, size: Any, stream: Any) -> int:
        return self._copy(address.value, pointer.value, size.value, stream, inwards=True)

    def cuMemcpyDtoHAsync_v2(self, pointer: Any, address: Any, size: Any, stream: Any) -> int:
        return self._copy(address.value, pointer.value, size.value, stream, inwards=False)

    def _copy(self, address: int, pointer: int, size: int, stream: Any, *, inwards: bool) -> int:
        self.need_device_memory(address)
        assert size <= self.device_memory[address]
        assert size <= self.pinned[pointer], "an asynchronous copy needs pinned memory"
        to, source = (address, pointer) if inwards else (pointer, address)
        self.streams[stream.value].put(lambda: ctypes.memmove(to, source, size))
        return 0

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = {CAPTURE_UNSUPPORTED: b"operation not permitted when stream is capturing"}[code]
        return 0

    def cuEventCreate(self, event: Any, flags: Any) -> int:
        self.need_context()
        event._obj.value = next(self.handles)
        self.events[event._obj.value] = None
        return 0

    def cuEventRecordWithFlags(self, event: Any, stream: Any, flags: Any) -> int:
        where = self.streams[stream.value]
        assert (flags.value == driver.EXTERNAL) == (where.recording is not None)
        done: list[bool] = []
        if where.recording is None:
            self.recorded_in[event.value] = where, done
        where.put(lambda: (done.append(True), self.events.update({event.value: self.clock_ms})))
        return 0

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: Any) -> int:
        if (recorded := self.recorded_in.get(event.value)) is not None:
            self.streams[stream.value].put(lambda: self._run_until(*recorded))
        return 0

    def _run_until(self, where: Stream, done: list[bool]) -> None:
        while not done and where.queue:
            where.queue.pop(0)()
            self.clock_ms += 1

    def cuEventSynchronize(self, event: Any) -> int:
        """Its stream runs until it comes to the event; all do, for an event of a graph."""
        with self.lock:
            if (recorded := self.recorded_in.get(event.value)) is not None:
                self._run_until(*recorded)
                return 0
            for stream in self.streams.values():
                if stream.recording is None:
                    stream.synchronize()
        return 0

    def cuEventElapsedTime(self, milliseconds: Any, earlier: Any, later: Any) -> int:
        before, after = self.events[earlier.value], self.events[later.value]
        assert before is not None and after is not None
        milliseconds._obj.value = after - before
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:
        del self.events[event.value]
        self.recorded_in.pop(event.value, None)
        return 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:
        assert mode.value == driver.THREAD_LOCAL
        where = self.streams[stream.value]
        with self.lock:
            assert not where.queue, "work is still waiting"
            assert where.recording is None, "captures already"
            where.recording = []
        return 0

    def cuStreamEndCapture(self, stream: Any, result: Any) -> int:
        where = self.streams[stream.value]
        with self.lock:
            recorded, where.recording = where.recording, None
        if self.refuses_capture:
            return CAPTURE_UNSUPPORTED
        assert recorded is not None
        result._obj.value = next(self.handles)
        self.graphs[result._obj.value] = recorded
        self.captures += 1
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, captured: Any, flags: Any) -> int:
        executable._obj.value = next(self.handles)
        self.graphs[executable._obj.value] = self.graphs[captured.value]
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        self.launches += 1
        for work in self.graphs[executable.value]:
            self.streams[stream.value].put(work)
        return 0

    def cuGraphDestroy(self, captured: Any) -> int:
        del self.graphs[captured.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy
