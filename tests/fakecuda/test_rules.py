"""The fake driver keeps CUDA's rules: each broken one is an error of its own. Called through ctypes, without PyCUDA."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator
from typing import Any

import fakedriver
import numpy as np
import pytest

from tsss_edge.kernels import fatbin

INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, NO_BINARY, INVALID_HANDLE, NOT_READY = 1, 2, 201, 209, 400, 600
ILLEGAL_ADDRESS, UNSUPPORTED, INVALIDATED, CAPTURED_EVENT, WRONG_THREAD = 700, 900, 901, 907, 908
UPDATE_FAILURE, OLD_DRIVER = 910, 222
NON_BLOCKING, THREAD_LOCAL, EXTERNAL, DEVICEMAP = 1, 1, 1, 2
PTX, CODE = 1, 2


class Fake:
    """Calls by name; `call` wants success, `code` gives the error."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(str(fakedriver.library()))
        self.call("cuInit", 0)

    def code(self, name: str, *arguments: Any) -> int:
        return int(getattr(self._driver, name)(*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        assert self.code(name, *arguments) == 0, name

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function returns through its first argument."""
        result = ctypes.c_void_p()
        self.call(name, ctypes.byref(result), *arguments)
        return result

    def count(self, kind: str) -> int:
        return int(self._driver.fakecuda_count(kind.encode()))

    def allocate(self, size: int) -> ctypes.c_void_p:
        return self.made("cuMemAlloc_v2", ctypes.c_size_t(size))

    def pinned(self, size: int, flags: int = 0) -> np.ndarray:
        """(size,) uint8 in pinned memory."""
        pointer = self.made("cuMemHostAlloc", ctypes.c_size_t(size), flags)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer.value or 0), np.uint8)

    def copy_in(self, address: ctypes.c_void_p, array: np.ndarray, stream: ctypes.c_void_p) -> int:
        host, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        return self.code("cuMemcpyHtoDAsync_v2", address, host, size, stream)

    def copy_out(self, array: np.ndarray, address: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        host, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        return self.code("cuMemcpyDtoHAsync_v2", host, address, size, stream)

    def launch(self, function: ctypes.c_void_p, stream: ctypes.c_void_p, packed: bytes, threads: int = 256) -> int:
        size = ctypes.c_size_t(len(packed))
        buffer = ctypes.create_string_buffer(packed, len(packed))
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
        return self.code("cuLaunchKernel", function, 1, 1, 1, threads, 1, 1, 0, stream, None, extra)


@pytest.fixture(scope="module")
def driver() -> Fake:
    return Fake()


@pytest.fixture
def fake(driver: Fake) -> Iterator[Fake]:
    """With a context of its own current in this thread; what a test leaves is gone with the context's memory."""
    context = driver.made("cuDevicePrimaryCtxRetain", 0)
    driver.call("cuCtxPushCurrent_v2", context)
    yield driver
    driver.call("cuCtxPopCurrent_v2", None)
    driver.call("cuDevicePrimaryCtxRelease_v2", 0)


@pytest.fixture
def stream(fake: Fake) -> Iterator[ctypes.c_void_p]:
    made = fake.made("cuStreamCreate", NON_BLOCKING)
    yield made
    fake.call("cuStreamDestroy_v2", made)


def image(kind: int, capability: int) -> bytes:
    """A fatbin with one empty entry."""
    entry = struct.pack("<HHIQ12xI", kind, 0, 64, 0, capability).ljust(64, b"\0")
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entry)) + entry


@pytest.fixture
def overlay(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> ctypes.c_void_p:
    """The kernel `overlay`: frame, labels, tints, keep, bytes."""
    monkeypatch.setenv("FAKECUDA_KERNELS", str(fakedriver.kernels()))
    return fake.made("cuModuleGetFunction", fake.made("cuModuleLoadDataEx", image(PTX, 75), 0, None, None), b"overlay")


# ---------------------------------------------------------------------------------------------------------------------
# Contexts and threads


def test_a_call_needs_a_context_in_its_own_thread(fake: Fake) -> None:
    codes: list[int] = []

    def elsewhere() -> None:
        codes.append(fake.code("cuMemAlloc_v2", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(8)))
        codes.append(fake.code("cuCtxPopCurrent_v2", None))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert codes == [INVALID_CONTEXT, INVALID_CONTEXT]


def test_a_context_that_was_given_back_is_gone(driver: Fake) -> None:
    context = driver.made("cuDevicePrimaryCtxRetain", 0)
    driver.call("cuDevicePrimaryCtxRelease_v2", 0)
    assert driver.code("cuCtxPushCurrent_v2", context) == INVALID_CONTEXT
    assert driver.code("cuDevicePrimaryCtxRelease_v2", 0) == INVALID_CONTEXT


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_freed_memory_is_an_error_and_counted(fake: Fake, stream: ctypes.c_void_p) -> None:
    before, host = fake.count("device_memory"), fake.pinned(64)
    address = fake.allocate(64)
    assert fake.count("device_memory") == before + 1
    fake.call("cuMemFree_v2", address)
    assert fake.count("device_memory") == before
    assert fake.code("cuMemFree_v2", address) == INVALID_VALUE
    assert fake.copy_in(address, host, stream) == INVALID_VALUE


def test_copies_wait_and_take_pinned_memory_only(fake: Fake, stream: ctypes.c_void_p) -> None:
    address, host, back = fake.allocate(64), fake.pinned(64), fake.pinned(64)
    host[:], back[:] = 1, 0
    assert fake.copy_in(address, np.zeros(64, np.uint8), stream) == INVALID_VALUE
    assert fake.copy_in(address, fake.pinned(65), stream) == INVALID_VALUE, "larger than its target"
    assert fake.copy_in(address, host, stream) == 0
    assert fake.copy_out(back, address, stream) == 0
    host[:] = 2  # too early
    assert not back.any()
    assert fake.code("cuStreamQuery", stream) == NOT_READY
    fake.call("cuStreamSynchronize", stream)
    assert (back == 2).all()


def test_only_mapped_memory_has_an_address(fake: Fake) -> None:
    address = ctypes.byref(ctypes.c_void_p())
    for flags, code in ((0, INVALID_VALUE), (DEVICEMAP, 0)):
        host = ctypes.c_void_p(fake.pinned(8, flags).ctypes.data)
        assert fake.code("cuMemHostGetDevicePointer_v2", address, host, 0) == code


def test_memory_has_an_end(fake: Fake) -> None:
    assert fake.code("cuMemAlloc_v2", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(9 << 30)) == OUT_OF_MEMORY


# ---------------------------------------------------------------------------------------------------------------------
# Kernels


@pytest.mark.parametrize(
    ("kind", "capability", "code"),
    [
        (PTX, 75, 0),
        (PTX, 89, 0),
        (PTX, 90, NO_BINARY),
        (CODE, 89, 0),
        (CODE, 86, 0),
        (CODE, 75, NO_BINARY),
        (CODE, 90, NO_BINARY),
    ],
)
def test_a_fatbin_must_have_code_for_the_gpu(fake: Fake, kind: int, capability: int, code: int) -> None:
    """The fake is an 8.9: PTX of an older GPU, or machine code of its own major version."""
    module = ctypes.c_void_p()
    assert fake.code("cuModuleLoadDataEx", ctypes.byref(module), image(kind, capability), 0, None, None) == code
    if code == 0:
        fake.call("cuModuleUnload", module)


@pytest.mark.parametrize(
    ("language", "target", "code"), [("6.3", 75, 0), ("6.3", 90, NO_BINARY), ("9.0", 75, 0), ("10.0", 75, OLD_DRIVER)]
)
def test_ptx_must_be_of_a_language_that_the_driver_reads(fake: Fake, language: str, target: int, code: int) -> None:
    text = f"// a comment\n.version {language}\n.target sm_{target}\n".encode()
    module = ctypes.c_void_p()
    assert fake.code("cuModuleLoadDataEx", ctypes.byref(module), text, 0, None, None) == code


@pytest.mark.parametrize("capabilities", [("7.5", "8.9"), ("9.0",)])
def test_fatbins_of_nvcc_are_read(fake: Fake, tmp_path: Any, capabilities: tuple[str, ...]) -> None:
    path = tmp_path / "k.fatbin"
    fatbin.build(path, capabilities)
    module = ctypes.c_void_p()
    code = fake.code("cuModuleLoadDataEx", ctypes.byref(module), path.read_bytes(), 0, None, None)
    assert code == (0 if "8.9" in capabilities else NO_BINARY)


def test_arguments_of_another_size_are_refused(fake: Fake, stream: ctypes.c_void_p, overlay: ctypes.c_void_p) -> None:
    assert fake.launch(overlay, stream, struct.pack("PPPi", 0, 0, 0, 0)) == INVALID_VALUE
    assert fake.launch(overlay, stream, struct.pack("PPPii", 0, 0, 0, 0, 0), threads=2048) == INVALID_VALUE


@pytest.mark.parametrize("wrong", ["freed", "host", "too small"])
def test_a_kernel_on_a_wrong_address_ends_its_context(
    fake: Fake, stream: ctypes.c_void_p, overlay: ctypes.c_void_p, wrong: str
) -> None:
    """The launch is taken, the wait fails, and so does all that follows until the context is new."""
    frame, labels, tints = fake.allocate(4096), fake.allocate(4096), fake.allocate(2048)
    if wrong == "freed":
        fake.call("cuMemFree_v2", frame)
    if wrong == "host":
        frame = ctypes.c_void_p(fake.pinned(4096).ctypes.data)
    size = 3 * 8192 if wrong == "too small" else 3
    packed = struct.pack("PPPii", frame.value, labels.value, tints.value, 0, size)
    assert fake.launch(overlay, stream, packed) == 0
    assert fake.code("cuStreamSynchronize", stream) == ILLEGAL_ADDRESS
    assert fake.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
    fake.call("fakecuda_revive")


# ---------------------------------------------------------------------------------------------------------------------
# Events


def test_an_event_is_done_when_its_stream_came_to_it(fake: Fake, stream: ctypes.c_void_p) -> None:
    first, second, ms = fake.made("cuEventCreate", 0), fake.made("cuEventCreate", 0), ctypes.c_float()
    assert fake.code("cuEventElapsedTime", ctypes.byref(ms), first, second) == INVALID_HANDLE, "never recorded"
    fake.call("cuEventRecordWithFlags", first, stream, 0)
    fake.call("cuEventRecordWithFlags", second, stream, 0)
    fake.call("cuEventSynchronize", first)
    assert fake.code("cuEventElapsedTime", ctypes.byref(ms), first, second) == NOT_READY, "the second still waits"
    fake.call("cuEventSynchronize", second)
    fake.call("cuEventElapsedTime", ctypes.byref(ms), first, second)
    assert ms.value == 1
    assert fake.code("cuEventRecordWithFlags", first, stream, EXTERNAL) == INVALID_VALUE, "nothing is captured"
    for event in (first, second):
        fake.call("cuEventDestroy_v2", event)
    assert fake.code("cuEventRecordWithFlags", first, stream, 0) == INVALID_HANDLE


def test_a_stream_waits_for_an_event_of_another(fake: Fake, stream: ctypes.c_void_p) -> None:
    other, event = fake.made("cuStreamCreate", NON_BLOCKING), fake.made("cuEventCreate", 0)
    address, host, back = fake.allocate(8), fake.pinned(8), fake.pinned(8)
    host[:] = 5
    assert fake.copy_in(address, host, other) == 0
    fake.call("cuEventRecordWithFlags", event, other, 0)
    fake.call("cuStreamWaitEvent", stream, event, 0)
    assert fake.copy_out(back, address, stream) == 0
    fake.call("cuStreamSynchronize", stream)
    assert (back == 5).all()
    fake.call("cuStreamDestroy_v2", other)


def test_a_stream_waits_for_the_record_so_far_and_no_later_one(fake: Fake, stream: ctypes.c_void_p) -> None:
    """Else two streams that wait for each other in turn would stand still."""
    other, event = fake.made("cuStreamCreate", NON_BLOCKING), fake.made("cuEventCreate", 0)
    address, host = fake.allocate(8), fake.pinned(8)
    fake.call("cuEventRecordWithFlags", event, other, 0)
    fake.call("cuStreamWaitEvent", stream, event, 0)
    assert fake.copy_in(address, host, other) == 0
    fake.call("cuEventRecordWithFlags", event, other, 0)
    fake.call("cuStreamSynchronize", stream)
    assert fake.code("cuEventQuery", event) == NOT_READY, "the second record still waits in its stream"
    fake.call("cuStreamDestroy_v2", other)


# ---------------------------------------------------------------------------------------------------------------------
# Graphs


def test_a_graph_runs_at_its_launches_and_not_before(fake: Fake, stream: ctypes.c_void_p) -> None:
    address, host, back = fake.allocate(8), fake.pinned(8), fake.pinned(8)
    back[:] = 0
    graph, executable = captured(
        fake, stream, lambda: (fake.copy_in(address, host, stream), fake.copy_out(back, address, stream))
    )
    fake.call("cuStreamSynchronize", stream)
    assert not back.any()
    for value in (3, 4):
        host[:] = value
        fake.call("cuGraphLaunch", executable, stream)
        fake.call("cuStreamSynchronize", stream)
        assert (back == value).all()
    fake.call("cuGraphExecDestroy", executable)
    assert fake.code("cuGraphLaunch", executable, stream) == INVALID_VALUE
    fake.call("cuGraphDestroy", graph)


def test_a_graph_is_updated_by_one_of_its_kind_only(fake: Fake, stream: ctypes.c_void_p) -> None:
    address, host, back = fake.allocate(8), fake.pinned(8), fake.pinned(8)
    other = fake.pinned(8)
    other[:], back[:] = 9, 0
    _, executable = captured(
        fake, stream, lambda: (fake.copy_in(address, host, stream), fake.copy_out(back, address, stream))
    )
    same, _ = captured(
        fake, stream, lambda: (fake.copy_in(address, other, stream), fake.copy_out(back, address, stream))
    )
    less, _ = captured(fake, stream, lambda: fake.copy_in(address, other, stream))
    info = ctypes.create_string_buffer(64)
    assert fake.code("cuGraphExecUpdate_v2", executable, less, info) == UPDATE_FAILURE
    fake.call("cuGraphExecUpdate_v2", executable, same, info)
    fake.call("cuGraphLaunch", executable, stream)
    fake.call("cuStreamSynchronize", stream)
    assert (back == 9).all()


def test_a_graph_that_outlived_its_memory(fake: Fake, stream: ctypes.c_void_p) -> None:
    address, host = fake.allocate(8), fake.pinned(8)
    _, executable = captured(fake, stream, lambda: fake.copy_in(address, host, stream))
    fake.call("cuMemFree_v2", address)
    fake.call("cuGraphLaunch", executable, stream)
    assert fake.code("cuStreamSynchronize", stream) == ILLEGAL_ADDRESS
    fake.call("fakecuda_revive")


@pytest.mark.parametrize(
    "call",
    [
        lambda fake, stream: fake.code("cuStreamSynchronize", stream),
        lambda fake, stream: fake.code("cuCtxSynchronize"),
        lambda fake, stream: fake.code("cuMemAlloc_v2", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(8)),
        lambda fake, stream: fake.code("cuStreamQuery", stream),
    ],
    ids=["synchronize", "synchronize all", "allocate", "query"],
)
def test_what_no_capture_allows_breaks_it(fake: Fake, stream: ctypes.c_void_p, call: Any) -> None:
    fake.call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
    assert call(fake, stream) == UNSUPPORTED
    assert fake.code("cuStreamEndCapture", stream, ctypes.byref(ctypes.c_void_p())) == INVALIDATED
    fake.call("cuStreamSynchronize", stream)


def test_a_capture_leaves_other_threads_alone_and_ends_in_its_own(fake: Fake, stream: ctypes.c_void_p) -> None:
    context, codes = fake.made("cuCtxGetCurrent"), []

    def elsewhere() -> None:
        fake.call("cuCtxPushCurrent_v2", context)
        codes.append(fake.code("cuMemFree_v2", fake.allocate(8)))
        codes.append(fake.code("cuStreamEndCapture", stream, ctypes.byref(ctypes.c_void_p())))
        fake.call("cuCtxPopCurrent_v2", None)

    fake.call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert codes == [0, WRONG_THREAD]
    fake.call("cuStreamEndCapture", stream, ctypes.byref(ctypes.c_void_p()))


def test_a_captured_event_has_no_time_unless_it_is_a_node(fake: Fake, stream: ctypes.c_void_p) -> None:
    edge, node = fake.made("cuEventCreate", 0), fake.made("cuEventCreate", 0)

    def work() -> None:
        fake.call("cuEventRecordWithFlags", edge, stream, 0)
        fake.call("cuEventRecordWithFlags", node, stream, EXTERNAL)

    _, executable = captured(fake, stream, work)
    fake.call("cuGraphLaunch", executable, stream)
    assert fake.code("cuEventSynchronize", edge) == CAPTURED_EVENT
    fake.call("cuEventSynchronize", node)


def captured(fake: Fake, stream: ctypes.c_void_p, work: Any) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """(graph, its executable) of what `work` puts into the stream."""
    fake.call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
    work()
    graph = ctypes.c_void_p()
    fake.call("cuStreamEndCapture", stream, ctypes.byref(graph))
    return graph, fake.made("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
