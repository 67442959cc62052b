"""Python packages, OpenVINO's devices and what OpenCV was built with -> checks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re

from tsss_edge.backends.base import import_extra
from tsss_edge.doctor.checks import Check
from tsss_edge.errors import UnavailableError

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
        core = import_extra("openvino", "cpu").Core()
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
