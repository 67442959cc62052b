"""One line of doctor's report, and how other programs are asked."""

from __future__ import annotations

import shutil
import subprocess
from typing import Literal

from tsss_edge.artifacts import Struct

Status = Literal["ok", "missing", "warning"]


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
