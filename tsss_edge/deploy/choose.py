"""Checkpoint or ONNX file + target -> the fastest engine that passes the accuracy gate, chosen by measurement.

Every precision of the target is built, all are timed in alternating rounds of this process, each is compared with its
PyTorch checkpoint, and the fastest that passes is kept with the proof in its record.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Engine, LatencyRecord, Precision, Struct, Target
from tsss_edge.backends import open_backend
from tsss_edge.bench import time_networks
from tsss_edge.errors import ArtifactError, GateError, UnavailableError
from tsss_edge.export.engine import build_engine, engine_path, move_built, require_free_names
from tsss_edge.export.sources import is_checkpoint, possible_precisions
from tsss_edge.files import sha256_file, write_json
from tsss_edge.parity import check_parity


class Candidate(Struct, frozen=True):
    """One precision: what it costs and whether it passed. Numbers are None where `reason` says why."""

    precision: Precision
    engine: str = ""
    p50_ms: float | None = None
    miou: float | None = None
    miou_drop: float | None = None
    pixel_agreement: float | None = None
    passed: bool | None = None
    reason: str = ""

    def row(self) -> str:
        """One line of a table."""
        if self.p50_ms is None or self.miou is None:
            return f"  {self.precision:<5} {self.reason}"
        return (
            f"  {self.precision:<5} {self.p50_ms:8.2f} ms  mIoU {self.miou:6.2f} (drop {self.miou_drop:+.2f})  "
            f"agreement {self.pixel_agreement:.4f}  {self.reason}"
        )


class Choice(Struct, frozen=True):
    """The engine that is kept, and all that were tried."""

    engine: str
    precision: Precision
    why: str
    candidates: tuple[Candidate, ...]

    def summary(self) -> str:
        """A table, the chosen one and the reason."""
        return "\n".join([*(c.row() for c in self.candidates), f"{self.engine}: {self.why}"])


def choose_engine(
    model: Path,
    target: Target,
    out: Path,
    *,
    eval_data: Path,
    precision: Precision | None = None,
    reference: Path | None = None,
    calib_data: Path | None = None,
    split: str = "val",
    duration_s: float = 2.0,
    threads: int | None = None,
) -> Choice:
    """Build, time and gate every precision of `target` that `model` allows; keep the best at `out`.

    Args:    eval_data: labelled set for the gate (`split`); `reference`: its PyTorch checkpoint, default `model` itself.
             precision: the only one to try; None tries all of the target that `model` allows.
             duration_s: timing of each engine.
    Raises:  GateError: no candidate passes; nothing is kept. ArtifactError, UnavailableError: as `build_engine`.
             ValueError: `model` is an ONNX file and `reference` is missing.
    """
    if reference is None and not is_checkpoint(model):
        raise ValueError("an ONNX file needs --reference CKPT, the checkpoint it came from, for the accuracy gate")
    possible = possible_precisions(model, target, can_calibrate=calib_data is not None)
    precisions = (precision,) if precision else possible
    for wanted in precisions:
        require_free_names(engine_path(out, target, wanted), model, wanted)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.stem}-candidates-"))
    try:
        built, candidates = _build_all(model, target, folder / out.name, precisions, calib_data)
        engines = _time_all(built, duration_s, threads)
        for engine in engines:
            candidates.append(_gate(engine, model, reference or model, eval_data, split, target, threads))
        best, why = pick([c for c in candidates if c.passed], target)
        return _keep(best, why, candidates, folder, out.parent)
    finally:
        shutil.rmtree(folder)


def _build_all(
    model: Path, target: Target, out: Path, precisions: Sequence[Precision], calib_data: Path | None
) -> tuple[list[Engine], list[Candidate]]:
    """Engines that could be built, and why others could not: this machine lacks bf16, the builder refuses a graph.

    Raises: what kept the first one from being built, when none was.
    """
    built: list[Engine] = []
    left: list[Candidate] = []
    errors: list[ArtifactError | UnavailableError] = []
    for precision in precisions:
        try:
            built.append(build_engine(model, target, out, precision=precision, calib_data=calib_data))
        except (ArtifactError, UnavailableError) as error:
            left.append(Candidate(precision=precision, reason=str(error)))
            errors.append(error)
    if not built:
        raise type(errors[0])("; ".join(dict.fromkeys(candidate.reason for candidate in left)))
    return built, left


def _time_all(engines: Sequence[Engine], duration_s: float, threads: int | None) -> list[Engine]:
    """Time all side by side and write each latency into its record."""
    paths = [engine.path for engine in engines]
    with ExitStack() as stack:
        backends = [stack.enter_context(open_backend(path, threads=threads)) for path in paths]
        timed = time_networks(backends, paths, duration_s=duration_s)
    return [
        engine.with_record(
            latency=LatencyRecord(
                p50_ms=t.latency_ms.p50, p95_ms=t.latency_ms.p95, p99_ms=t.latency_ms.p99, runs=t.runs, threads=threads
            )
        )
        for engine, t in zip(engines, timed, strict=True)
    ]


def _gate(
    engine: Engine, model: Path, reference: Path, data: Path, split: str, target: Target, threads: int | None
) -> Candidate:
    assert engine.record.latency is not None
    graph = _beside(model, str(engine.record.flags["onnx"]), engine.record.onnx_sha256)
    calibration = engine.record.calibration
    floating = _beside(model, model.name, calibration.onnx_sha256) if calibration is not None else graph
    report = check_parity(
        engine.path,
        reference,
        data,
        split=split,
        max_drop=target.max_drop,
        onnx=floating,
        int8_onnx=graph if calibration is not None else None,
        threads=threads,
    )
    return Candidate(
        precision=engine.record.precision,
        engine=engine.path.name,
        p50_ms=engine.record.latency.p50_ms,
        miou=report.miou_engine,
        miou_drop=report.miou_drop,
        pixel_agreement=report.pixel_agreement,
        passed=report.passed,
        reason="passed" if report.passed else f"failed: {'; '.join(report.problems)}",
    )


def _beside(model: Path, name: str, sha256: str) -> Path | None:
    """A graph that lies with `model`, known by its hash. Those made on the way lie with the candidate and are found there."""
    path = model.parent / name
    return path if path.is_file() and sha256_file(path) == sha256 else None


def pick(passed: Sequence[Candidate], target: Target) -> tuple[Candidate | None, str]:
    """The fastest of `passed` and why; INT8 only when it is `min_int8_speedup` times as fast as the best float engine."""
    speeds = {c.precision: (c.p50_ms or 0.0, c) for c in passed}
    floating = min((pair for p, pair in speeds.items() if p != "int8"), default=None, key=lambda pair: pair[0])
    if "int8" not in speeds:
        return (
            (None, "no engine passed the gate") if floating is None else (floating[1], "fastest that passes the gate")
        )
    int8_ms, int8 = speeds["int8"]
    if floating is None:
        return int8, "the only one that passes the gate"
    speedup = floating[0] / int8_ms
    name = floating[1].precision
    if speedup < target.min_int8_speedup:
        return floating[1], (
            f"INT8 is {speedup:.2f} times as fast as {name}, less than the {target.min_int8_speedup:.2f} that "
            f"target {target.name} wants for it, so {name} is taken"
        )
    return int8, f"INT8 passes the gate and is {speedup:.2f} times as fast as {name}"


def _keep(best: Candidate | None, why: str, candidates: Sequence[Candidate], folder: Path, home: Path) -> Choice:
    if best is None:
        rows = "; ".join(f"{c.precision}: {c.reason}" for c in candidates)
        raise GateError(f"no engine passed the accuracy gate, none is kept: {rows}")
    engine = Engine.load(folder / best.engine)
    move_built(folder, home, engine.record)
    choice = Choice(engine=best.engine, precision=best.precision, why=why, candidates=tuple(candidates))
    flags = engine.record.flags | {"chosen": msgspec.to_builtins(choice)}
    write_json(Engine.record_path(home / best.engine), msgspec.structs.replace(engine.record, flags=flags))
    return choice
