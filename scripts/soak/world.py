"""A small world for the rehearsals: a set, a run, graphs, engines and a video, each by our own command, in a child process.

A child is forked from this process, which has imported the heavy modules and started no thread, so that a command costs what it does
and not two seconds of imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPORTED = ("torch", "onnx", "onnxruntime", "openvino", "cv2", "av", "scipy.sparse", "PIL.Image", "tsss_edge.cli")
MODULES = (
    *IMPORTED,
    "tsss_edge.train.loop",
    "tsss_edge.export.build",
    "tsss_edge.stream.live_loop",
    "tsss_edge.parity",
)
VOLATILE = ("created", "seconds", "images_per_s", "p50_ms", "versions")


def import_heavy() -> None:
    """Once, before the first child."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", NUMBA_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    for name in MODULES:
        __import__(name)


def told(report: dict[str, Any], passed: bool) -> int:
    """Print a report as JSON. Returns the exit code."""
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if passed else 1


@dataclass
class Child:
    """A command in a process group of its own; what it says goes to `log`."""

    pid: int
    started: float

    def wait(self, seconds: float) -> int | None:
        """Exit code (negative: the signal) when it ends within `seconds`, else None."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= until:
                return None
            time.sleep(0.002)

    def kill(self) -> int | None:
        """SIGKILL to it and all that it started; its exit code."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet, or has ended
            os.kill(self.pid, signal.SIGKILL)
        return self.wait(10.0)


def start(args: Sequence[str], log: Path, *, before: Callable[[], None] | None = None) -> Child:
    """Run `tsss-edge ARGS` in a child. `before` runs in it first."""
    pid = os.fork()
    if pid:
        return Child(pid, time.monotonic())
    code = 99
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if before is not None:
            before()
        sys.argv = ["tsss-edge", *args]
        from tsss_edge.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(args: Sequence[str], log: Path) -> float:
    """Run to the end -> seconds. Raises: RuntimeError: it failed, with what it said."""
    child = start(args, log)
    code = child.wait(300.0)
    if code != 0:
        raise RuntimeError(f"tsss-edge {' '.join(args)}: exit {code}: {log.read_text()[-500:]}")
    return time.monotonic() - child.started


@dataclass(frozen=True)
class Job:
    """A command whose result can be compared. `again` goes on after a kill (default: the same command)."""

    name: str
    args: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]] | None = None


def make_world(root: Path) -> Path:
    """data/, run/, net.onnx, net.int8.onnx, net.int8.xml, clip.mp4."""
    root.mkdir(parents=True)
    log = root / "log.txt"
    data = str(root / "data")
    run(["data", "synth", "--out", data, "--train", "16", "--val", "4", "--size", "64"], log)
    run(training(root, root / "run"), log)
    for job in (export(root), calibrate(root), build(root)):
        run(job.args(root), log)
    run(["stream", str(root / "net.int8.xml"), SOURCE, str(root / "clip.mp4"), "--max-frames", "40"], log)
    return root


SOURCE = "synthetic://?size=64x64&frames=40"


def training(world: Path, out: Path) -> list[str]:
    settings = ["--size", "64", "--epochs", "2", "--batch", "8", "--set", "threads=1", "--set", "device=cpu"]
    return ["train", "supervised", "--data", str(world / "data"), *settings, "--out", str(out)]


def export(world: Path) -> Job:
    return Job("export", lambda out: ["export", str(world / "run"), "--out", str(out / "net.onnx")])


def calibrate(world: Path) -> Job:
    how = ["--data", str(world / "data"), "--method", "minmax", "--out"]
    return Job("calibrate", lambda out: ["calibrate", str(world / "net.onnx"), *how, str(out / "net.int8.onnx")])


def build(world: Path) -> Job:
    graph = str(world / "net.int8.onnx")
    return Job("build-engine", lambda out: ["build-engine", graph, "--target", "cpu", "--out", str(out / "net.xml")])


def jobs(world: Path) -> list[Job]:
    """Every command that writes something of ours, small enough to be killed two hundred times."""
    data, engine = str(world / "data"), str(world / "net.int8.xml")
    classes = ["--strong-fraction", "0.5"]

    def lnet(out: Path) -> list[str]:
        return ["train", "lnet", *training(world, out / "run")[2:], *classes]

    return [
        Job("train", lambda out: training(world, out / "run"), lambda out: [*training(world, out / "run"), "--resume"]),
        Job("train lnet", lnet, lambda out: [*lnet(out), "--resume"]),
        Job("data synth", lambda out: ["data", "synth", "--out", str(out / "d"), "--train", "12", "--val", "4", "--size", "64"]),
        Job("data import", lambda out: ["data", "import", "folders", data, "--images", "JPEGImages", "--masks",
                                        "SegmentationClass", "--val", "0.2", "--copy", "--out", str(out / "d")]),
        export(world),
        calibrate(world),
        build(world),
        Job("segment", lambda out: ["segment", engine, data + "/JPEGImages", "--out", str(out / "masks")]),
        Job("stream masks", lambda out: ["stream", engine, SOURCE, str(out / "masks") + "/"]),
        Job("stream video", lambda out: ["stream", engine, SOURCE, str(out / "out.mp4")]),
    ]  # fmt: skip


# -- What is there, and is it whole


def digests(out: Path) -> dict[str, str]:
    """Every visible file by a hash of what it says; times and speeds, which no two runs share, are left out."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if "tensorboard" in name or ".recording" in name or hidden(path, out):
            continue
        found[name] = digest_of(path)
    return found


def hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def digest_of(path: Path) -> str:
    import msgspec

    data = path.read_bytes()
    if path.suffix == ".json":
        data = msgspec.json.encode(steady(msgspec.json.decode(data)), order="sorted")
    if path.suffix == ".jsonl":
        data = b"".join(msgspec.json.encode(steady(msgspec.json.decode(line))) for line in data.splitlines())
    return hashlib.sha256(data).hexdigest()


def steady(value: object) -> object:
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in (*VOLATILE, "digest")}
    return [steady(v) for v in value] if isinstance(value, list) else value


def broken(out: Path) -> list[str]:
    """Visible files that do not open, with the reason."""
    problems = []
    for path in sorted(p for p in out.rglob("*") if p.is_file() and not hidden(p, out)):
        try:
            open_whole(path)
        except Exception as error:  # whatever it is, the file is not whole
            problems.append(f"{path.relative_to(out)}: {type(error).__name__}: {error}")
    return problems


def open_whole(path: Path) -> None:
    import av
    import msgspec
    from PIL import Image

    from tsss_edge.artifacts import Engine, load_artifact

    if path.suffix in (".pt", ".onnx", ".xml"):
        load_artifact(path)
    elif path.suffix == ".bin":
        Engine.load(path.with_suffix(".xml"))
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".json":
        msgspec.json.decode(path.read_bytes())
    elif path.suffix == ".jsonl":
        for line in path.read_bytes().split(b"\n")[:-1]:
            msgspec.json.decode(line)
    elif path.suffix == ".mp4" and (".recording" not in path.name or path.stat().st_size > 4096):
        with av.open(str(path)) as container:
            sum(1 for _ in container.decode(video=0))
