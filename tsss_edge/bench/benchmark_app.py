"""OpenVINO's own `benchmark_app` on one of our engines, as the yardstick for our latency."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tsss_edge.artifacts import EngineRecord

_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


def find_benchmark_app() -> str | None:
    """Its path: beside this Python, else on PATH; None when it is not installed."""
    beside = Path(sys.executable).with_name("benchmark_app")
    return str(beside) if beside.is_file() else shutil.which("benchmark_app")


def command(tool: str, engine: Path, record: EngineRecord, *, duration_s: float, threads: int | None) -> list[str]:
    """The command that measures what `bench` measures: one synchronous request, latency hint, the same precision."""
    args = [tool, "-m", str(engine), "-d", "CPU", "-api", "sync", "-hint", "latency"]
    args += ["-nireq", "1", "-t", str(max(1, round(duration_s)))]
    if record.precision in _HINTS:
        args += ["-infer_precision", _HINTS[record.precision]]
    return args + (["-nthreads", str(threads)] if threads else [])


def run_benchmark_app(args: list[str]) -> dict[str, float] | None:
    """Run it -> {"median", "average", "min", "max"} in ms and "count"; None when it failed (the caller says so)."""
    result = subprocess.run(args, capture_output=True, text=True)
    return parse(result.stdout) if result.returncode == 0 else None


def parse(text: str) -> dict[str, float] | None:
    """Its closing lines -> numbers; None when they are not there."""
    found = {k.lower(): float(v) for k, v in re.findall(r"(Median|Average|Min|Max):\s+([\d.]+) ms", text)}
    count = re.search(r"Count:\s+(\d+) iterations", text)
    if count is None or "median" not in found:
        return None
    return {**found, "count": float(count.group(1))}
