"""This machine with its GPU -> `gpu_report.json` and a table: does everything that needs CUDA work here, and how fast is it?

Each step is one command in a process of its own, so that a crash of one says so and the others go on. What this machine
cannot do (no TensorRT, a GPU that TensorRT-RTX does not serve) is skipped with the reason, never counted as passed.

The cheap and telling steps come first, the report is written after each, and the same command goes on where one stopped: a
visit of 15 minutes is enough for kernels, loop, PyTorch and the loop with PyTorch as its engine.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
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
from tsss_edge.files import read_json, sha256_file, write_bytes, write_json
from tsss_edge.machine import RTX_CAPABILITIES

__all__ = ["AcceptanceReport", "run_acceptance"]

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
NO_GPU = "no CUDA GPU on this machine"
OWN_DROP = 1.0  # mIoU points for the small network made here: 60 pictures move mIoU by tenths


class AcceptanceReport(Struct, frozen=True):
    """All steps on one machine. `passed`: no step failed or was left for lack of time, and the GPU tests ran.

    network: SHA-256 of the given checkpoint and where its set lies; "": the small network made here.
    """

    passed: bool
    network: str
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
        counts = {s: sum(step.status == s for step in self.steps) for s in ("passed", "failed", "skipped", "left")}
        left = "" if counts["failed"] or not counts["left"] else "NOT FINISHED"
        return f"{'PASSED' if self.passed else left or 'FAILED'}: {', '.join(f'{n} {s}' for s, n in counts.items())}"

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
    budget: float | None = None,
) -> AcceptanceReport:
    """Run everything; `gpu_report.json`, `gpu_report.md` and logs in the folder `out` are whole after each step.

    Args:    out: with the report of a run that stopped, what passed there is kept and the rest is run.
             checkpoint, data: a trained network and its labelled set; default: a small one is made here.
             tests: the project's `tests` folder; its `gpu` tests run when it is given.
             epochs: training of the small one. budget: seconds after which nothing starts and what runs is stopped.
    Raises:  ArtifactError: the report in `out` is of another machine or network, or damaged; no such checkpoint.
             ValueError: only one of `checkpoint` and `data`.
    """
    if (checkpoint is None) != (data is None):
        raise ValueError("--checkpoint and --data belong together")
    deadline = math.inf if budget is None else time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    machine = examine(out)
    network = network_of(checkpoint, data)
    before = _before(out, machine, network)
    started = before.started if before else datetime.now(timezone.utc).isoformat(timespec="seconds")
    run = Run(out, {step.name: step for step in before.steps} if before else {}, deadline)
    run.changed = lambda: _write(out, report(run, machine, network, started))
    run_gpu_tests(run, tests)
    made = (checkpoint, data) if checkpoint and data else _network(run, epochs)
    if made is not None:
        _pytorch(run, machine, made[0])
        for target, reason in targets(machine):
            drop = target.max_drop if checkpoint else OWN_DROP
            _engines(run, msgspec.structs.replace(target, max_drop=drop), reason, *made)
    return report(run, machine, network, started)


def network_of(checkpoint: Path | None, data: Path | None) -> str:
    """What tells a given network and its set from others; "" without one. Raises: ArtifactError: no such file."""
    if checkpoint is None or data is None:
        return ""
    path = checkpoint / "best.pt" if checkpoint.is_dir() else checkpoint
    if not path.is_file():
        raise ArtifactError(f"{path}: no such checkpoint; give a run folder or a best.pt")
    return f"{sha256_file(path)} on {data.resolve()}"


def report(run: Run, machine: DoctorReport, network: str, started: str) -> AcceptanceReport:
    """What is known so far."""
    return AcceptanceReport(
        passed=passed(run.steps, machine),
        network=network,
        machine=machine,
        steps=tuple(run.steps),
        started=started,
        tool=f"tsss-edge {tsss_edge.__version__}",
    )


def _before(out: Path, machine: DoctorReport, network: str) -> AcceptanceReport | None:
    """The report of a run that stopped. Raises: ArtifactError: of another machine or network, or damaged."""
    path = out / "gpu_report.json"
    if not path.exists():
        return None
    before = read_json(path, AcceptanceReport)
    theirs, ours = gpu_name(before.machine).partition(", ")[0], gpu_name(machine).partition(", ")[0]
    if theirs != ours:
        raise ArtifactError(
            f"{path}: of a machine with {theirs or 'no GPU'}, this one has {ours or 'none'}; choose another --out"
        )
    if before.network != network:
        raise ArtifactError(
            f"{path}: of {before.network or 'the small network made here'}, asked for is {network or 'that one'}; "
            "choose another --out"
        )
    return before


def _write(out: Path, told: AcceptanceReport) -> None:
    write_bytes(out / "gpu_report.md", told.markdown().encode())
    write_json(out / "gpu_report.json", told)


def passed(steps: Sequence[Step], machine: DoctorReport) -> bool:
    """Nothing failed, and the GPU tests really ran: a machine without a GPU never passes."""
    ran = any(step.name == "gpu tests" and step.status == "passed" for step in steps)
    return ran and gpu_name(machine) != "" and all(step.status not in ("failed", "left") for step in steps)


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
    options = ["--size", "128", "--epochs", str(epochs)]
    if not run.has("make data"):
        shutil.rmtree(data, ignore_errors=True)  # of a run that stopped in the middle of it
    if (trained / "last.pt").exists():
        options.append("--resume")
    made = run.edge("make data", "data", "synth", "--out", data, "--train", "240", "--val", "60") and run.edge(
        "train", "train", "supervised", "--data", data, "--out", trained, *options
    )
    return (trained, data) if made else None


def _pytorch(run: Run, machine: DoctorReport, checkpoint: Path) -> None:
    """The PyTorch back end on the GPU against the CPU, and as the engine of the CUDA loop."""
    reason = "" if machine.can["train on the GPU"] else "PyTorch is not installed, or without CUDA"
    if reason := reason if gpu_name(machine) else NO_GPU:
        run.skip("pytorch cuda", reason)
        run.skip("pytorch stream", reason)
    else:
        run.edge("pytorch stream", "stream", checkpoint, "synthetic://", "null://", "--max-frames", "300")
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
