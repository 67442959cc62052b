"""Python, processor, instruction sets, memory and disk of this machine -> checks."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

from tsss_edge.doctor.checks import Check
from tsss_edge.machine import memory_bytes, usable_cores

GIB = 1 << 30
LITTLE_MEMORY, LITTLE_DISK = 2 * GIB, 2 * GIB  # training edge-m at 512x512 and the demo's files want about that
ISA_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")


def host_checks(folder: Path) -> list[Check]:
    """Everything that is the same with and without a GPU. `folder`: where disk space is measured."""
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
