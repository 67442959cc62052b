"""What the driver says of the GPUs, asked of stand-ins for libcuda and libnvidia-ml."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from tsss_edge.backends.cuda import gpus as cuda_info


def put(target: Any, value: int) -> int:
    """Write through a `byref` argument, as a C function does; 0 is success."""
    target._obj.value = value
    return 0


def driver(*, count: int = 1, init: int = 0) -> Any:
    """An H100 with 80 GiB of which 79 are free, under a driver that serves CUDA 12.4."""

    def name(buffer: Any, size: int, index: int) -> int:
        buffer.value = b"NVIDIA H100"
        return 0

    def memory(free: Any, total: Any) -> int:
        return put(free, 79 << 30) + put(total, 80 << 30)

    return SimpleNamespace(
        cuInit=lambda flags: init,
        cuDeviceGetCount=lambda out: put(out, count),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=lambda out, kind, index: put(out, {75: 9, 76: 0}[kind]),
        cuDriverGetVersion=lambda out: put(out, 12040),
        cuDeviceTotalMem_v2=lambda out, index: put(out, 80 << 30),
        cuDevicePrimaryCtxRetain=lambda context, index: 0,
        cuCtxPushCurrent_v2=lambda context: 0,
        cuMemGetInfo_v2=memory,
        cuCtxPopCurrent_v2=lambda context: 0,
        cuDevicePrimaryCtxRelease_v2=lambda index: 0,
    )


def libraries(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    def load(name: str) -> Any:
        if name not in found:
            raise OSError(name)
        return found[name]

    monkeypatch.setattr(cuda_info.ctypes, "CDLL", load)


def test_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, **{"libcuda.so.1": driver()})
    gpu = cuda_info.first_gpu()
    assert gpu is not None
    assert (gpu.name, gpu.compute_capability, gpu.driver_cuda) == ("NVIDIA H100", "9.0", "12.4")
    assert (gpu.free_bytes, gpu.total_bytes) == (79 << 30, 80 << 30)
    assert cuda_info.driver_problem() == ""


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({}, "no CUDA driver"),
        ({"libcuda.so.1": driver(init=803)}, "does not start (error 803)"),
        ({"libcuda.so.1": driver(count=0)}, "no CUDA GPU"),
    ],
)
def test_no_gpu_and_why(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], problem: str) -> None:
    libraries(monkeypatch, **found)
    assert problem in cuda_info.driver_problem()
    assert cuda_info.first_gpu() is None


def test_driver_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(buffer: Any, size: int) -> int:
        assert size == len(buffer) == ctypes.sizeof(buffer)
        buffer.value = b"580.95.05"
        return 0

    library = SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlSystemGetDriverVersion=version, nvmlShutdown=lambda: 0)
    libraries(monkeypatch, **{"libnvidia-ml.so.1": library})
    assert cuda_info.driver_version() == "580.95.05"
    library.nvmlInit_v2 = lambda: 9
    assert cuda_info.driver_version() == ""
    libraries(monkeypatch)
    assert cuda_info.driver_version() == ""
