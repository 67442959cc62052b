"""What the CUDA driver says about the GPUs of this machine, through ctypes: no CUDA package is needed to ask.

One process uses one GPU, which is device 0 to everything in it. `choose_gpu` decides which that is; nothing touches the others.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Struct
from tsss_edge.errors import UnavailableError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR (cuda.h)


class Gpu(Struct, frozen=True):
    """One CUDA device. Memory in bytes; `free_bytes` is 0 where nobody asked (it takes a context on the GPU).

    `driver_cuda` is the newest CUDA version the driver serves, such as "13.0".
    """

    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    driver_cuda: str


def choose_gpu(index: int) -> None:
    """Make one GPU the only one that this process and its children see, before anything uses CUDA.

    Args:   index: as nvidia-smi counts; of those that CUDA_VISIBLE_DEVICES names, where it is set.
    Raises: UnavailableError: no such GPU, or no driver.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else None
    if visible is not None and index >= len(visible):
        raise UnavailableError(f"no GPU {index}: CUDA_VISIBLE_DEVICES={given} shows {len(visible)}")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order; CUDA's own puts the fastest first
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[index].strip() if visible else str(index)
    if problem := driver_problem():
        raise UnavailableError(f"no GPU {index}: {problem}; `nvidia-smi -L` lists them")


def gpus() -> tuple[Gpu, ...]:
    """All CUDA devices that this process sees, without a context on any; empty without a driver or without a GPU."""
    driver, _ = _open_driver()
    return tuple(_gpu(driver, index) for index in range(_count(driver))) if driver else ()


def first_gpu() -> Gpu | None:
    """Device 0 with its free memory, or None."""
    driver, _ = _open_driver()
    if driver is None or not _count(driver):
        return None
    gpu = _gpu(driver, 0)
    return msgspec.structs.replace(gpu, free_bytes=_free_bytes(driver))


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
    return problem if driver is None or _count(driver) else "no CUDA GPU on this machine"


def _count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _open_driver() -> tuple[ctypes.CDLL | None, str]:
    """The driver when it starts, else why not."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, "no CUDA driver (libcuda.so.1) on this machine"
    code = driver.cuInit(0)
    return (None, f"the CUDA driver does not start (error {code})") if code else (driver, "")


def name_with_board(name: str, board: Path = Path("/proc/device-tree/model")) -> str:
    """A GPU's name; on a Jetson with its board, for every Orin module calls its GPU "Orin" and a plan fits one of them."""
    model = board.read_text(errors="replace").strip("\0") if board.is_file() else ""
    return f"{name}, {model}" if "Jetson" in model else name


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), index)
    major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, index)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, index)
    driver.cuDriverGetVersion(ctypes.byref(version))
    total = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), index)
    return Gpu(
        name=name_with_board(name.value.decode()),
        compute_capability=f"{major.value}.{minor.value}",
        total_bytes=total.value,
        free_bytes=0,
        driver_cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _free_bytes(driver: ctypes.CDLL) -> int:
    """Of device 0. Only told inside a context: the primary one is borrowed and given back. 0 where that fails."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    context = ctypes.c_void_p()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0):
        return 0
    driver.cuCtxPushCurrent_v2(context)
    driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    driver.cuDevicePrimaryCtxRelease_v2(0)
    return free.value
