"""This machine -> what it can do, what is missing, and the command that fixes it."""

from __future__ import annotations

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
from tsss_edge.backends.cuda_info import driver_problem, gpus
from tsss_edge.errors import UnavailableError

Status = Literal["ok", "missing", "warning"]
GIB = 1 << 30
LITTLE_MEMORY, LITTLE_DISK = 2 * GIB, 2 * GIB  # training edge-m at 512x512 and the demo's files want about that
ISA_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")
TENSORRT_RTX_GPUS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
WHEELS_CUDA = 13  # major CUDA version of the tensorrt-rtx and tensorrt wheels that pip takes today


class Check(Struct, frozen=True):
    """One line of the report. `fix` is a command, or a sentence where no command helps."""

    name: str
    status: Status
    found: str
    fix: str = ""


class DoctorReport(Struct, frozen=True):
    """All checks, and what follows from them."""

    checks: tuple[Check, ...]
    can: dict[str, bool]

    def summary(self) -> str:
        """A table, the fixes, and what this machine can do."""
        width = max(len(check.name) for check in self.checks)
        lines = [f"{check.status:<8} {check.name:<{width}}  {check.found}" for check in self.checks]
        fixes = [f"  {check.name}: {check.fix}" for check in self.checks if check.status != "ok" and check.fix]
        able = [f"  {'yes' if possible else 'no ':<3} {what}" for what, possible in self.can.items()]
        parts = [*lines, "", "This machine can:", *able]
        return "\n".join([*parts, "", "To get what is missing:", *fixes] if fixes else parts)


def examine(folder: Path | None = None) -> DoctorReport:
    """Look at everything. `folder` is where disk space is measured (default: the current folder)."""
    checks = (
        *_machine(folder or Path.cwd()),
        *(_package(*row) for row in PACKAGES),
        *_openvino_devices(),
        *_cuda(),
        *_opencv(),
        *_jetson(),
    )
    return DoctorReport(checks=checks, can=_abilities({c.name: c for c in checks}))


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


def _package(name: str, module: str, distributions: tuple[str, ...], fix: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name=name, status="missing", found=f"no Python module {module}", fix=fix)
    for distribution in distributions:
        try:
            return Check(name=name, status="ok", found=importlib.metadata.version(distribution))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check(name=name, status="ok", found="installed by the system, version not told")


def _machine(folder: Path) -> list[Check]:
    total, available = memory_bytes()
    disk = shutil.disk_usage(folder).free
    flags = isa_flags()
    return [
        Check(name="Python", status="ok", found=f"{platform.python_version()} at {sys.executable}"),
        Check(name="system", status="ok", found=f"{platform.system()} {platform.release()} {platform.machine()}"),
        Check(name="CPU", status="ok", found=f"{cpu_name()}, {usable_cores()} cores for this process"),
        _isa(flags),
        _amount("memory", available, LITTLE_MEMORY, f"{available / GIB:.1f} GiB free of {total / GIB:.1f}"),
        _amount("disk", disk, LITTLE_DISK, f"{disk / GIB:.1f} GiB free at {folder}"),
    ]


def _isa(flags: tuple[str, ...]) -> Check:
    found = ", ".join(flags) or "none of " + ", ".join(ISA_FLAGS)
    if any("vnni" in flag or flag in ("amx_int8", "asimddp") for flag in flags):
        return Check(name="CPU instructions", status="ok", found=found)
    fix = "INT8 works without VNNI, AMX or dot products, but slower and with saturation on old CPUs: trust the gate"
    return Check(name="CPU instructions", status="warning", found=found, fix=fix)


def _amount(name: str, free: int, little: int, found: str) -> Check:
    fix = "" if free >= little else f"free some: {little // GIB} GiB are wanted for training and the demo"
    return Check(name=name, status="ok" if free >= little else "warning", found=found, fix=fix)


def cpu_name() -> str:
    """The CPU's marketing name, as /proc/cpuinfo tells it."""
    return _cpuinfo("model name") or _cpuinfo("Model") or platform.processor() or platform.machine()


def isa_flags() -> tuple[str, ...]:
    """The instruction sets that matter for inference, of those this CPU has."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(flag for flag in (*ISA_FLAGS, *ARM_FLAGS) if flag in flags)


def _cpuinfo(key: str, path: Path = Path("/proc/cpuinfo")) -> str:
    text = path.read_text() if path.is_file() else ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def usable_cores() -> int:
    """Cores this process may run on (a container or taskset may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(path: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """(total, available) bytes; zeros where the system does not tell."""
    text = path.read_text() if path.is_file() else ""
    values = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return values.get("MemTotal", 0), values.get("MemAvailable", 0)


def _openvino_devices() -> list[Check]:
    if importlib.util.find_spec("openvino") is None:
        return []
    from tsss_edge.backends.common import import_extra

    try:
        core = import_extra("openvino", "cpu").Core()
    except (UnavailableError, RuntimeError) as error:
        return [Check(name="OpenVINO devices", status="missing", found=str(error), fix="pip install -U openvino")]
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if "CPU" in core.available_devices else []
    found = f"{', '.join(core.available_devices)}; CPU runs {', '.join(sorted(set(capabilities)))}"
    return [Check(name="OpenVINO devices", status="ok", found=found)]


def _cuda() -> list[Check]:
    return [_driver(), *_gpu_checks(), _nvcc()]


def _driver() -> Check:
    problem = driver_problem()
    if problem:
        fix = "install NVIDIA's driver (a GPU is only needed for training at scale and for TensorRT engines)"
        return Check(name="CUDA driver", status="missing", found=problem, fix=fix)
    version = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
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
    text = _output("nvcc", "--version")
    found = re.search(r"release ([\d.]+)", text)
    if found:
        return Check(name="nvcc", status="ok", found=f"CUDA {found.group(1)}")
    fix = "install the CUDA toolkit, or use the prebuilt kernels' CPU twins"
    return Check(name="nvcc", status="missing", found="no nvcc on PATH", fix=fix)


def _opencv() -> list[Check]:
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


def _jetson(release: Path = Path("/etc/nv_tegra_release")) -> list[Check]:
    """Only on a Jetson: L4T version, DLA cores, the hardware decoder."""
    if not release.is_file():
        return []
    line = release.read_text().splitlines()[0]
    dla = sorted(p.name for p in Path("/dev").glob("nvhost-ctrl-nvdla*"))
    decoder = "nvv4l2decoder" in _output("gst-inspect-1.0", "nvv4l2decoder")
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


def _abilities(checks: dict[str, Check]) -> dict[str, bool]:
    def ok(*names: str) -> bool:
        return all(name in checks and checks[name].status != "missing" for name in names)

    gpu = ok("CUDA driver")
    return {
        "train (PyTorch)": ok("PyTorch"),
        "train on the GPU": ok("PyTorch") and gpu and "+cpu" not in checks["PyTorch"].found,
        "export and calibrate (ONNX)": ok("PyTorch", "ONNX", "ONNX Runtime"),
        "build and run CPU engines (OpenVINO)": ok("OpenVINO"),
        "build TensorRT-RTX engines": ok("TensorRT-RTX"),
        "build TensorRT engines": ok("TensorRT") and gpu,
        "run engines on the GPU": gpu and ok("PyCUDA") and (ok("TensorRT") or ok("TensorRT-RTX")),
        "show a window": ok("display"),
        "serve the web page": ok("web page"),
    }


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


def _first_line(*command: str) -> str:
    return next(iter(_output(*command).splitlines()), "").strip()
