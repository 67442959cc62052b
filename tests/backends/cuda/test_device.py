"""`CudaDevice` and CUDA graphs on a stand-in for PyCUDA and the driver (`hostcuda`)."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hostcuda import HostCuda, build_kernels
from kernelkit import random_logits

from tsss_edge.artifacts import Preprocess
from tsss_edge.backends.cuda import device as launch
from tsss_edge.backends.cuda.device import CudaDevice
from tsss_edge.backends.cuda.driver import CudaEvent, CudaGraph
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels.overlay import overlay, tint_table
from tsss_edge.kernels.preprocess import preprocess
from tsss_edge.kernels.upsample_argmax import upsample_argmax

FRAME_HW = (37, 51)
SPEC = Preprocess(size_hw=(64, 96), fit="letterbox")
PALETTE = ((0, 0, 0), (200, 10, 30), (5, 100, 250), (90, 90, 90))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def cuda(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostCuda:
    return HostCuda(library).install(monkeypatch, tmp_path)


def sent(device: CudaDevice, array: np.ndarray) -> int:
    pinned, stream = device.pinned(array.shape, array.dtype.type), device.stream()
    np.copyto(pinned, array)
    address = device.allocate(array.nbytes)
    device.copy_in(address, pinned, stream)
    stream.synchronize()
    return address


def fetched(device: CudaDevice, address: int, shape: tuple[int, ...]) -> np.ndarray:
    pinned, stream = device.pinned(shape, np.uint8), device.stream()
    device.copy_out(pinned, address, stream)
    stream.synchronize()
    return pinned.copy()


def test_every_kernel_gets_its_arguments_in_order(cuda: HostCuda) -> None:
    """Frame, placement and sizes all differ, so that swapped arguments give another picture."""
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME_HW, 3), dtype=np.uint8)
    logits = random_logits((4, 8, 12))
    placement = SPEC.place(FRAME_HW)
    table, keep = tint_table(PALETTE, 0.5, None)
    device = CudaDevice()
    with device.current():
        stream, on_gpu = device.stream(), sent(device, frame)
        image, best, labels = device.allocate(64 * 96 * 3), device.allocate(8 * 12), device.allocate(37 * 51)
        device.preprocess(on_gpu, image, placement, FRAME_HW, SPEC.size_hw, stream)
        device.upsample_argmax(sent(device, logits), best, labels, placement, (4, 8, 12), FRAME_HW, stream)
        device.overlay(on_gpu, labels, sent(device, table), keep, FRAME_HW, stream)
        stream.synchronize()
        difference = fetched(device, image, (64, 96, 3)).astype(int) - preprocess(frame, SPEC, bgr=True)
        assert np.abs(difference).max() <= 1
        want = upsample_argmax(logits, FRAME_HW, placement)
        np.testing.assert_array_equal(fetched(device, labels, FRAME_HW), want)
        np.testing.assert_array_equal(fetched(device, on_gpu, (*FRAME_HW, 3)), overlay(frame, want, PALETTE))
    device.close()
    device.close()
    assert not cuda.device_memory, "close frees what was allocated"
    assert cuda.depth == 0


def test_a_context_is_pushed_and_popped_in_the_thread_that_calls(cuda: HostCuda) -> None:
    device = CudaDevice()
    depths: list[int] = []

    def work() -> None:
        with pytest.raises(RuntimeError, match="stop"), device.current():
            depths.append(cuda.depth)
            raise RuntimeError("stop")
        depths.append(cuda.depth)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert depths == [1, 0]


def test_errors_of_cuda_are_plain(cuda: HostCuda) -> None:
    device = CudaDevice()
    with pytest.raises(UnavailableError, match="CUDA: broken") as caught, device.current():
        raise cuda.driver.Error("broken")
    assert caught.value.exit_code == 4
    assert cuda.depth == 0


def test_out_of_memory_names_what_helps(cuda: HostCuda) -> None:
    device, cuda.most_bytes = CudaDevice(), 100
    with (
        pytest.raises(UnavailableError, match=r"out of GPU memory \(cuMemAlloc_v2\); use fewer slots"),
        device.current(),
    ):
        device.allocate(101)
    assert not cuda.device_memory and cuda.depth == 0


def test_pinned_memory_is_zeroed_and_freed_one_by_one_or_all_at_once(cuda: HostCuda) -> None:
    device = CudaDevice()
    with device.current():
        arrays = [device.pinned((3, 5), "float32") for _ in range(3)]
        assert all(array.dtype == np.float32 and not array.any() for array in arrays)
        device.free(arrays.pop())
        assert len(cuda.pinned) == 2
    device.close()
    assert not cuda.pinned


def test_no_driver_no_gpu(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise cuda.driver.Error("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(cuda.driver, "init", init)
    with pytest.raises(UnavailableError, match="CUDA does not start: cuInit failed"):
        CudaDevice()


def test_a_fatbin_for_another_gpu_or_driver(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(data: bytes) -> None:
        raise cuda.driver.Error("no kernel image is available")

    monkeypatch.setattr(cuda.driver, "module_from_buffer", load)
    with pytest.raises(UnavailableError, match=r"does not run on stand-in \(compute capability 8.7\): no kernel image"):
        CudaDevice()
    assert cuda.depth == 0


def test_without_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(UnavailableError, match=r"pip install 'tsss-edge\[cuda\]'"):
        CudaDevice()


def test_pycuda_is_imported_in_one_module() -> None:
    package = Path(launch.__file__).parents[2]
    users = {path.name for path in package.rglob("*.py") if "import pycuda" in path.read_text()}
    assert users == {"device.py"}


# ---------------------------------------------------------------------------------------------------------------------
# Graphs


def test_a_graph_does_its_work_at_every_launch_and_not_before(cuda: HostCuda) -> None:
    device, calls = CudaDevice(), []
    with device.current():
        stream, before, after = device.stream(), CudaEvent(), CudaEvent()

        def work() -> None:
            before.record(stream, capturing=True)
            stream.put(lambda: calls.append(1))
            after.record(stream, capturing=True)

        graph = CudaGraph(stream, work)
        stream.synchronize()
        assert not calls
        for _ in range(2):
            graph.launch(stream)
        after.synchronize()
        assert len(calls) == 2
        assert after.ms_since(before) == 2  # the stand-in's clock: one for the work, one for the record
        graph.close()
        graph.close()
    assert not cuda.graphs


def test_a_failed_capture_leaves_the_stream_usable(cuda: HostCuda) -> None:
    device, calls = CudaDevice(), []
    with device.current():
        stream = device.stream()

        def work() -> None:
            raise UnavailableError("the network cannot be captured")

        with pytest.raises(UnavailableError, match="cannot be captured"):
            CudaGraph(stream, work)
        cuda.refuses_capture = True
        with pytest.raises(UnavailableError, match=r"cuStreamEndCapture: operation not permitted .* \(error 900\)"):
            CudaGraph(stream, lambda: None)
        stream.put(lambda: calls.append(1))
        stream.synchronize()
    assert calls == [1]
    assert not cuda.graphs
