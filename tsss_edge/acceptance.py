"""This machine with its GPU -> `gpu_report.json` and a table: does everything that needs CUDA work here, and how fast is it?

Each step is one command in a process of its own, so that a crash of one says so and the others go on. What this machine
cannot do (no TensorRT, a GPU that TensorRT-RTX does not serve) is skipped with the reason, never counted as passed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import msgspec

import tsss_edge
from tsss_edge.artifacts import Struct, write_bytes, write_json
from tsss_edge.config import Target, load_target
from tsss_edge.doctor import TENSORRT_RTX_GPUS, DoctorReport, examine
from tsss_edge.errors import ArtifactError
from tsss_edge.export.kit import toml_text

Status = Literal["passed", "failed", "skipped"]
STEP_LIMIT_S = 3600
PRECISIONS = ("fp16", "int8")


class Step(Struct, frozen=True):
    """One step: `numbers` is the JSON of its command, `detail` the reason when it failed or was skipped."""

    name: str
    status: Status
    seconds: float = 0.0
    detail: str = ""
    numbers: dict[str, Any] = msgspec.field(default_factory=dict)

    def row(self) -> str:
        """One line of the table."""
        return f"  {self.status:<8} {self.name:<34} {self.seconds:7.1f} s  {self.detail or _short(self.numbers)}"


class AcceptanceReport(Struct, frozen=True):
    """All steps on one machine. `passed`: no step failed, and at least one ran on the GPU."""

    passed: bool
    machine: DoctorReport
    host: str
    steps: tuple[Step, ...]
    started: str
    tool: str

    def summary(self) -> str:
        """The table and the verdict."""
        counts = {s: sum(step.status == s for step in self.steps) for s in ("passed", "failed", "skipped")}
        verdict = "PASSED" if self.passed else "FAILED"
        told = ", ".join(f"{n} {s}" for s, n in counts.items())
        return "\n".join([*(step.row() for step in self.steps), f"{verdict}: {told}"])


@dataclass
class _Run:
    """The steps so far, and where things are."""

    out: Path
    steps: list[Step] = field(default_factory=list)

    def edge(self, name: str, *arguments: str | Path) -> bool:
        """One `tsss-edge` command; its JSON becomes the step's numbers."""
        told = self.out / "steps" / f"{len(self.steps):02}.json"
        told.parent.mkdir(exist_ok=True)
        ok = self.command(name, [sys.executable, "-m", "tsss_edge", *map(str, arguments), "--json", str(told)])
        if told.is_file():
            self.steps[-1] = msgspec.structs.replace(self.steps[-1], numbers=_numbers(told))
        return ok

    def command(self, name: str, command: Sequence[str], cwd: Path | None = None) -> bool:
        begin = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_LIMIT_S, cwd=cwd, check=False)
            code, output = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            code, output = -1, f"took longer than {STEP_LIMIT_S} s"
        write_bytes(self.out / "logs" / f"{len(self.steps):02}-{name.replace(' ', '-')}.log", output.encode())
        detail = "" if code == 0 else f"exit {code}: {_last_line(output)}"
        status: Status = "passed" if code == 0 else "failed"
        seconds = time.monotonic() - begin
        self.steps.append(Step(name=name, status=status, seconds=seconds, detail=detail))
        return code == 0

    def skip(self, name: str, reason: str) -> None:
        self.steps.append(Step(name=name, status="skipped", detail=reason))


def run_acceptance(
    out: Path,
    *,
    checkpoint: Path | None = None,
    data: Path | None = None,
    tests: Path | None = None,
    epochs: int = 3,
) -> AcceptanceReport:
    """Run everything and write `gpu_report.json` and logs into the folder `out`.

    Args:    checkpoint, data: a trained network and its labelled set; default: a small one is made here.
             tests: the project's `tests` folder; its `gpu` tests run when it is given.
             epochs: training of the small one.
    Raises:  ArtifactError: `out` holds a report already.
    """
    if (out / "gpu_report.json").exists():
        raise ArtifactError(f"{out / 'gpu_report.json'}: exists already; choose another --out folder")
    out.mkdir(parents=True, exist_ok=True)
    machine = examine(out)
    run = _Run(out)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _gpu_tests(run, tests)
    made = _network(run, checkpoint, data, epochs)
    if made is not None:
        for target, reason in targets(machine):
            _engines(run, target, reason, *made)
    report = AcceptanceReport(
        passed=verdict(run.steps, machine),
        machine=machine,
        host=platform.node() and "host name withheld",
        steps=tuple(run.steps),
        started=started,
        tool=f"tsss-edge {tsss_edge.__version__}",
    )
    write_json(out / "gpu_report.json", report)
    return report


def verdict(steps: Sequence[Step], machine: DoctorReport) -> bool:
    """Nothing failed, and the GPU tests really ran: a machine without a GPU never passes."""
    ran = any(step.name == "gpu tests" and step.status == "passed" for step in steps)
    return ran and gpu_name(machine) != "" and all(step.status != "failed" for step in steps)


def gpu_name(machine: DoctorReport) -> str:
    """What doctor says of the first GPU; empty without one."""
    return next((check.found for check in machine.checks if check.name == "GPU 0"), "")


def targets(machine: DoctorReport) -> list[tuple[Target, str]]:
    """Every TensorRT flavour with the reason why it is skipped here ("" when it is not)."""
    have = {check.name: check.status != "missing" for check in machine.checks}
    gpu = gpu_name(machine)
    no_gpu = "" if gpu else "no CUDA GPU on this machine"
    rtx = no_gpu or ("" if have.get("TensorRT-RTX") else "TensorRT-RTX is not installed")
    if not rtx and not any(f"compute capability {c}," in gpu for c in TENSORRT_RTX_GPUS):
        rtx = f"TensorRT-RTX does not serve this GPU ({gpu})"
    full = no_gpu or ("" if have.get("TensorRT") else "TensorRT is not installed")
    here = msgspec.structs.replace(load_target("datacenter"), name="here", batch=(1, 1, 1))
    return [(here, full), (load_target("rtx"), rtx)]


def _gpu_tests(run: _Run, tests: Path | None) -> None:
    if tests is None:
        run.skip("gpu tests", "no tests folder was given (--tests)")
        return
    told = run.out / "gpu_tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        f"--junitxml={told.resolve()}",
        ".",
    ]
    run.command("gpu tests", command, cwd=tests)
    if told.is_file():
        counts = junit_counts(told)
        step = msgspec.structs.replace(run.steps[-1], numbers=counts)
        if step.status == "passed" and counts["passed"] == 0:
            step = msgspec.structs.replace(step, status="failed", detail="every gpu test was skipped")
        run.steps[-1] = step


def junit_counts(path: Path) -> dict[str, int]:
    """passed, failed, skipped of a JUnit XML file."""
    suites = ElementTree.parse(path).iter("testsuite")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    failed = totals["failures"] + totals["errors"]
    return {"passed": totals["tests"] - failed - totals["skipped"], "failed": failed, "skipped": totals["skipped"]}


def _network(run: _Run, checkpoint: Path | None, data: Path | None, epochs: int) -> tuple[Path, Path] | None:
    """(checkpoint, data): the given ones, or a small network trained here (on the GPU where PyTorch has it)."""
    if checkpoint is not None and data is not None:
        return checkpoint, data
    folder = run.out / "data"
    trained = run.out / "trained"
    options = ("--size", "128", "--epochs", str(epochs))
    made = run.edge("make data", "data", "synth", "--out", folder, "--train", "240", "--val", "60") and run.edge(
        "train", "train", "supervised", "--data", folder, "--out", trained, *options
    )
    return (trained, folder) if made else None


def _engines(run: _Run, target: Target, reason: str, checkpoint: Path, data: Path) -> None:
    """Build, prove, time and stream every precision on one flavour of TensorRT."""
    for precision in PRECISIONS:
        name = f"{target.backend} {precision}"
        if reason:
            run.skip(name, reason)
            continue
        toml = run.out / f"{target.name}.toml"
        toml.write_text(toml_text(target))
        engine = run.out / f"{target.name}.{precision}.engine"
        build = ("build-engine", checkpoint, "--target", toml, "--precision", precision, "--calib-data", data)
        if not run.edge(f"{name} build", *build, "--out", engine):
            continue
        run.edge(f"{name} parity", "parity", engine, "--reference", checkpoint, "--data", data)
        run.edge(f"{name} bench", "bench", engine, "--compare", checkpoint)
        run.edge(f"{name} stream", "stream", engine, "synthetic://", "null://", "--max-frames", "300")


def _numbers(path: Path) -> dict[str, Any]:
    """The command's JSON without the long parts that do not belong into a table."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    return {k: v for k, v in content.items() if not (isinstance(v, (list, dict)) and len(json.dumps(v)) > 4000)}


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _short(numbers: dict[str, Any]) -> str:
    """The few numbers worth a line."""
    wanted = (
        "passed",
        "failed",
        "skipped",
        "miou",
        "miou_drop",
        "pixel_agreement",
        "fps",
        "throughput_fps",
        "latency_ms",
    )
    found = {k: numbers[k] for k in wanted if k in numbers}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())


def main() -> None:
    """`python -m tsss_edge.acceptance --out DIR [--checkpoint CKPT --data DIR] [--tests DIR]`."""
    import argparse

    parser = argparse.ArgumentParser(prog="gpu_acceptance", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_acceptance"))
    for name in ("--checkpoint", "--data", "--tests"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    report = run_acceptance(**vars(parser.parse_args()))
    sys.stdout.write(report.summary() + "\n")
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
