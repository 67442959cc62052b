"""CUDA driver, GPUs and what must fit to them -> checks."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from pathlib import Path

from tsss_edge.backends.cuda.gpus import driver_problem, driver_version, gpus
from tsss_edge.doctor.checks import Check, output
from tsss_edge.doctor.host import GIB

TENSORRT_RTX_GPUS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
WHEELS_CUDA = 13  # major CUDA version of the tensorrt-rtx and tensorrt wheels that pip takes today


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
            found=f"{gpu.name}, compute capability {gpu.compute_capability}, "
            f"{gpu.free_bytes / GIB:.1f} GiB free of {gpu.total_bytes / GIB:.1f}"
            + ("" if gpu.compute_capability in TENSORRT_RTX_GPUS else "; not served by TensorRT-RTX, use TensorRT"),
        )
        for index, gpu in enumerate(gpus())
    ]


def _nvcc() -> Check:
    text = output("nvcc", "--version")
    found = re.search(r"release ([\d.]+)", text)
    if found:
        return Check(name="nvcc", status="ok", found=f"CUDA {found.group(1)}")
    fix = "install the CUDA toolkit (it compiles the kernels once for this GPU), or bring them along: bundle --kernels"
    return Check(name="nvcc", status="missing", found="no nvcc on PATH", fix=fix)


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
    if "nvh264dec" not in output("gst-inspect-1.0", "nvh264dec"):
        fix = "sudo apt install gstreamer1.0-plugins-bad (files and rtsp:// are decoded on the CPU without it)"
        return [Check(name="NVDEC", status="warning", found=f"{library}, but no GStreamer element nvh264dec", fix=fix)]
    return [Check(name="NVDEC", status="ok", found="nvh264dec")]


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
