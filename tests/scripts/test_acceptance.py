"""GPU acceptance without a GPU: the order of steps, what is skipped and why, and that nothing passes by doing nothing.

The commands are stand-ins that answer by their name; everything around them is real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import acceptance
import pytest
from acceptance import run_acceptance, steps
from acceptance.pytorch import compare_devices
from acceptance.steps import Run, junit_counts, run_gpu_tests
from netkit import checkpoint

from tsss_edge.artifacts import Target
from tsss_edge.config import load_target, read_toml
from tsss_edge.doctor import Check, DoctorReport
from tsss_edge.errors import ArtifactError, GateError
from tsss_edge.files import read_json

ADA = "NVIDIA L4, compute capability 8.9, 21.0 GiB free of 22.0"
HOPPER = "NVIDIA H100, compute capability 9.0, 79.0 GiB free of 80.0"
ANSWERS: dict[str, dict[str, Any]] = {
    "parity": {"passed": True, "miou_drop": 0.125, "pixel_agreement": 0.9987},
    "bench": {"latency_ms": {"p50": 0.5, "p95": 0.6}, "throughput_fps": 1900.0},
    "stream": {"frames": 300, "fps": 240.0},
}


def machine(gpu: str = ADA, *packages: str) -> DoctorReport:
    checks = [Check(name="CPU", status="ok", found="a CPU")]
    checks += [Check(name="GPU 0", status="ok", found=gpu)] if gpu else []
    for name in ("TensorRT", "TensorRT-RTX", "PyTorch"):
        checks.append(Check(name=name, status="ok" if name in packages else "missing", found="1.0"))
    return DoctorReport(checks=tuple(checks), can={"train on the GPU": bool(gpu) and "PyTorch" in packages})


class Commands:
    """Stands in for `subprocess.run`: notes every command, writes its JSON, fails those named in `broken`."""

    def __init__(self, *broken: str, gpu_tests: str = 'tests="3" failures="0" errors="0" skipped="1"') -> None:
        self.broken, self.gpu_tests = broken, gpu_tests
        self.seen: list[list[str]] = []

    def __call__(self, command: Sequence[str], **options: Any) -> Any:
        assert command[0] == sys.executable
        self.seen.append(list(command[2:]))
        if "pytest" in command:
            told = next(a.split("=")[1] for a in command if a.startswith("--junitxml="))
            Path(told).write_text(f"<testsuites><testsuite {self.gpu_tests}/></testsuites>")
        if "--json" in command:
            answer = ANSWERS.get(command[3], {"done": command[3]})
            Path(command[command.index("--json") + 1]).write_text(json.dumps(answer))
        failed = any(word in self.broken for word in command)
        return SimpleNamespace(returncode=int(failed), stdout="", stderr="first\nerror: it broke\n" if failed else "")


def accept(
    monkeypatch: pytest.MonkeyPatch, folder: Path, host: DoctorReport, commands: Commands, **options: Any
) -> Any:
    monkeypatch.setattr(acceptance, "examine", lambda where: host)
    monkeypatch.setattr(steps.subprocess, "run", commands)
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests/test_a.py").write_text("@pytest.mark.gpu")
    (folder / "tests/test_b.py").write_text("import what_this_host_lacks  # not '@pytest.mark.gpu'")
    return run_acceptance(folder / "out", tests=folder / "tests", **options)


EVERYTHING = [
    "gpu tests", "make data", "train", "pytorch stream", "pytorch cuda",
    *(f"{flavour} {precision} {what}" for flavour in ("tensorrt", "tensorrt-rtx") for precision in ("fp16", "int8")
      for what in ("build", "parity", "bench", "stream")),
]  # fmt: skip


def test_everything_on_a_machine_that_has_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands()
    report = accept(monkeypatch, tmp_path, machine(ADA, "TensorRT", "TensorRT-RTX", "PyTorch"), commands)
    assert report.passed
    assert [step.name for step in report.steps] == EVERYTHING
    assert {step.status for step in report.steps} == {"passed"}
    assert read_json(tmp_path / "out/gpu_report.json", type(report)) == report
    assert commands.seen[0][-1] == "test_a.py", "only files with GPU tests are collected"
    told = {step.name: step.told() for step in report.steps}
    assert told["gpu tests"] == "passed 2, failed 0, skipped 1"
    assert told["tensorrt int8 bench"] == "throughput_fps 1900, latency_ms p50 0.5"
    page = (tmp_path / "out/gpu_report.md").read_text()
    assert f"- GPU 0: {ADA}" in page and "| tensorrt fp16 parity | passed |" in page
    assert f"{len(EVERYTHING)} passed, 0 failed, 0 skipped" in report.summary()


def test_the_engine_that_was_built_is_the_one_that_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands()
    accept(monkeypatch, tmp_path, machine(ADA, "TensorRT"), commands)
    build = next(c for c in commands.seen if "build-engine" in c)
    target = read_toml(Path(build[build.index("--target") + 1]), Target)
    assert (target.backend, target.name, target.max_drop) == ("tensorrt", "here", acceptance.OWN_DROP)
    parity = next(c for c in commands.seen if "parity" in c)
    assert parity[2] == str(tmp_path / "out/here.fp16.engine")
    assert parity[parity.index("--max-drop") + 1] == "1.0"


def test_a_given_network_keeps_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands()
    given = {"checkpoint": tmp_path / "c.pt", "data": tmp_path / "d"}
    given["checkpoint"].write_bytes(b"one")
    report = accept(monkeypatch, tmp_path, machine(ADA, "TensorRT"), commands, **given)
    assert "train" not in [step.name for step in report.steps]
    parity = next(c for c in commands.seen if "parity" in c)
    assert parity[parity.index("--max-drop") + 1] == str(load_target("datacenter").max_drop)
    with pytest.raises(ValueError, match="belong together"):
        run_acceptance(tmp_path / "other", checkpoint=tmp_path / "c.pt")


def test_what_passed_with_one_network_is_not_said_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine(ADA, "TensorRT")
    given = {"checkpoint": tmp_path / "run", "data": tmp_path / "d"}
    (tmp_path / "run").mkdir()
    with pytest.raises(ArtifactError, match="no such checkpoint"):
        accept(monkeypatch, tmp_path, host, Commands(), **given)
    (tmp_path / "run/best.pt").write_bytes(b"one")
    accept(monkeypatch, tmp_path, host, Commands(), **given)
    (tmp_path / "run/best.pt").write_bytes(b"two")
    commands = Commands()
    for others in (given, {}):
        with pytest.raises(ArtifactError, match=r"gpu_report\.json: of .* on .*; choose another --out"):
            accept(monkeypatch, tmp_path, host, commands, **others)
    assert not commands.seen


def test_what_is_missing_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = accept(monkeypatch, tmp_path, machine(HOPPER, "TensorRT-RTX", "PyTorch"), Commands())
    reasons = {step.name: step.detail for step in report.steps if step.status == "skipped"}
    assert reasons["tensorrt fp16"] == "TensorRT is not installed"
    assert reasons["tensorrt-rtx int8"] == f"TensorRT-RTX does not serve this GPU ({HOPPER})"
    assert report.passed, "kernels, PyTorch and the GPU tests ran: that is what this host can do"


def test_a_machine_without_a_gpu_never_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = accept(monkeypatch, tmp_path, machine("", "TensorRT-RTX", "PyTorch"), Commands())
    assert not report.passed
    skipped = [step for step in report.steps if step.status == "skipped"]
    assert {step.detail for step in skipped} == {"no CUDA GPU on this machine"} and len(skipped) == 6


def test_one_failure_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = accept(monkeypatch, tmp_path, machine(ADA, "TensorRT", "PyTorch"), Commands("bench"))
    failed = [step for step in report.steps if step.status == "failed"]
    assert [step.name for step in failed] == ["tensorrt fp16 bench", "tensorrt int8 bench"]
    assert failed[0].detail == "exit 1: error: it broke"
    assert not report.passed and "tensorrt int8 stream" in [step.name for step in report.steps]
    assert "first" in (tmp_path / "out/logs/07-tensorrt-fp16-bench.log").read_text()


def test_a_build_that_fails_leaves_out_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = accept(monkeypatch, tmp_path, machine(ADA, "TensorRT"), Commands("build-engine"))
    assert [step.name for step in report.steps if step.name.startswith("tensorrt ")] == [
        "tensorrt fp16 build", "tensorrt int8 build",
    ]  # fmt: skip


def test_without_a_network_there_is_nothing_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = accept(monkeypatch, tmp_path, machine(ADA, "TensorRT"), Commands("train"))
    assert [step.name for step in report.steps] == ["gpu tests", "make data", "train"]
    assert not report.passed


def test_gpu_tests_that_all_skip_themselves_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Commands(gpu_tests='tests="4" failures="0" errors="0" skipped="4"')
    report = accept(monkeypatch, tmp_path, machine(ADA, "TensorRT"), idle)
    assert report.steps[0].detail == "every gpu test was skipped" and not report.passed


def test_no_tests_folder_is_no_pass(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run_gpu_tests(run, None)
    assert [step.status for step in run.steps] == ["skipped"]
    assert not acceptance.passed(run.steps, machine(ADA))


def test_a_step_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STEP_LIMIT_S", 0.2)
    run = Run(tmp_path)
    assert not run.command("sleep", [sys.executable, "-c", "import time; time.sleep(30)"])
    assert run.steps[0].detail == "exit -1: took longer than 0.2 s"


def test_the_report_is_whole_after_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the process: here the third command."""

    class Dies(Commands):
        def __call__(self, command: Sequence[str], **options: Any) -> Any:
            if "train" in command:
                raise KeyboardInterrupt
            return super().__call__(command, **options)

    with pytest.raises(KeyboardInterrupt):
        accept(monkeypatch, tmp_path, machine(ADA, "TensorRT", "PyTorch"), Dies())
    told = read_json(tmp_path / "out/gpu_report.json", acceptance.AcceptanceReport)
    assert [step.name for step in told.steps] == ["gpu tests", "make data"]
    assert "| make data | passed |" in (tmp_path / "out/gpu_report.md").read_text()


def test_the_same_command_goes_on_where_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine(ADA, "TensorRT", "PyTorch")
    first = accept(monkeypatch, tmp_path, host, Commands("bench"))
    commands = Commands()
    second = accept(monkeypatch, tmp_path, host, commands)
    assert second.passed and second.started == first.started
    assert [step.name for step in second.steps] == [step.name for step in first.steps]
    assert ["bench" in command for command in commands.seen] == [True, True], "what passed is not run again"
    with pytest.raises(ArtifactError, match="of a machine with NVIDIA L4, this one has NVIDIA H100; choose another"):
        accept(monkeypatch, tmp_path, machine(HOPPER, "PyTorch"), Commands())


def test_a_budget_ends_it_and_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels, loop, PyTorch and the loop with PyTorch come before every TensorRT."""
    assert EVERYTHING.index("pytorch cuda") < EVERYTHING.index("tensorrt fp16 build")
    clock = SimpleNamespace(now=0.0)

    class Slow(Commands):
        def __call__(self, command: Sequence[str], **options: Any) -> Any:
            assert options["timeout"] <= 900 - clock.now
            clock.now += 250
            return super().__call__(command, **options)

    for module in (acceptance, steps):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    report = accept(monkeypatch, tmp_path, machine(ADA, "TensorRT", "PyTorch"), Slow(), budget=900)
    status = {step.name: step.status for step in report.steps}
    assert status == {
        "gpu tests": "passed", "make data": "passed", "train": "passed", "pytorch stream": "passed",
        "pytorch cuda": "left", "tensorrt fp16 build": "left", "tensorrt int8 build": "left",
        "tensorrt-rtx fp16": "skipped", "tensorrt-rtx int8": "skipped",
    }  # fmt: skip
    assert not report.passed and report.verdict().startswith("NOT FINISHED")


def test_a_damaged_report_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu_report.json").write_text("{}")
    monkeypatch.setattr(acceptance, "examine", lambda where: machine(ADA))
    with pytest.raises(ArtifactError, match="gpu_report"):
        run_acceptance(tmp_path)


def test_junit_files_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1"/><testsuite tests="2"/></testsuites>'
    )
    assert junit_counts(path) == {"passed": 4, "failed": 2, "skipped": 1}


def test_pytorch_on_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "c.pt").path
    told = compare_devices(path, "cpu", duration_s=0.05)
    assert told["pixel_agreement"] == 1.0 and told["latency_ms"] > 0
    other = checkpoint(tmp_path / "d.pt", seed=1).path
    from acceptance import pytorch

    real = pytorch.open_backend
    networks = iter([other, path])  # the one on the GPU, the one on the CPU
    monkeypatch.setattr(pytorch, "open_backend", lambda p, device=None: real(next(networks)))
    with pytest.raises(GateError, match="agrees with the CPU on"):
        compare_devices(path, "cpu", duration_s=0.05)


def test_the_script_runs_it(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts/gpu_acceptance.sh"
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [script, "--out", "x"], env={"PYTHON": str(python), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(script.parent),
        "-m",
        "acceptance",
        "--tests",
        str(Path(__file__).parents[1]),
        "--out",
        "x",
    ]
