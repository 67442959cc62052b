"""From an engine to the files it was made of: which checkpoint, which float ONNX, which INT8 ONNX, each known by hash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tsss_edge.artifacts import (
    CalibrationRecord,
    Checkpoint,
    Classes,
    Engine,
    OnnxModel,
    Precision,
    Preprocess,
    require_same_preprocess,
)
from tsss_edge.errors import ArtifactError
from tsss_edge.files import sha256_file

ONNX_NAMES: dict[Precision, str] = {"fp32": "ONNX", "bf16": "ONNX", "fp16": "FP16 ONNX", "int8": "INT8 ONNX"}


@dataclass(frozen=True)
class Subject:
    """What is to be proven, whatever kind of file it is, and what it says of its origin."""

    path: Path
    name: str  # of its stage
    classes: Classes
    preprocess: Preprocess
    precision: Precision
    sha256: str
    checkpoint_sha256: str | None  # None: a checkpoint itself
    onnx_sha256: str | None  # of the graph it was built from; None: it is a graph or a checkpoint
    calibration: CalibrationRecord | None
    engine: Engine | None


def describe(path: Path, *, trust: bool = False) -> Subject:
    """An engine (`.xml`, `.engine`), and for convenience an ONNX file or a checkpoint, as a `Subject`.

    Raises: ArtifactError: missing, damaged, or its hash is not the one in its record.
    """
    if path.is_dir() or path.suffix == ".pt":
        return _describe_checkpoint(Checkpoint.load(path))
    if path.suffix == ".onnx":
        return _describe_onnx(OnnxModel.load(path))
    engine = Engine.load(path, trust=trust)
    record = engine.record
    return Subject(
        path=path,
        name="engine",
        classes=record.classes,
        preprocess=record.preprocess,
        precision=record.precision,
        sha256=record.files[path.name],
        checkpoint_sha256=record.checkpoint_sha256,
        onnx_sha256=record.onnx_sha256,
        calibration=record.calibration,
        engine=engine,
    )


def _describe_onnx(model: OnnxModel) -> Subject:
    meta = model.meta
    return Subject(
        path=model.path,
        name=ONNX_NAMES[meta.precision],
        classes=meta.classes,
        preprocess=meta.preprocess,
        precision=meta.precision,
        sha256=model.sha256,
        checkpoint_sha256=meta.checkpoint_sha256,
        onnx_sha256=None,
        calibration=meta.calibration,
        engine=None,
    )


def _describe_checkpoint(checkpoint: Checkpoint) -> Subject:
    return Subject(
        path=checkpoint.path,
        name="checkpoint",
        classes=checkpoint.meta.classes,
        preprocess=checkpoint.meta.preprocess,
        precision="fp32",
        sha256=checkpoint.sha256,
        checkpoint_sha256=None,
        onnx_sha256=None,
        calibration=None,
        engine=None,
    )


def require_reference(subject: Subject, reference: Checkpoint) -> None:
    """Refuse a reference that is not the checkpoint the subject was made from.

    Raises: ArtifactError: another checkpoint, other classes, or other preprocessing.
    """
    if subject.checkpoint_sha256 not in (None, reference.sha256):
        raise ArtifactError(
            f"{subject.path}: made from checkpoint {str(subject.checkpoint_sha256)[:12]}, but {reference.path} is "
            f"{reference.sha256[:12]}; give its own checkpoint, or export and build again"
        )
    if subject.classes != reference.meta.classes:
        raise ArtifactError(f"{subject.path}: its classes are not those of {reference.path}; export and build again")
    require_same_preprocess(subject.preprocess, reference.meta.preprocess, str(subject.path))


def find_graphs(
    subject: Subject, reference: Checkpoint, *, onnx: Path | None = None, int8_onnx: Path | None = None
) -> tuple[dict[str, Path], list[str]]:
    """The ONNX files between the reference and the subject -> (stage name -> path in order, notes on missing ones).

    Given files must have the hash that the subject's record names; others are looked for by hash in the folder of the
    subject, the one above it and the reference's.
    Raises: ArtifactError: a given file is not the one the subject was made from.
    """
    folders = tuple(
        dict.fromkeys(f.resolve() for f in (subject.path.parent, subject.path.parent.parent, reference.path.parent))
    )
    known = dict(_graphs_in(folders))
    found: dict[str, Path] = {}
    notes: list[str] = []
    calibrated = subject.calibration is not None
    for name, sha256, given in _wanted(subject, onnx, int8_onnx):
        path = _require_hash(given, sha256) if given else known.get(sha256)
        if path:
            found[name] = path
        else:
            unchecked = (
                "; scales and calibration were not checked against it"
                if name == ONNX_NAMES["fp32"] and calibrated
                else ""
            )
            notes.append(
                f"the {name} file it was made from ({sha256[:12]}) is not beside it, so that stage is left out{unchecked}"
            )
    return found, notes


def _wanted(subject: Subject, onnx: Path | None, int8_onnx: Path | None) -> Iterator[tuple[str, str, Path | None]]:
    """(stage, SHA-256, file given by the caller) of each graph on the way to the subject, in order."""
    if subject.calibration is not None:
        yield ONNX_NAMES["fp32"], subject.calibration.onnx_sha256, onnx
    if subject.onnx_sha256 is not None:
        yield ONNX_NAMES[subject.precision], subject.onnx_sha256, int8_onnx if subject.precision == "int8" else onnx


def _graphs_in(folders: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for path in sorted(folder.glob("*.onnx")):
            yield sha256_file(path), path


def _require_hash(path: Path, sha256: str) -> Path:
    model = OnnxModel.load(path)
    if model.sha256 != sha256:
        raise ArtifactError(
            f"{path}: hash {model.sha256[:12]}, but the engine was made from {sha256[:12]}; give that file or leave it out"
        )
    return path
