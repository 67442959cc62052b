"""Is an engine as good as the network it came from? Engine + reference + labelled pictures -> verdict.

The reference is the same checkpoint (for an imported network its float ONNX file), run now, with the same
preprocessing. The ONNX files in between are run too, so that a failure names the step that caused it. `docs/parity.md` has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from tsss_edge import __version__
from tsss_edge.artifacts import (
    Artifact,
    CalibrationRecord,
    Checkpoint,
    Engine,
    OnnxModel,
    Precision,
    Reference,
    load_artifact,
    require_same_preprocess,
)
from tsss_edge.backends import Backend, open_backend
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.files import sha256_file
from tsss_edge.onnxgraph.view import OnnxGraph
from tsss_edge.parity.int8_checks import LayerError, LayerReport, compare_layers, replay_calibration
from tsss_edge.parity.measure import Recorded, StageCounts, WorstImage, look_again, measure
from tsss_edge.parity.reference_answers import Answers, Compared, load_compared
from tsss_edge.parity.verdict import ClassChange, ParityReport, StageResult, judge
from tsss_edge.scoring import require_labelled, require_same_classes
from tsss_edge.segment import load_picture

__all__ = ["ClassChange", "LayerError", "LayerReport", "ParityReport", "StageResult", "WorstImage", "check_parity"]

LAYER_IMAGES = 8  # pictures for the comparison of layers
BOUNDARY_PX = 3  # half width of the band around the reference's boundaries
DERIVED = "derived ONNX"  # a float graph beside the imported one that is the reference
ONNX_NAMES: dict[Precision, str] = {"fp32": "ONNX", "bf16": "ONNX", "fp16": "FP16 ONNX", "int8": "INT8 ONNX"}


def check_parity(
    engine: Path | Artifact,
    reference: Path | Compared,
    data: Path,
    *,
    split: str = "val",
    max_drop: float = 0.5,
    report_dir: Path | None = None,
    graphs: Sequence[OnnxModel] | None = None,
    allow_leak: bool = False,
    allow_gain: bool = False,
    min_reference: float | None = None,
    threads: int | None = None,
    trust: bool = False,
    store: bool = True,
    served: Path | None = None,
) -> ParityReport:
    """Compare an engine with its checkpoint on a labelled split; the verdict goes into the engine's record.

    Args:    engine: engine, graph or checkpoint, loaded or by its path (only an engine keeps the verdict).
             reference: the checkpoint; its recorded answers (`reference_answers.py`), which need no PyTorch; or, of an
             imported network, its FP32 graph.
             max_drop: mIoU points the engine may lose; a gain of more than that fails too, unless `allow_gain`.
             report_dir: writes `parity.html` (self-contained, with the worst pictures) and `parity.json` there.
             graphs: those that the engine may have been made from, when the caller has them. None looks for the files that
             the record names, beside the engine, one folder up and beside the checkpoint.
             allow_leak: pass though evaluation pictures were used for calibration; it is written down.
             min_reference: mIoU that the reference must have; None: twice that of labels drawn by lot.
             served: address (triton://HOST/MODEL) of a server that has this engine and answers in its place. Everything else is
             taken from the engine's file, and the verdict is not stored in its record: it is the server's.
             trust: run an engine whose hash is not the one in its record (its verdict is not stored).
    Returns: a report that is true when the gate passed.
    Raises:  ArtifactError: a file is missing or damaged, or the reference is another checkpoint than the engine's.
             DataError: the set has other classes, or a picture or mask is missing or damaged.
             UnavailableError: this machine cannot run the engine.
    """
    if report_dir is not None and report_dir.is_file():
        raise ArtifactError(f"{report_dir}: is a file; name a folder for the report")
    subject = load_artifact(engine, trust=trust)
    checkpoint = load_compared(reference)
    require_reference(subject, checkpoint)
    dataset = VocDataset.open(data)
    require_same_classes(checkpoint.meta.classes, dataset)
    ids = dataset.ids(split)
    found, notes = find_graphs(subject, checkpoint, graphs)
    calibration = calibration_of(subject)
    if calibration is not None and calibration.random:
        notes.append("calibrated on noise, not on pictures")
    with ExitStack() as stack:
        models: dict[str, Artifact] = {**found, stage_name(subject): subject}
        stages = []
        if isinstance(checkpoint, Answers):
            checkpoint.require_pictures(dataset, ids)
            stages = [StageCounts("PyTorch", checkpoint.path.name, checkpoint)]
        else:
            first = reference_name(checkpoint)
            models = {first: checkpoint, **{DERIVED if n == first else n: model for n, model in models.items()}}
        runs: dict[str, tuple[str, Artifact | Path]] = {
            name: (model.path.name, model) for name, model in models.items()
        }
        if served is not None:
            runs[[*runs][-1]] = (str(served).replace(":/", "://", 1), served)  # a `Path` has one slash of two
        stages += [
            StageCounts(name, file, stack.enter_context(open_backend(model, threads=threads)))
            for name, (file, model) in runs.items()
        ]
        if served is not None:
            _require_same_model(stages[-1].backend, subject, served)
        profile = measure(stages, dataset, ids, boundary_px=BOUNDARY_PX)
        require_labelled(stages[0].matrix, dataset, split)
        report = judge(
            stages,
            names=dataset.classes.names,
            max_drop=max_drop,
            leak=count_leak(calibration, dataset, ids),
            allow_leak=allow_leak,
            allow_gain=allow_gain,
            boundary_px=BOUNDARY_PX,
            split=split,
            data_sha256=dataset.split_hash(split),
            notes=notes,
            provenance=_provenance(subject, checkpoint, data),
            min_reference=min_reference,
            profile=profile,
        )
        report = _look_into_quantization(report, models, calibration, dataset, ids)
        if store and served is None and isinstance(subject, Engine) and subject.checked:
            subject.with_record(parity=report.record(), profile=report.profile)
        if report_dir is not None:
            from tsss_edge.parity.parity_page import write_report

            seen = look_again(stages[0], stages[-1], dataset, [image.id for image in report.worst])
            write_report(report, seen, dataset.classes, report_dir)
    return report


# ---------------------------------------------------------------------------------------------------------------------
# From the subject to what it was made of


def stage_name(subject: Artifact) -> str:
    """What the subject is called among the stages."""
    if isinstance(subject, OnnxModel):
        return ONNX_NAMES[subject.meta.precision]
    return "engine" if isinstance(subject, Engine) else "checkpoint"


def calibration_of(subject: Artifact) -> CalibrationRecord | None:
    """How its INT8 ranges were found; None for what has none."""
    return None if isinstance(subject, Checkpoint) else subject.meta.calibration


def _require_same_model(answering: Backend | Recorded, subject: Artifact, served: Path) -> None:
    """Raise ArtifactError when a server's network has other classes or another input than the engine it stands for."""
    assert not isinstance(answering, Recorded)
    if answering.classes != subject.meta.classes:
        raise ArtifactError(f"{served}: its classes are not those of {subject.path}; serve this engine")
    require_same_preprocess(answering.preprocess, subject.meta.preprocess, str(served))


def reference_name(reference: Reference) -> str:
    """What the reference is called among the stages."""
    return "PyTorch" if isinstance(reference, Checkpoint) else ONNX_NAMES["fp32"]


def require_reference(subject: Artifact, reference: Compared) -> None:
    """Refuse a reference that is not what the subject was made from.

    Raises: ArtifactError: another checkpoint or import, other classes, or other preprocessing.
    """
    made_from = None if isinstance(subject, Checkpoint) else subject.meta.checkpoint_sha256
    if isinstance(reference, OnnxModel):
        imported = None if isinstance(subject, Checkpoint) else subject.meta.imported
        if imported != reference.meta.imported:
            raise ArtifactError(f"{subject.path}: not made from {reference.path}; import and build again from one file")
    elif made_from not in (None, reference.sha256):
        raise ArtifactError(
            f"{subject.path}: made from checkpoint {str(made_from)[:12]}, but {reference.path} is "
            f"{reference.sha256[:12]}; give its own checkpoint, or export and build again"
        )
    if subject.meta.classes != reference.meta.classes:
        raise ArtifactError(f"{subject.path}: its classes are not those of {reference.path}; export and build again")
    require_same_preprocess(subject.meta.preprocess, reference.meta.preprocess, str(subject.path))


def find_graphs(
    subject: Artifact, reference: Compared, given: Sequence[OnnxModel] | None = None
) -> tuple[dict[str, OnnxModel], list[str]]:
    """The graphs between the reference and the subject, each known by its hash -> (by stage, in order; notes on missing ones).

    They are taken from `given`, or where that is None read from the files that the record names.
    """
    folders = [f.resolve() for f in (subject.path.parent, subject.path.parent.parent, reference.path.parent)]
    known = {graph.sha256: graph for graph in given or ()}
    wanted: list[tuple[str, str, str]] = []  # stage, name, SHA-256
    if (calibration := calibration_of(subject)) is not None:
        wanted.append((ONNX_NAMES["fp32"], calibration.onnx, calibration.onnx_sha256))
    if isinstance(subject, Engine):
        record = subject.record
        wanted.append((ONNX_NAMES[record.precision], record.build.onnx, record.onnx_sha256))
    found: dict[str, OnnxModel] = {}
    notes: list[str] = []
    for stage, name, sha256 in wanted:
        if sha256 == reference.sha256:
            continue  # an imported network's float graph is the reference itself
        graph = OnnxModel.find(name, sha256, folders) if given is None else known.get(sha256)
        if graph is not None:
            found[stage] = graph
            continue
        unchecked = stage == ONNX_NAMES["fp32"] and calibration is not None
        more = "; scales and calibration were not checked against it" if unchecked else ""
        file = f"{stage} file it was made from ({name or 'unnamed'}, {sha256[:12]})"
        notes.append(f"the {file} is not beside it, so that stage is left out{more}")
    return found, notes


# ---------------------------------------------------------------------------------------------------------------------
# What the report tells beside the counts


def _look_into_quantization(
    report: ParityReport,
    models: dict[str, Artifact],
    calibration: CalibrationRecord | None,
    dataset: VocDataset,
    ids: tuple[str, ...],
) -> ParityReport:
    """Add what the INT8 graph says: faults of form, and beside the float graph its layers, scales and calibration."""
    floating, quantized = models.get(DERIVED, models.get(ONNX_NAMES["fp32"])), models.get(ONNX_NAMES["int8"])
    if not isinstance(quantized, OnnxModel):
        return report
    if not isinstance(floating, OnnxModel):
        faults = tuple(f"INT8 ONNX: {fault}" for fault in OnnxGraph(quantized.graph).pair_faults())
        return msgspec.structs.replace(
            report, passed=report.passed and not faults, problems=(*report.problems, *faults)
        )
    pictures = (
        load_picture(dataset.image_path(image_id), quantized.meta.preprocess) for image_id in ids[:LAYER_IMAGES]
    )
    peaks = calibration.peaks if calibration is not None else {}
    layers = compare_layers(floating.graph, quantized.graph, pictures, peaks)
    faults = tuple(f"INT8 ONNX: {fault}" for fault in (*layers.structure, *layers.scales))
    if calibration is not None:
        replay = replay_calibration(floating.graph, quantized.graph, calibration, dataset, quantized.meta.preprocess)
        faults += (replay.fault,) if replay is not None and replay.fault else ()
    problems = (*report.problems, *faults)
    if problems and layers.guilty and not faults:
        problems = (*problems, f"the quantization error enters at {layers.guilty}")
    return msgspec.structs.replace(report, passed=not problems, problems=problems, layers=layers)


def count_leak(calibration: CalibrationRecord | None, dataset: VocDataset, ids: tuple[str, ...]) -> int:
    """How many evaluation pictures also calibrated the engine, by the hash of their files."""
    if calibration is None:
        return 0
    used = frozenset(calibration.image_sha256)
    return sum(sha256_file(dataset.image_path(image_id)) in used for image_id in ids)


def _provenance(subject: Artifact, checkpoint: Compared, data: Path) -> dict[str, str]:
    """Where everything came from, for the report."""
    spec = subject.meta.preprocess
    precision = subject.record.precision if isinstance(subject, Engine) else getattr(subject.meta, "precision", "fp32")
    facts = {
        "subject": subject.path.name,
        "subject sha256": subject.sha256,
        "precision": precision,
        "checkpoint": checkpoint.path.name,
        "checkpoint sha256": checkpoint.sha256,
        "architecture": checkpoint.meta.arch,
        "input size": "{} x {} (height x width), {}".format(*spec.size_hw, spec.fit),
        "preprocess hash": spec.hash,
        "data": data.name,
    }
    if (calibration := calibration_of(subject)) is not None:
        facts["calibration"] = (
            f"{calibration.method}, {calibration.images} pictures of {calibration.split}, seed {calibration.seed}"
        )
    if isinstance(subject, Engine):
        facts["device"] = subject.record.device
        facts.update({f"version of {name}": version for name, version in subject.record.versions.items()})
    facts["checked"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts["tool"] = f"tsss-edge {__version__}"
    return facts
