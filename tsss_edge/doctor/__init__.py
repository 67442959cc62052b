"""This machine -> what it can do, what is missing, and the command that fixes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tsss_edge.artifacts import Struct
from tsss_edge.doctor.checks import (
    Check,
    cuda_checks,
    host_checks,
    opencv_checks,
    openvino_checks,
    package_checks,
    video_checks,
)

__all__ = ["Check", "DoctorReport", "examine"]


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
    looks: dict[str, Callable[[], list[Check]]] = {
        "host": lambda: host_checks(folder or Path.cwd()),
        "packages": package_checks,
        "OpenVINO devices": openvino_checks,
        "CUDA": cuda_checks,
        "OpenCV": opencv_checks,
        "video": video_checks,
    }
    checks = tuple(check for name, look in looks.items() for check in looked(name, look))
    return DoctorReport(checks=checks, can=_abilities({c.name: c for c in checks}))


def looked(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """What a look finds; one that fails is a finding too.

    A doctor is called where something is broken: an OpenCV that does not load beside this NumPy must not end it.
    """
    try:
        return look()
    except Exception as error:  # whatever a broken library raises
        told = (
            f"cannot be examined ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
        )
        return [Check(name=name, status="missing", found=told, fix=f"install what {name} needs again")]


def _abilities(checks: dict[str, Check]) -> dict[str, bool]:
    def ok(*names: str) -> bool:
        return all(name in checks and checks[name].status != "missing" for name in names)

    gpu = ok("CUDA driver")
    return {
        "train (PyTorch)": ok("PyTorch"),
        "train on the GPU": ok("PyTorch") and gpu and "+cpu" not in checks["PyTorch"].found,
        "export a checkpoint (PyTorch, ONNX)": ok("PyTorch", "ONNX", "ONNX Runtime"),
        "import and calibrate ONNX files": ok("ONNX", "ONNX Runtime"),
        "build and run CPU engines (OpenVINO)": ok("OpenVINO"),
        "build TensorRT-RTX engines": ok("TensorRT-RTX"),
        "build TensorRT engines": ok("TensorRT") and gpu,
        "run engines on the GPU": gpu and (ok("TensorRT") or ok("TensorRT-RTX")),
        "stream on the GPU without copies (kernels)": gpu and ok("PyCUDA"),
        "segment on a Ray cluster": ok("Ray"),
        "show a window": ok("display"),
        "serve the web page": ok("web page"),
    }
