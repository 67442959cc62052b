"""An engine -> how fast it is: the network alone beside the whole frame, and the stage that limits.

Everything that is compared runs in alternating rounds of one process, so that the ratios hold on a busy machine too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Artifact, Checkpoint, Engine, LatencyRecord, Struct, load_artifact
from tsss_edge.backends import Backend, open_backend
from tsss_edge.bench.conditions import Machine, examine_machine, notes_on, read_load, read_mhz
from tsss_edge.bench.power import note_on_record, read_power
from tsss_edge.bench.timing import EndToEnd, Timed, alternate, network_call, time_end_to_end, warm_up
from tsss_edge.metrics import Percentiles, percentiles

__all__ = ["BenchReport", "EndToEnd", "Machine", "Percentiles", "Timed", "bench_engine"]

FRAME_HW = (720, 1280)
APP_ROUNDS = 3
_APP_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class BenchReport(Struct, frozen=True):
    """`latency_ms` and `throughput_fps` are the network alone; `end_to_end` has everything around it."""

    engine: str
    runs_on: str
    latency_ms: Percentiles
    throughput_fps: float
    end_to_end: EndToEnd | None
    runs: int
    best_ms: float
    compare: dict[str, Timed]
    benchmark_app: Timed | None  # OpenVINO's own tool on the same file, in alternating rounds
    machine: Machine
    notes: tuple[str, ...]

    def summary(self) -> str:
        """For a terminal."""
        rows = [_row(self.runs_on, self.latency_ms, self.throughput_fps, "network alone")]
        others = {**self.compare, **({"benchmark_app": self.benchmark_app} if self.benchmark_app else {})}
        rows += [
            _row(name, t.latency_ms, t.throughput_fps, f"{t.ratio:.2f} x (best {t.ratio_best:.2f} x)")
            for name, t in others.items()
        ]
        if (all_of_it := self.end_to_end) is not None:
            stages = ", ".join(f"{name} {ms:.2f}" for name, ms in all_of_it.stages_ms.items())
            size = "{1}x{0}".format(*all_of_it.frame_hw)
            rows.append(_row("end to end", all_of_it.latency_ms, all_of_it.throughput_fps, f"{size}: {stages}"))
            rows.append(f"limited by {all_of_it.limited_by}")
        return "\n".join([*rows, self.machine.summary(), *(f"note: {note}" for note in self.notes)])


def _row(name: str, p: Percentiles, fps: float, more: str) -> str:
    return f"{name:<20} p50 {p.p50:8.2f}  p95 {p.p95:8.2f}  p99 {p.p99:8.2f} ms  {fps:8.1f} fps  {more}"


def bench_engine(
    engine: Path | Artifact,
    *,
    duration_s: float = 3.0,
    threads: int | None = None,
    compare: Sequence[Path | Artifact] = (),
    compare_device: str | None = None,
    image: Path | None = None,
    end_to_end: bool = True,
    benchmark_app: bool = True,
    trust: bool = False,
    store: bool = True,
) -> BenchReport:
    """Time an engine (or ONNX file, or checkpoint); the latency goes into an engine's record.

    Args:    duration_s: seconds of measurement for each network and for the whole frame, after the warm-up.
             threads: CPU threads of every network.
             compare: others to time in alternating rounds; a checkpoint is PyTorch eager FP32, an ONNX file ONNX Runtime.
             compare_device: PyTorch's, of checkpoints among those others (default: the GPU where there is one).
             image: frame for `end_to_end`, at its own size; default a synthetic scene of 1280x720.
             trust: run an engine whose hash is not the one in its record (its latency is not stored).
             benchmark_app: also run OpenVINO's tool on the same file, where it is installed.
    Raises:  ArtifactError, UnavailableError: as `open_backend`. DataError: `image` is not a picture.
             ValueError: `duration_s` is not positive.
    """
    if duration_s <= 0:
        raise ValueError(f"duration {duration_s} s: must be positive")
    frame = _frame(image)
    mhz, load, power = read_mhz(), read_load(), read_power()
    models = [load_artifact(model, trust=trust) for model in (engine, *compare)]
    names = [given.name if isinstance(given, Path) else given.path.name for given in (engine, *compare)]
    first = models[0]
    with ExitStack() as stack:
        backends = [stack.enter_context(open_backend(first, threads=threads))]
        for model in models[1:]:
            device = compare_device if isinstance(model, Checkpoint) else None
            backends.append(stack.enter_context(open_backend(model, device=device, threads=threads)))
        timed = time_networks(backends, names, duration_s=duration_s)
        if compare:
            read_power().require_same_mode(power)
        whole = time_end_to_end(backends[0], frame, duration_s=duration_s) if end_to_end else None
        app, notes = None, list[str]()
        if benchmark_app and isinstance(first, Engine) and first.path.suffix == ".xml":
            app, notes = _against_benchmark_app(backends[0], first, duration_s=duration_s, threads=threads)
    old = note_on_record(first.record.latency, read_power()) if isinstance(first, Engine) else []
    if store and isinstance(first, Engine) and first.checked:
        first.with_record(latency=latency_record(timed[0], threads))
    on_gpu = isinstance(first, Engine) and first.path.suffix == ".engine"
    machine = examine_machine(threads=threads, mhz_before=mhz, load_before=load, gpu=on_gpu)
    labels = told_apart([backend.name for backend in backends[1:]], [t.file for t in timed[1:]])
    return BenchReport(
        engine=names[0],
        runs_on=backends[0].name,
        latency_ms=timed[0].latency_ms,
        throughput_fps=timed[0].throughput_fps,
        end_to_end=whole,
        runs=timed[0].runs,
        best_ms=timed[0].best_ms,
        compare=dict(zip(labels, timed[1:], strict=True)),
        benchmark_app=app,
        machine=machine,
        notes=(*notes, *notes_on(machine), *read_power().notes(power), *old),
    )


def time_networks(backends: Sequence[Backend], files: Sequence[str], *, duration_s: float) -> list[Timed]:
    """Each network alone, in alternating rounds; `ratio` is against the first, `files` are their names."""
    calls = [network_call(backend) for backend in backends]
    for call in calls:
        warm_up(call)
    times = alternate(calls, duration_s=duration_s)
    batches = [backend.min_batch for backend in backends]
    first_ms = np.asarray(times[0]) / batches[0]
    return [_timed(file, mine, batch, first_ms) for file, mine, batch in zip(files, times, batches, strict=True)]


def _timed(file: str, times_ms: Sequence[float], batch: int, first_ms: NDArray[np.float64]) -> Timed:
    """`times_ms` of calls on `batch` pictures each, `first_ms` a picture of the network to compare with."""
    a_picture = np.asarray(times_ms) / batch
    return Timed(
        file=file,
        latency_ms=percentiles(times_ms),
        throughput_fps=float(1000 / a_picture.mean()),
        runs=len(times_ms),
        ratio=float(np.median(a_picture) / np.median(first_ms)),
        best_ms=min(times_ms),
        ratio_best=float(a_picture.min() / first_ms.min()),
    )


def latency_record(timed: Timed, threads: int | None) -> LatencyRecord:
    """What an engine's record keeps of a measurement."""
    p = timed.latency_ms
    return LatencyRecord(
        p50_ms=p.p50, p95_ms=p.p95, p99_ms=p.p99, runs=timed.runs, threads=threads, power_mode=read_power().mode
    )


def _frame(image: Path | None) -> NDArray[np.uint8]:
    """(H,W,3) uint8 BGR."""
    if image is not None:
        from tsss_edge.data.pictures import read_image

        return np.ascontiguousarray(read_image(image)[..., ::-1])
    from tsss_edge.data.synthetic import Scenes

    return np.ascontiguousarray(Scenes(0, FRAME_HW).scene(0)[0][..., ::-1])


# ---------------------------------------------------------------------------------------------------------------------
# OpenVINO's own `benchmark_app` on the same file, as the yardstick for our latency


def told_apart(names: Sequence[str], files: Sequence[str]) -> list[str]:
    """Keys for networks: the name of what runs them, with the file's name where two share that, with a number where those are one too."""
    named = [n if names.count(n) == 1 else f"{n} {file}" for n, file in zip(names, files, strict=True)]
    return [n if named.count(n) == 1 else f"{n} ({at})" for at, n in enumerate(named, 1)]


def _against_benchmark_app(
    backend: Backend, engine: Engine, *, duration_s: float, threads: int | None
) -> tuple[Timed | None, list[str]]:
    """Ours and theirs in alternating rounds -> (theirs, notes)."""
    if (tool := find_benchmark_app()) is None:
        return None, ["benchmark_app is not installed (it comes with `pip install openvino`), so it is not compared"]
    args = app_command(tool, engine, duration_s=duration_s / APP_ROUNDS, threads=threads)
    call = network_call(backend)
    ours: list[list[float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(APP_ROUNDS):
        warm_up(call)
        ours += alternate([call], duration_s=duration_s / APP_ROUNDS, rounds=1)
        told = subprocess.run(args, capture_output=True, text=True)
        if told.returncode or (result := parse_app(told.stdout)) is None:
            return None, [f"benchmark_app failed on {engine.path.name}, so it is not compared; try: {' '.join(args)}"]
        theirs.append(result)
    return _app_timed(engine.path.name, ours, theirs, backend.min_batch), [
        "percentiles of benchmark_app are over its rounds, not over single runs"
    ]


def _app_timed(file: str, ours: Sequence[Sequence[float]], theirs: Sequence[dict[str, float]], batch: int) -> Timed:
    """benchmark_app prints a median and a minimum of each round; ours are taken round by round too."""
    medians, best = [result["median"] for result in theirs], min(result["min"] for result in theirs)
    median = float(np.median(medians))
    return Timed(
        file=file,
        latency_ms=percentiles(medians),
        throughput_fps=1000 * batch / median,
        runs=int(sum(result["count"] for result in theirs)),
        ratio=median / float(np.median([np.median(times) for times in ours])),
        best_ms=best,
        ratio_best=best / min(min(times) for times in ours),
    )


def find_benchmark_app() -> str | None:
    """Its path: beside this Python, else on PATH; None when it is not installed."""
    beside = Path(sys.executable).with_name("benchmark_app")
    return str(beside) if beside.is_file() else shutil.which("benchmark_app")


def app_command(tool: str, engine: Engine, *, duration_s: float, threads: int | None) -> list[str]:
    """The command that measures what `bench` measures: one synchronous request, latency hint, the same precision."""
    args = [tool, "-m", str(engine.path), "-d", "CPU", "-api", "sync"]
    args += ["-nireq", "1", "-t", str(max(1, round(duration_s)))]
    if engine.record.precision in _APP_HINTS:
        args += ["-infer_precision", _APP_HINTS[engine.record.precision]]
    # Its Python form takes threads without a hint only; one stream is what the latency hint gives.
    return args + (["-hint", "none", "-nstreams", "1", "-nthreads", str(threads)] if threads else ["-hint", "latency"])


def parse_app(text: str) -> dict[str, float] | None:
    """benchmark_app's closing lines -> {"median", "average", "min", "max"} in ms and "count"; None without them.

    It tells short times in microseconds ("us").
    """
    told = re.findall(r"(Median|Average|Min|Max):\s+([\d.]+) (ms|us)", text)
    found = {name.lower(): float(value) / (1000 if unit == "us" else 1) for name, value, unit in told}
    count = re.search(r"Count:\s+(\d+) iterations", text)
    if count is None or "median" not in found:
        return None
    return {**found, "count": float(count.group(1))}
