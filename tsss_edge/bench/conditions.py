"""What a reader of a benchmark must know about the machine: processor, clocks, governor, load."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tsss_edge.artifacts import Struct
from tsss_edge.bench.power import read_power
from tsss_edge.machine import CPUINFO, cpu_flags, cpu_name, usable_cores

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# The instruction sets that decide what INT8 and bf16 gain.
MATRIX_UNITS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
BUSY = 0.5  # load a core before the run from which on times are called noisy
DRIFT = 0.05  # relative change of the clock that is worth a note


class Machine(Struct, frozen=True):
    """State of the machine around the measurement. None where it does not tell."""

    cpu: str
    cores: int  # that this process may use
    threads: int | None  # asked for; None: the back end's choice
    governor: str | None
    mhz_before: float | None  # mean over cores
    mhz_after: float | None
    load_before: float | None  # one-minute load average
    gpu: str | None = None
    units: tuple[str, ...] = ()  # vector and matrix instructions: INT8 gains 4x over FP32 by VNNI, 16x by AMX
    power: str = ""  # of a Jetson: power mode and GPU clock

    def summary(self) -> str:
        """One line."""
        clock = f", {self.mhz_after:.0f} MHz" if self.mhz_after else ""
        units = f", {' '.join(self.units)}" if self.units else ""
        gpu = f", {self.gpu}" if self.gpu else ""
        power = f", {self.power}" if self.power else ""
        return f"{self.cpu}, {self.cores} cores{clock}, governor {self.governor or 'unknown'}{units}{gpu}{power}"


def read_mhz() -> float | None:
    """Mean clock over all cores now, None where the kernel does not tell (ARM, macOS)."""
    if not CPUINFO.is_file():
        return None
    values = [float(v) for v in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", CPUINFO.read_text(), flags=re.MULTILINE)]
    return sum(values) / len(values) if values else None


def read_load() -> float | None:
    """One-minute load average, None where there is none (Windows)."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def examine_machine(
    *, threads: int | None, mhz_before: float | None, load_before: float | None, gpu: bool = False
) -> Machine:
    """The machine's state after a run, with what was read before it."""
    return Machine(
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=threads,
        governor=GOVERNOR.read_text().strip() if GOVERNOR.is_file() else None,
        mhz_before=mhz_before,
        mhz_after=read_mhz(),
        load_before=load_before,
        gpu=_gpu_state() if gpu else None,
        units=cpu_flags(MATRIX_UNITS),
        power=read_power().summary(),
    )


def notes_on(machine: Machine) -> list[str]:
    """Reasons to mistrust the times, in words."""
    notes = []
    if machine.load_before is not None and machine.load_before > BUSY * machine.cores:
        notes.append(
            f"load average {machine.load_before:.1f} on {machine.cores} cores before the run: "
            "times are noisy, ratios of alternating rounds hold better"
        )
    if machine.governor not in (None, "performance"):
        notes.append(f"CPU governor is {machine.governor}; `performance` gives steadier times")
    if machine.mhz_before and machine.mhz_after and abs(machine.mhz_after / machine.mhz_before - 1) > DRIFT:
        notes.append(f"the clock drifted from {machine.mhz_before:.0f} to {machine.mhz_after:.0f} MHz during the run")
    return notes


def _gpu_state() -> str | None:
    """Name, clock now and highest, temperature and power as `nvidia-smi` tells them, None without it."""
    if not (tool := shutil.which("nvidia-smi")):
        return None
    query = "--query-gpu=name,clocks.sm,clocks.max.sm,temperature.gpu,power.draw"
    result = subprocess.run([tool, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 and result.stdout else None
