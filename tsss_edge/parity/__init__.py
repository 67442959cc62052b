"""Is an engine as good as the PyTorch checkpoint it came from? Engine + checkpoint + labelled pictures -> verdict.

The reference is the same checkpoint, run now, with the same preprocessing. The ONNX files in between are run too, so
that a failure names the step that caused it. `docs/parity.md` has the formulas.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from tsss_edge import __version__
from tsss_edge.artifacts import CalibrationRecord, Checkpoint, Preprocess
from tsss_edge.backends import open_backend
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import sha256_file
from tsss_edge.parity.gate import judge
from tsss_edge.parity.layers import LayerError, LayerReport, compare_layers, structure_faults
from tsss_edge.parity.measure import StageCounts, look_again, measure
from tsss_edge.parity.replay import replay_calibration
from tsss_edge.parity.result import ClassChange, ParityReport, StageResult, WorstImage
from tsss_edge.parity.stages import ONNX_NAMES, Subject, describe, find_graphs, require_reference
from tsss_edge.scoring import require_labelled, require_same_classes

__all__ = ["ClassChange", "LayerError", "LayerReport", "ParityReport", "StageResult", "WorstImage", "check_parity"]

LAYER_IMAGES = 8  # pictures for the comparison of layers
BOUNDARY_PX = 3  # half width of the band around the reference's boundaries


def check_parity(
    engine: Path,
    reference: Path,
    data: Path,
    *,
    split: str = "val",
    max_drop: float = 0.5,
    report_dir: Path | None = None,
    onnx: Path | None = None,
    int8_onnx: Path | None = None,
    allow_leak: bool = False,
    allow_gain: bool = False,
    threads: int | None = None,
    trust: bool = False,
    store: bool = True,
) -> ParityReport:
    """Compare an engine with its checkpoint on a labelled split; the verdict goes into the engine's record.

    Args:    engine: `.xml` or `.engine`; an `.onnx` or `.pt` works too (nothing is stored then).
             max_drop: mIoU points the engine may lose; a gain of more than that fails too, unless `allow_gain`.
             report_dir: writes `parity.html` (self-contained, with the worst pictures) and `parity.json` there.
             onnx, int8_onnx: graphs the engine was made from; by default found by hash beside engine or checkpoint.
             allow_leak: pass though evaluation pictures were used for calibration; it is written down.
             trust: run an engine whose hash is not the one in its record (its verdict is not stored).
    Returns: a report that is true when the gate passed.
    Raises:  ArtifactError: a file is missing or damaged, or the reference is another checkpoint than the engine's.
             DataError: the set has other classes, or a picture or mask is missing or damaged.
             UnavailableError: this machine cannot run the engine.
    """
    checkpoint = Checkpoint.load(reference)
    subject = describe(engine, trust=trust)
    require_reference(subject, checkpoint)
    dataset = VocDataset.open(data)
    require_same_classes(checkpoint.meta.classes, dataset)
    ids = dataset.ids(split)
    graphs, notes = find_graphs(subject, checkpoint, onnx=onnx, int8_onnx=int8_onnx)
    with ExitStack() as stack:
        files = {"PyTorch": checkpoint.path, **graphs, subject.name: subject.path}
        stages = [
            StageCounts(name, path.name, stack.enter_context(open_backend(path, threads=threads, trust=trust)))
            for name, path in files.items()
        ]
        measure(stages, dataset, ids, boundary_px=BOUNDARY_PX)
        require_labelled(stages[0].matrix, dataset, split)
        report = judge(
            stages,
            names=dataset.classes.names,
            max_drop=max_drop,
            leak=count_leak(subject.calibration, dataset, ids),
            allow_leak=allow_leak,
            allow_gain=allow_gain,
            boundary_px=BOUNDARY_PX,
            split=split,
            data_sha256=dataset.split_hash(split),
            notes=[*notes, *_calibration_notes(subject.calibration)],
            provenance=_provenance(subject, checkpoint, data),
        )
        report = _look_into_quantization(report, subject, graphs, dataset, ids)
        if report_dir is not None:
            from tsss_edge.parity.page import write_report

            seen = look_again(stages[0], stages[-1], dataset, [image.id for image in report.worst])
            write_report(report, seen, dataset.classes, report_dir)
    if store and subject.engine is not None and not trust:
        subject.engine.with_record(parity=report.record())
    return report


def _look_into_quantization(
    report: ParityReport, subject: Subject, graphs: dict[str, Path], dataset: VocDataset, ids: tuple[str, ...]
) -> ParityReport:
    """Add what the INT8 graph says: faults of form, and beside the float graph its layers, scales and calibration."""
    graphs = {**graphs, subject.name: subject.path}
    floating, quantized = graphs.get(ONNX_NAMES["fp32"]), graphs.get(ONNX_NAMES["int8"])
    if quantized is None:
        return report
    if floating is None:
        faults = tuple(f"INT8 ONNX: {fault}" for fault in structure_faults(quantized))
        return msgspec.structs.replace(
            report, passed=report.passed and not faults, problems=(*report.problems, *faults)
        )
    layers = _compare_layers(floating, quantized, subject.preprocess, dataset, ids)
    faults = tuple(f"INT8 ONNX: {fault}" for fault in (*layers.structure, *layers.scales))
    if subject.calibration is not None:
        replay = replay_calibration(floating, quantized, subject.calibration, dataset, subject.preprocess)
        faults += (replay.fault,) if replay is not None and replay.fault else ()
    problems = (*report.problems, *faults)
    if problems and layers.guilty and not faults:
        problems = (*problems, f"the quantization error enters at {layers.guilty}")
    return msgspec.structs.replace(report, passed=not problems, problems=problems, layers=layers)


def _compare_layers(
    floating: Path, quantized: Path, spec: Preprocess, dataset: VocDataset, ids: tuple[str, ...]
) -> LayerReport:
    from tsss_edge.kernels.preprocess import preprocess

    pictures = (dataset.image(image_id) for image_id in ids[:LAYER_IMAGES])
    return compare_layers(floating, quantized, (preprocess(p, spec, bgr=False)[None] for p in pictures))


def count_leak(calibration: CalibrationRecord | None, dataset: VocDataset, ids: tuple[str, ...]) -> int:
    """How many evaluation pictures also calibrated the engine, by the hash of their files."""
    if calibration is None:
        return 0
    used = frozenset(calibration.image_sha256)
    return sum(sha256_file(dataset.image_path(image_id)) in used for image_id in ids)


def _calibration_notes(calibration: CalibrationRecord | None) -> list[str]:
    return ["calibrated on noise, not on pictures"] if calibration is not None and calibration.random else []


def _provenance(subject: Subject, checkpoint: Checkpoint, data: Path) -> dict[str, str]:
    """Where everything came from, for the report."""
    facts = {
        "subject": subject.path.name,
        "subject sha256": subject.sha256,
        "precision": subject.precision,
        "checkpoint": checkpoint.path.name,
        "checkpoint sha256": checkpoint.sha256,
        "architecture": checkpoint.meta.arch,
        "input size": "{} x {} (height x width), {}".format(*subject.preprocess.size_hw, subject.preprocess.fit),
        "preprocess hash": subject.preprocess.hash,
        "data": data.name,
    }
    if (calibration := subject.calibration) is not None:
        facts["calibration"] = (
            f"{calibration.method}, {calibration.images} pictures of {calibration.split}, seed {calibration.seed}"
        )
    if subject.engine is not None:
        record = subject.engine.record
        facts["device"] = record.device
        facts.update({f"version of {name}": version for name, version in record.versions.items()})
    facts["checked"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts["tool"] = f"tsss-edge {__version__}"
    return facts
