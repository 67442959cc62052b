"""Power mode, GPU clock and throttling of a Jetson, from nvpmodel and sysfs: its figures mean nothing without them.

A Jetson runs the same network at half the speed in another power mode (`nvpmodel`), and `jetson_clocks` decides whether its
clocks rise at once. So the mode stands in the record beside the latency, and figures of two modes are not compared.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tsss_edge.artifacts import LatencyRecord, Struct
from tsss_edge.errors import UnavailableError

SYSFS = Path("/sys/class")


class Power(Struct, frozen=True):
    """Empty or None where the machine does not tell (anything but a Jetson)."""

    mode: str = ""  # of nvpmodel, such as "MAXN" or "15W"
    gpu_mhz: float | None = None  # now
    gpu_max_mhz: float | None = None  # that the mode allows
    throttled: tuple[str, ...] = ()  # cooling devices that hold a clock down now

    def summary(self) -> str:
        """`power mode 15W, GPU at 306 of 625 MHz`; empty where nothing is known."""
        clock = f"GPU at {self.gpu_mhz:.0f} of {self.gpu_max_mhz:.0f} MHz" if self.gpu_mhz and self.gpu_max_mhz else ""
        return ", ".join(filter(None, [f"power mode {self.mode}" if self.mode else "", clock]))

    def notes(self, before: Power) -> list[str]:
        """Reasons to mistrust times measured between `before` and this."""
        found = []
        if self.mode != before.mode:
            found.append(f"the power mode changed from {before.mode} to {self.mode} during the run: measure again")
        if self.throttled or before.throttled:
            names = ", ".join(sorted({*before.throttled, *self.throttled}))
            found.append(f"throttled by {names}: the machine is too hot or draws too much for its power mode")
        return found

    def require_same_mode(self, before: Power) -> None:
        """Raise UnavailableError when the mode changed since `before`: times of two modes are not compared."""
        if self.mode != before.mode:
            raise UnavailableError(
                f"the power mode changed from {before.mode} to {self.mode} while networks were timed side by side; times of two "
                "modes are not compared. Set one (`sudo nvpmodel -m N`) and run again"
            )


def read_power(sysfs: Path | None = None) -> Power:
    """The state now. `sysfs`: where the kernel tells it (default: SYSFS)."""
    sysfs = sysfs or SYSFS
    clocks = [path for path in sorted((sysfs / "devfreq").glob("*")) if re.search(r"gpu|gv11b|ga10b", path.name)]
    now, most = (_mhz(clocks[0] / name) if clocks else None for name in ("cur_freq", "max_freq"))
    return Power(mode=_mode(), gpu_mhz=now, gpu_max_mhz=most, throttled=_throttled(sysfs))


def note_on_record(record: LatencyRecord | None, now: Power) -> list[str]:
    """Why a record's time does not stand beside one measured now, if it does not."""
    if record is None or record.power_mode == now.mode:
        return []
    return [
        f"the record's {record.p50_ms:.2f} ms is of power mode {record.power_mode or 'unknown'}, this run of "
        f"{now.mode or 'unknown'}: not compared"
    ]


def _mode() -> str:
    if not (tool := shutil.which("nvpmodel")):
        return ""
    done = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return found[1].removeprefix("MODE_") if found else ""


def _mhz(path: Path) -> float | None:
    return int(path.read_text()) / 1e6 if path.is_file() else None


def _throttled(sysfs: Path) -> tuple[str, ...]:
    """Cooling devices of clocks whose state is above 0. Fans and alerts do not count."""
    names = []
    for folder in sorted((sysfs / "thermal").glob("cooling_device*")):
        kind, state = folder / "type", folder / "cur_state"
        if kind.is_file() and state.is_file() and "freq" in kind.read_text() and int(state.read_text()) > 0:
            names.append(kind.read_text().strip())
    return tuple(names)
