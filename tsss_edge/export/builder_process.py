"""A build job -> TensorRT's builder in a process of its own, whose crash is a result like any other."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from tsss_edge.export.tensorrt_worker import Job, Result
from tsss_edge.files import read_json
from tsss_edge.machine import spinner


def run_worker(job: Job) -> Result:
    """Run the builder in a child process; its crash or death comes back as a result with an error."""
    command = [sys.executable, "-m", "tsss_edge.export.tensorrt_worker"]
    with spinner(f"TensorRT builds {Path(job.plan).name}"):
        done = subprocess.run(command, input=msgspec.json.encode(job), capture_output=True, check=False)
    result = Path(job.result)
    if done.returncode or not result.is_file():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        died = f"TensorRT's builder {_died(done.returncode)}: {lines[-1] if lines else 'no message'}"
        return Result(error=died, retryable=done.returncode < 0)
    try:
        return read_json(result, Result)
    finally:
        result.unlink()


def _died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (out of memory? lower workspace_mib in the target)"
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"stopped with exit code {code}"
