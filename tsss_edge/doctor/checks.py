"""What doctor looks at -> checks: this machine, its Python packages, CUDA and its GPUs."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from tsss_edge.artifacts import Struct
from tsss_edge.backends.base import openvino_core
from tsss_edge.backends.cuda.gpus import Gpu, driver_problem, driver_version, first_gpu, gpus
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels.fatbin import find_nvcc
from tsss_edge.machine import (
    DOT_PRODUCTS,
    RTX_CAPABILITIES,
    SEVEN_BITS,
    cpu_flags,
    cpu_name,
    int8_saturates,
    memory_bytes,
    usable_cores,
)

Status = Literal["ok", "missing", "warning"]
GIB = 1 << 30
LITTLE_MEMORY, LITTLE_DISK = 2 * GIB, 2 * GIB  # training edge-m at 512x512 and the demo's files want about that
ISA_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")
WHEELS_CUDA = 13  # major CUDA version of the tensorrt-rtx and tensorrt wheels that pip takes today

# name shown, module, distributions that may carry it, what installs it
PACKAGES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("PyTorch", "torch", ("torch",), "pip install 'tsss-edge[train]'"),
    ("ONNX", "onnx", ("onnx",), "pip install 'tsss-edge[onnx]'"),
    ("ONNX Runtime", "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "pip install 'tsss-edge[onnx]'"),
    ("OpenVINO", "openvino", ("openvino",), "pip install 'tsss-edge[cpu]'"),
    ("TensorRT-RTX", "tensorrt_rtx", ("tensorrt_rtx", "tensorrt-rtx"), "pip install 'tsss-edge[rtx]'"),
    ("TensorRT", "tensorrt", ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"), "pip install 'tsss-edge[tensorrt]'"),
    ("PyCUDA", "pycuda", ("pycuda",), "pip install 'tsss-edge[cuda]' (needs the CUDA toolkit)"),
    ("web page", "fastapi", ("fastapi",), "pip install 'tsss-edge[web]'"),
    ("Ray", "ray", ("ray",), "pip install 'tsss-edge[scale]'"),
)


class Check(Struct, frozen=True):
    """One line of the report. `fix` is a command, or a sentence where no command helps."""

    name: str
    status: Status
    found: str
    fix: str = ""


def output(*command: str) -> str:
    """What a program prints; empty where it is not installed."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


def host_checks(folder: Path) -> list[Check]:
    """Everything that is the same with and without a GPU. `folder`: where disk space is measured."""
    total, available = memory_bytes()
    disk = shutil.disk_usage(folder).free
    return [
        Check(name="Python", status="ok", found=f"{platform.python_version()} at {sys.executable}"),
        Check(name="system", status="ok", found=f"{platform.system()} {platform.release()} {platform.machine()}"),
        Check(name="CPU", status="ok", found=f"{cpu_name()}, {usable_cores()} cores for this process"),
        _isa(cpu_flags((*ISA_FLAGS, *ARM_FLAGS))),
        _amount("memory", available, LITTLE_MEMORY, f"{available / GIB:.1f} GiB free of {total / GIB:.1f}"),
        _amount("disk", disk, LITTLE_DISK, f"{disk / GIB:.1f} GiB free at {folder}"),
    ]


def _isa(flags: tuple[str, ...]) -> Check:
    found = ", ".join(flags) or "none of " + ", ".join(ISA_FLAGS)
    if any(flag in DOT_PRODUCTS for flag in flags):
        return Check(name="CPU instructions", status="ok", found=found)
    fix = (
        "INT8 works without dot products, but it is slow; float may be faster here: let build-engine --eval-data choose"
    )
    if int8_saturates():
        fix = f"no VNNI: INT8 sums saturate here. `{SEVEN_BITS}` makes a file for this CPU"
    return Check(name="CPU instructions", status="warning", found=found, fix=fix)


def _amount(name: str, free: int, little: int, found: str) -> Check:
    fix = "" if free >= little else f"free some: {little // GIB} GiB are wanted for training and the demo"
    return Check(name=name, status="ok" if free >= little else "warning", found=found, fix=fix)


def package_checks() -> list[Check]:
    """Every optional package, with the command that installs it."""
    return [_package(*row) for row in PACKAGES]


def _package(name: str, module: str, distributions: tuple[str, ...], fix: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name=name, status="missing", found=f"no Python module {module}", fix=fix)
    for distribution in distributions:
        try:
            return Check(name=name, status="ok", found=importlib.metadata.version(distribution))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check(name=name, status="ok", found="installed by the system, version not told")


def openvino_checks() -> list[Check]:
    """Devices and precisions, where OpenVINO is installed."""
    if importlib.util.find_spec("openvino") is None:
        return []
    try:
        core = openvino_core()
    except (UnavailableError, RuntimeError) as error:
        return [Check(name="OpenVINO devices", status="missing", found=str(error), fix="pip install -U openvino")]
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if "CPU" in core.available_devices else []
    found = f"{', '.join(core.available_devices)}; CPU runs {', '.join(sorted(set(capabilities)))}"
    return [Check(name="OpenVINO devices", status="ok", found=found)]


def opencv_checks() -> list[Check]:
    """Version, GStreamer and whether a window can be shown."""
    import cv2

    info = cv2.getBuildInformation()
    gstreamer = re.search(r"GStreamer:\s+(YES.*)", info)
    gui = re.search(r"GUI:\s+(\S+)", info)
    display = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or ""
    can_show = bool(display and gui and gui.group(1) != "NONE")
    return [
        Check(name="OpenCV", status="ok", found=f"{cv2.__version__}, GUI {gui.group(1) if gui else 'none'}"),
        Check(
            name="GStreamer",
            status="ok" if gstreamer else "missing",
            found=gstreamer.group(1).strip() if gstreamer else "OpenCV was built without it: csi:// and NVDEC are out",
            fix="use the system's OpenCV (apt install python3-opencv) in a venv with --system-site-packages",
        ),
        Check(
            name="display",
            status="ok" if can_show else "missing",
            found=display if can_show else "none: no window, but files, JSON and the web page work",
            fix="use --web, or set DISPLAY and install opencv-python instead of opencv-python-headless",
        ),
    ]


def video_checks() -> list[Check]:
    """What decodes and what encodes video in the live loop."""
    from tsss_edge.stream.encoders import h264_encoder
    from tsss_edge.stream.sources.hardware import decoder_here

    found = f"files are decoded by {decoder_here().why}; H.264 is written by {h264_encoder().why}"
    return [Check(name="video", status="ok", found=found)]


def cuda_checks() -> list[Check]:
    """Driver, GPUs, compiler, version pairs, the hardware decoder; on a Jetson its own parts."""
    return [_driver(), *_gpu_checks(), _nvcc(), *_pairs(), *_nvdec(), *_jetson()]


def _driver() -> Check:
    problem = driver_problem()
    if problem:
        fix = "install NVIDIA's driver (a GPU is only needed for training at scale and for TensorRT engines)"
        return Check(name="CUDA driver", status="missing", found=problem, fix=fix)
    version = driver_version()
    cuda = gpus()[0].driver_cuda
    found = f"{version or 'version not told'}, serves CUDA {cuda}"
    if int(cuda.split(".")[0]) < WHEELS_CUDA:
        fix = f"wheels for CUDA {WHEELS_CUDA} need a newer driver (580 or later); with this one use cu12 wheels"
        return Check(name="CUDA driver", status="warning", found=found, fix=fix)
    return Check(name="CUDA driver", status="ok", found=found)


def _gpu_checks() -> list[Check]:
    return [
        Check(
            name=f"GPU {index}",
            status="ok",
            found=f"{gpu.name}, compute capability {gpu.compute_capability}, {_memory(gpu)}"
            + ("" if gpu.compute_capability in RTX_CAPABILITIES else "; not served by TensorRT-RTX, use TensorRT"),
        )
        for index, gpu in enumerate(_cards())
    ]


def _cards() -> list[Gpu]:
    """All GPUs; only the first is asked for its free memory, because that takes a context on it."""
    cards, first = list(gpus()), first_gpu()
    return [first, *cards[1:]] if first else cards


def _memory(gpu: Gpu) -> str:
    total = f"{gpu.total_bytes / GIB:.1f}"
    return f"{gpu.free_bytes / GIB:.1f} GiB free of {total}" if gpu.free_bytes else f"{total} GiB"


def _nvcc() -> Check:
    nvcc = find_nvcc()
    release = re.search(r"release ([\d.]+)", output(nvcc, "--version")) if nvcc else None
    if release:
        return Check(name="nvcc", status="ok", found=f"CUDA {release.group(1)}")
    return Check(name="nvcc", status="ok", found="not here, not needed: PTX is shipped; only to build PyCUDA")


def _pairs() -> list[Check]:
    """Packages whose CUDA version must fit the driver's: a wheel for a newer major version does not start."""
    cards = gpus()
    if not cards:
        return []
    built = (
        ("PyTorch", _torch_cuda()),
        ("TensorRT", _wheel_cuda("tensorrt")),
        ("TensorRT-RTX", _wheel_cuda("tensorrt_rtx")),
    )
    return [_pair(name, major, cards[0].driver_cuda) for name, major in built if major]


def _pair(name: str, major: int, driver_cuda: str) -> Check:
    fits = int(driver_cuda.split(".")[0]) >= major
    found = f"built for CUDA {major}, the driver serves {driver_cuda}"
    fix = "" if fits else f"install a newer driver, or {name}'s wheel for CUDA {driver_cuda.split('.')[0]}"
    return Check(name=f"{name} + driver", status="ok" if fits else "warning", found=found, fix=fix)


def _torch_cuda() -> int:
    """Major CUDA version of the PyTorch wheel, from its version ("2.13.0+cu130"); 0 where it does not tell."""
    try:
        local = importlib.metadata.version("torch").partition("+cu")[2]
    except importlib.metadata.PackageNotFoundError:
        return 0
    return int(local[:2]) if local[:2].isdigit() else 0


def _wheel_cuda(package: str) -> int:
    """Major CUDA version of a TensorRT wheel, from the name of its library package ("tensorrt_cu13_libs")."""
    names = {dist.metadata["Name"].lower().replace("-", "_") for dist in importlib.metadata.distributions()}
    found = [int(match.group(1)) for name in names if (match := re.fullmatch(rf"{package}_cu(\d+)_libs", name))]
    return max(found, default=0)


def _nvdec(library: str = "libnvcuvid.so.1") -> list[Check]:
    """The hardware decoder of a desktop or server GPU; a Jetson has its own (`_jetson`)."""
    if not gpus() or Path("/etc/nv_tegra_release").is_file():
        return []
    try:
        ctypes.CDLL(library)
    except OSError:
        fix = "in a container: --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        return [Check(name="NVDEC", status="missing", found=f"no {library}: the driver came without video", fix=fix)]
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        fix = "pip install PyNvVideoCodec (files are decoded on the CPU without it)"
        return [Check(name="NVDEC", status="warning", found=f"{library}, but no PyNvVideoCodec", fix=fix)]
    return [Check(name="NVDEC", status="ok", found=f"{library} and PyNvVideoCodec")]


def _jetson(release: Path = Path("/etc/nv_tegra_release")) -> list[Check]:
    """Only on a Jetson: L4T version, DLA cores, the hardware decoder."""
    if not release.is_file():
        return []
    line = release.read_text().splitlines()[0]
    dla = sorted(p.name for p in Path("/dev").glob("nvhost-ctrl-nvdla*"))
    decoder = "nvv4l2decoder" in output("gst-inspect-1.0", "nvv4l2decoder")
    return [
        Check(name="Jetson", status="ok", found=line.lstrip("# ")),
        Check(name="DLA", status="ok" if dla else "missing", found=", ".join(dla) or "no DLA on this module"),
        Check(
            name="NVDEC",
            status="ok" if decoder else "missing",
            found="nvv4l2decoder" if decoder else "no GStreamer element nvv4l2decoder",
            fix="sudo apt install nvidia-l4t-gstreamer",
        ),
    ]
