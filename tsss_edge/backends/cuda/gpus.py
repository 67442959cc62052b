"""What the CUDA driver says about the GPUs of this machine, through ctypes: no CUDA package is needed to ask."""

from __future__ import annotations

import ctypes

from tsss_edge.artifacts import Struct

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR (cuda.h)


class Gpu(Struct, frozen=True):
    """One CUDA device. Memory in bytes; `driver_cuda` is the newest CUDA version the driver serves, such as "13.0"."""

    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    driver_cuda: str


def gpus() -> tuple[Gpu, ...]:
    """All CUDA devices; empty without a driver or without a GPU."""
    driver, _ = _open_driver()
    if driver is None:
        return ()
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return tuple(_gpu(driver, index) for index in range(count.value))


def first_gpu() -> Gpu | None:
    """Device 0, or None."""
    return next(iter(gpus()), None)


def driver_version() -> str:
    """NVIDIA's own number of the driver, such as "580.95.05", from its management library; empty where that is missing."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ""
    text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE (nvml.h)
    if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, len(text)):
        return ""
    library.nvmlShutdown()
    return text.value.decode()


def driver_problem() -> str:
    """Why no GPU can be used, in one sentence; empty when one can."""
    driver, problem = _open_driver()
    return problem if driver is None or gpus() else "no CUDA GPU on this machine"


def _open_driver() -> tuple[ctypes.CDLL | None, str]:
    """The driver when it starts, else why not."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, "no CUDA driver (libcuda.so.1) on this machine"
    code = driver.cuInit(0)
    return (None, f"the CUDA driver does not start (error {code})") if code else (driver, "")


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), index)
    major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, index)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, index)
    driver.cuDriverGetVersion(ctypes.byref(version))
    free, total = _memory(driver, index)
    return Gpu(
        name=name.value.decode(),
        compute_capability=f"{major.value}.{minor.value}",
        total_bytes=total,
        free_bytes=free,
        driver_cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _memory(driver: ctypes.CDLL, index: int) -> tuple[int, int]:
    """(free, total) bytes. Free memory is only told inside a context: the primary one is borrowed and given back."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    context = ctypes.c_void_p()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), index):
        driver.cuDeviceTotalMem_v2(ctypes.byref(total), index)
        return 0, total.value
    driver.cuCtxPushCurrent_v2(context)
    driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    driver.cuDevicePrimaryCtxRelease_v2(index)
    return free.value, total.value
