"""This machine with its GPU -> `gpu_report.json` and a table: does everything that needs CUDA work here, and how fast is it?

Each step is one command in a process of its own, so that a crash of one says so and the others go on. What this machine
cannot do (no TensorRT, a GPU that TensorRT-RTX does not serve) is skipped with the reason, never counted as passed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec

import tsss_edge
from acceptance.steps import Run, Step, run_gpu_tests
from tsss_edge.artifacts import Precision, Struct, Target
from tsss_edge.config import load_target
from tsss_edge.deploy.kit import toml_text
from tsss_edge.doctor import DoctorReport, examine
from tsss_edge.errors import ArtifactError
from tsss_edge.files import write_bytes, write_json
from tsss_edge.machine import RTX_CAPABILITIES

__all__ = ["AcceptanceReport", "run_acceptance"]

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
NO_GPU = "no CUDA GPU on this machine"
OWN_DROP = 1.0  # mIoU points for the small network made here: 60 pictures move mIoU by tenths


class AcceptanceReport(Struct, frozen=True):
    """All steps on one machine. `passed`: no step failed, and the GPU tests ran."""

    passed: bool
    machine: DoctorReport
    steps: tuple[Step, ...]
    started: str
    tool: str

    def summary(self) -> str:
        """The table and the verdict, for a terminal."""
        rows = (f"  {s.status:<8} {s.name:<34} {s.seconds:7.1f} s  {s.told()}" for s in self.steps)
        return "\n".join([*rows, self.verdict()])

    def verdict(self) -> str:
        """One line."""
        counts = {s: sum(step.status == s for step in self.steps) for s in ("passed", "failed", "skipped")}
        return f"{'PASSED' if self.passed else 'FAILED'}: {', '.join(f'{n} {s}' for s, n in counts.items())}"

    def markdown(self) -> str:
        """The same as a page."""
        named = ("GPU 0", "CUDA driver", "CPU", "TensorRT", "TensorRT-RTX", "PyTorch", "PyCUDA")
        found = {check.name: check.found for check in self.machine.checks}
        machine = [f"- {name}: {found[name]}" for name in named if name in found]
        rows = [f"| {s.name} | {s.status} | {s.seconds:.1f} | {s.told()} |" for s in self.steps]
        table = ["| step | result | seconds | numbers |", "|---|---|---|---|", *rows]
        head = ["# GPU acceptance", "", f"{self.verdict()}. {self.started}, {self.tool}.", ""]
        return "\n".join([*head, *machine, "", *table, ""])


def run_acceptance(
    out: Path,
    *,
    checkpoint: Path | None = None,
    data: Path | None = None,
    tests: Path | None = None,
    epochs: int = 10,
) -> AcceptanceReport:
    """Run everything and write `gpu_report.json`, `gpu_report.md` and logs into the folder `out`.

    Args:    checkpoint, data: a trained network and its labelled set; default: a small one is made here.
             tests: the project's `tests` folder; its `gpu` tests run when it is given.
             epochs: training of the small one.
    Raises:  ArtifactError: `out` holds a report already. ValueError: only one of `checkpoint` and `data`.
    """
    if (checkpoint is None) != (data is None):
        raise ValueError("--checkpoint and --data belong together")
    if (out / "gpu_report.json").exists():
        raise ArtifactError(f"{out / 'gpu_report.json'}: exists already; choose another --out folder")
    out.mkdir(parents=True, exist_ok=True)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine, run = examine(out), Run(out)
    run_gpu_tests(run, tests)
    made = (checkpoint, data) if checkpoint and data else _network(run, epochs)
    if made is not None:
        _pytorch(run, machine, made[0])
        for target, reason in targets(machine):
            drop = target.max_drop if checkpoint else OWN_DROP
            _engines(run, msgspec.structs.replace(target, max_drop=drop), reason, *made)
    report = AcceptanceReport(
        passed=passed(run.steps, machine),
        machine=machine,
        steps=tuple(run.steps),
        started=started,
        tool=f"tsss-edge {tsss_edge.__version__}",
    )
    write_bytes(out / "gpu_report.md", report.markdown().encode())
    write_json(out / "gpu_report.json", report)
    return report


def passed(steps: Sequence[Step], machine: DoctorReport) -> bool:
    """Nothing failed, and the GPU tests really ran: a machine without a GPU never passes."""
    ran = any(step.name == "gpu tests" and step.status == "passed" for step in steps)
    return ran and gpu_name(machine) != "" and all(step.status != "failed" for step in steps)


def gpu_name(machine: DoctorReport) -> str:
    """What doctor says of the first GPU; empty without one."""
    return next((check.found for check in machine.checks if check.name == "GPU 0"), "")


def targets(machine: DoctorReport) -> list[tuple[Target, str]]:
    """Every TensorRT flavour with the reason why it is skipped here ("" when it is not)."""
    have = {check.name for check in machine.checks if check.status != "missing"}
    gpu = gpu_name(machine)
    full, rtx = (
        "" if gpu and name in have else NO_GPU if not gpu else f"{name} is not installed"
        for name in ("TensorRT", "TensorRT-RTX")
    )
    if not rtx and not any(f"compute capability {c}," in gpu for c in RTX_CAPABILITIES):
        rtx = f"TensorRT-RTX does not serve this GPU ({gpu})"
    here = msgspec.structs.replace(load_target("datacenter"), name="here")
    return [(here, full), (load_target("rtx"), rtx)]


def _network(run: Run, epochs: int) -> tuple[Path, Path] | None:
    """(checkpoint, data): a small network trained here, on the GPU where PyTorch has it; None when that fails."""
    data, trained = run.out / "data", run.out / "trained"
    options = ("--size", "128", "--epochs", str(epochs))
    made = run.edge("make data", "data", "synth", "--out", data, "--train", "240", "--val", "60") and run.edge(
        "train", "train", "supervised", "--data", data, "--out", trained, *options
    )
    return (trained, data) if made else None


def _pytorch(run: Run, machine: DoctorReport, checkpoint: Path) -> None:
    """The PyTorch back end on the GPU against the CPU."""
    if not gpu_name(machine):
        run.skip("pytorch cuda", NO_GPU)
    elif not machine.can["train on the GPU"]:
        run.skip("pytorch cuda", "PyTorch is not installed, or without CUDA")
    else:
        told = run.out / "steps" / "pytorch-cuda.json"
        command = [sys.executable, "-m", "acceptance.pytorch", str(checkpoint), str(told)]
        run.command("pytorch cuda", command, told=told)


def _engines(run: Run, target: Target, reason: str, checkpoint: Path, data: Path) -> None:
    """Build, prove, time and stream every precision on one flavour of TensorRT."""
    toml = run.out / f"{target.name}.toml"
    toml.write_text(toml_text(target))
    for precision in PRECISIONS:
        name = f"{target.backend} {precision}"
        if reason:
            run.skip(name, reason)
            continue
        build = ("build-engine", checkpoint, "--target", toml, "--precision", precision, "--calib-data", data)
        if not run.edge(f"{name} build", *build, "--out", run.out / f"{target.name}.engine"):
            continue
        engine = run.out / f"{target.name}.{precision}.engine"
        proof = ("--reference", checkpoint, "--data", data, "--max-drop", str(target.max_drop))
        run.edge(f"{name} parity", "parity", engine, *proof)
        run.edge(f"{name} bench", "bench", engine, "--compare", checkpoint)
        run.edge(f"{name} stream", "stream", engine, "synthetic://", "null://", "--max-frames", "300", "--force")
