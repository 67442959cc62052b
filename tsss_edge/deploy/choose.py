"""Checkpoint or ONNX file + target -> the fastest engine that passes the accuracy gate, chosen by measurement.

Every precision of the target is built, all are timed in alternating rounds of this process, each is compared with its
PyTorch checkpoint, and the fastest that passes is kept with the proof in its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tsss_edge.artifacts import (
    Candidate,
    Checkpoint,
    Choice,
    Engine,
    OnnxModel,
    Precision,
    Reference,
    Target,
    load_reference,
)
from tsss_edge.backends import open_backend
from tsss_edge.bench import latency_record, time_networks
from tsss_edge.bench.power import read_power
from tsss_edge.errors import ArtifactError, GateError, UnavailableError
from tsss_edge.export.build import build_in, engine_path, folder_beside, publish, require_free_names
from tsss_edge.export.onnx_export import EngineSources
from tsss_edge.export.openvino_build import saturation_note
from tsss_edge.parity import check_parity


def choose_engine(
    model: Path | Checkpoint | OnnxModel,
    target: Target,
    out: Path,
    *,
    eval_data: Path,
    precision: Precision | None = None,
    reference: Path | Reference | None = None,
    calib_data: Path | None = None,
    split: str = "val",
    duration_s: float = 2.0,
    threads: int | None = None,
) -> Engine:
    """Build, time and gate every precision of `target` that `model` allows; keep the best at `out`.

    Args:    eval_data: labelled set for the gate (`split`); `reference`: its checkpoint or imported graph, default `model`.
             precision: the only one to try; None tries all of the target that `model` allows.
             duration_s: timing of each engine.
    Returns: the engine; `record.build.chosen` says why, and what the others did.
    Raises:  GateError: no candidate passes; nothing is kept. ArtifactError, UnavailableError: as `build_engine`.
             ValueError: `model` is an ONNX file and `reference` is missing.
    """
    sources = EngineSources(model, target, calib_data)
    origin = gate_reference(sources.model, reference)
    paths = {p: engine_path(out, target, p) for p in sources.wanted(precision)}
    for wanted, path in paths.items():
        require_free_names(path, sources, wanted)
    with folder_beside(out) as folder:
        built, candidates = _build_all(folder, paths, sources)
        engines = []
        for timed in _time_all(built, duration_s, threads):
            report = check_parity(
                timed,
                origin,
                eval_data,
                split=split,
                max_drop=target.max_drop,
                min_reference=target.min_reference,
                graphs=sources.known(),
                threads=threads,
                store=False,
            )
            engines.append(_with(timed, parity=report.record(), profile=report.profile))
            candidates.append(_candidate(engines[-1], report.problems))
        best, why = pick([c for c in candidates if c.passed], target)
        if best is None:
            rows = "; ".join(f"{c.precision}: {c.reason}" for c in candidates)
            raise GateError(f"no engine passed the accuracy gate, none is kept: {rows}")
        choice = Choice(engine=best.engine, precision=best.precision, why=why, candidates=tuple(candidates))
        engine = next(e for e in engines if e.path.name == best.engine)
        build = msgspec.structs.replace(engine.record.build, chosen=choice)
        return publish(_with(engine, build=build), out.parent)


def gate_reference(model: Checkpoint | OnnxModel, reference: Path | Reference | None) -> Reference:
    """What the gate compares with: `reference`, else the model itself where it is one.

    Raises: ValueError: an ONNX file of ours, without `reference`. ArtifactError: as `load_reference`.
    """
    if reference is None and isinstance(model, OnnxModel) and model.meta.imported is None:
        raise ValueError("an ONNX file needs --reference CKPT, the checkpoint it came from, for the accuracy gate")
    return load_reference(model if reference is None else reference)


def _with(engine: Engine, **changes: object) -> Engine:
    """The engine with fields of its record replaced; nothing is written."""
    return msgspec.structs.replace(engine, record=msgspec.structs.replace(engine.record, **changes))


def _build_all(
    folder: Path, paths: dict[Precision, Path], sources: EngineSources
) -> tuple[list[Engine], list[Candidate]]:
    """Engines that could be built, and why others could not: this machine lacks bf16, the builder refuses a graph.

    Raises: what kept the first one from being built, when none was.
    """
    built: list[Engine] = []
    left: list[Candidate] = []
    errors: list[ArtifactError | UnavailableError] = []
    for precision, path in paths.items():
        try:
            built.append(build_in(folder, path.name, sources, precision))
        except (ArtifactError, UnavailableError) as error:
            left.append(Candidate(precision=precision, reason=str(error)))
            errors.append(error)
    if not built:
        raise type(errors[0])("; ".join(dict.fromkeys(candidate.reason for candidate in left)))
    return built, left


def _time_all(engines: Sequence[Engine], duration_s: float, threads: int | None) -> list[Engine]:
    """Time all side by side -> the same with their latency. Raises: UnavailableError: the power mode changed meanwhile."""
    before = read_power()
    with ExitStack() as stack:
        backends = [stack.enter_context(open_backend(engine, threads=threads)) for engine in engines]
        timed = time_networks(backends, [engine.path.name for engine in engines], duration_s=duration_s)
    read_power().require_same_mode(before)
    return [_with(e, latency=latency_record(t, threads)) for e, t in zip(engines, timed, strict=True)]


def _candidate(engine: Engine, problems: Sequence[str]) -> Candidate:
    latency, parity = engine.record.latency, engine.record.parity
    wrong = [*problems, *filter(None, [saturation_note(engine.record)])]
    assert latency is not None and parity is not None
    return Candidate(
        precision=engine.record.precision,
        engine=engine.path.name,
        p50_ms=latency.p50_ms,
        miou=parity.miou_engine,
        miou_drop=parity.miou_drop,
        pixel_agreement=parity.pixel_agreement,
        passed=parity.passed,
        reason="passed" if parity.passed else f"failed: {'; '.join(wrong)}",
    )


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
