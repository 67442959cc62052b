"""One command in a process of its own -> one step of a report, with its log on disk."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import msgspec

from tsss_edge.artifacts import Struct
from tsss_edge.files import write_bytes

Status = Literal["passed", "failed", "skipped", "left"]  # left: there was no time
STEP_LIMIT_S = 3600
NO_TIME = "no time was left; the same command goes on here"
LONG_JSON = 4000  # characters; parts of a command's JSON beyond it (pictures, layers) do not belong into a report
GPU_MARK = re.compile(r"^(@|pytestmark\s*=.*)pytest\.mark\.gpu", re.MULTILINE)
SHOWN = ("passed", "failed", "skipped", "miou", "miou_drop", "pixel_agreement", "fps", "throughput_fps", "latency_ms")


class Step(Struct, frozen=True):
    """One step: `numbers` is the JSON of its command, `detail` the reason when it failed or was skipped."""

    name: str
    status: Status
    seconds: float = 0.0
    detail: str = ""
    numbers: dict[str, Any] = msgspec.field(default_factory=dict)

    def told(self) -> str:
        """Why it failed or was skipped, else the few numbers worth a line."""
        return self.detail or ", ".join(_short(name, self.numbers[name]) for name in SHOWN if name in self.numbers)


def _short(name: str, value: Any) -> str:
    if isinstance(value, dict) and "p50" in value:
        name, value = f"{name} p50", value["p50"]
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


@dataclass
class Run:
    """The steps so far, and the folder for logs and results.

    earlier: steps of a run that stopped; those that passed are not run again. deadline: of `time.monotonic()`; what does
    not start or end before it is left. changed: called after each step.
    """

    out: Path
    earlier: dict[str, Step] = field(default_factory=dict)
    deadline: float = math.inf
    changed: Callable[[], None] = lambda: None
    steps: list[Step] = field(default_factory=list)

    def edge(self, name: str, *arguments: str | Path) -> bool:
        """One `tsss-edge` command; its JSON becomes the step's numbers. True when it succeeded."""
        told = self.out / "steps" / f"{len(self.steps):02}.json"
        command = [sys.executable, "-m", "tsss_edge", *map(str, arguments), "--json", str(told)]
        return self.command(name, command, told=told)

    def command(self, name: str, command: Sequence[str], *, told: Path | None = None, cwd: Path | None = None) -> bool:
        """Any command; `told` is the JSON file that it writes. True when it succeeded."""
        if self.has(name):
            return self._add(self.earlier[name])
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            return self._add(Step(name=name, status="left", detail=NO_TIME))
        begin = time.monotonic()
        code, output = self._run(command, cwd, min(STEP_LIMIT_S, left_s))
        write_bytes(self.out / "logs" / f"{len(self.steps):02}-{name.replace(' ', '-')}.log", output.encode())
        step = Step(
            name=name,
            status="failed" if code else "passed",
            seconds=time.monotonic() - begin,
            detail=f"exit {code}: {_last_line(output)}" if code else "",
            numbers=_numbers(told) if told is not None and told.is_file() else {},
        )
        if code and time.monotonic() >= self.deadline:
            step = msgspec.structs.replace(step, status="left", detail=NO_TIME)
        return self._add(step)

    def skip(self, name: str, reason: str) -> None:
        """A step that this machine cannot do."""
        self._add(Step(name=name, status="skipped", detail=reason))

    def has(self, name: str) -> bool:
        """Whether a step passed in the run before."""
        return name in self.earlier and self.earlier[name].status == "passed"

    def replace_last(self, step: Step) -> None:
        """Put what is known now in the place of the last step."""
        self.steps.pop()
        self._add(step)

    def _add(self, step: Step) -> bool:
        self.steps.append(step)
        self.changed()
        return step.status == "passed"

    def _run(self, command: Sequence[str], cwd: Path | None, limit_s: float) -> tuple[int, str]:
        (self.out / "steps").mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=cwd, check=False)
        except subprocess.TimeoutExpired:
            return -1, f"took longer than {limit_s:g} s"
        return done.returncode, done.stdout + done.stderr


def run_gpu_tests(run: Run, tests: Path | None) -> None:
    """The project's `gpu` tests. That every one of them skips itself is a failure: nothing was tested."""
    if tests is None:
        run.skip("gpu tests", "no tests folder was given (--tests)")
        return
    # Only files with GPU tests are collected: the others may import what this host does not have.
    files = sorted(str(p.relative_to(tests)) for p in tests.rglob("test_*.py") if GPU_MARK.search(p.read_text()))
    told = run.out.resolve() / "gpu_tests.xml"
    options = ["-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={told}"]
    kept = run.has("gpu tests")
    run.command("gpu tests", [sys.executable, "-m", "pytest", *options, *files], cwd=tests)
    if kept or not told.is_file():
        return
    step = msgspec.structs.replace(run.steps[-1], numbers=junit_counts(told))
    if step.status == "passed" and not step.numbers["passed"]:
        step = msgspec.structs.replace(step, status="failed", detail="every gpu test was skipped")
    run.replace_last(step)


def junit_counts(path: Path) -> dict[str, int]:
    """passed, failed, skipped of a JUnit XML file."""
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(path).iter("testsuite"):
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    failed = totals["failures"] + totals["errors"]
    return {"passed": totals["tests"] - failed - totals["skipped"], "failed": failed, "skipped": totals["skipped"]}


def _numbers(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return {k: v for k, v in content.items() if not (isinstance(v, (list, dict)) and len(json.dumps(v)) > LONG_JSON)}


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
