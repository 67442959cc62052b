"""OnnxModel (or Checkpoint) + Target -> Engine: the plain file that stock tools load and its record, written together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import msgspec

import tsss_edge
from tsss_edge.artifacts import Checkpoint, Engine, EngineRecord, OnnxModel, Precision, Struct, Target
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.built import Built
from tsss_edge.export.dla import Dla
from tsss_edge.export.sources import is_checkpoint, planned_onnx, possible_precisions, source_onnx
from tsss_edge.files import read_json, sha256_file, write_json

SUFFIXES = {"openvino": ".xml", "tensorrt": ".engine", "tensorrt-rtx": ".engine"}
_PRECISION_TAGS = (".fp32", ".bf16", ".fp16", ".int8")
KNOWN_SUFFIXES = (".xml", ".engine", ".plan", ".onnx")


def build_engine(
    model: Path,
    target: Target,
    out: Path,
    *,
    precision: Precision | None = None,
    calib_data: Path | None = None,
) -> Engine:
    """Build one engine and write it with its record; a failed build leaves nothing.

    Args:    model: `.onnx` of ours, or a checkpoint (`.pt`, run folder), exported and calibrated as needed.
             out: wanted path; suffix and precision are put right (`fused.engine` -> `fused.int8.xml` for target cpu).
             precision: forced; None takes the target's first that `model` allows.
             calib_data: dataset folder for INT8 ranges where `model` has none, and for FP16's range scan.
    Raises:  ArtifactError: `model` does not fit, the builder refuses it, or `out` would overwrite another engine's record
             or a graph that you made.
             UnavailableError: the builder is not installed, or this machine lacks the precision.
    """
    precision = precision or possible_precisions(model, target, can_calibrate=calib_data is not None)[0]
    if precision not in target.precisions:
        raise ArtifactError(f"target {target.name} builds {', '.join(target.precisions)}, not {precision}")
    path = engine_path(out, target, precision)
    require_free_names(path, model, precision)
    with _staging(path) as staging:
        source = source_onnx(model, target, precision, staging / f"{path.stem}.onnx", calib_data)
        made = sorted(p.name for p in staging.iterdir())  # graphs and ranges that were made on the way
        require_whole(source)
        built = _build(source, target, precision, staging, path.name)
        record = _record(source, target, precision, staging, built, kept=(*made, *built.kept))
        return _commit(staging, path, record)


class DryRow(Struct, frozen=True):
    """One engine that would be built: from which graph, and the stock tool's line that does the same."""

    precision: Precision
    engine: str
    onnx: str
    command: str = ""
    note: str = ""  # why there is no command here

    def text(self) -> str:
        """Two lines: what becomes what, and the stock tool's command (or why there is none)."""
        return f"  {self.precision:<5} {self.onnx} -> {self.engine}\n        {self.command or self.note}"


def dry_run(
    model: Path, target: Target, out: Path, *, precision: Precision | None = None, calib_data: Path | None = None
) -> list[DryRow]:
    """What `build_engine` would try, in order; writes nothing. Raises: ArtifactError: as `build_engine`."""
    wanted = (precision,) if precision else possible_precisions(model, target, can_calibrate=calib_data is not None)
    return [_dry_row(model, target, out, p) for p in wanted]


def _dry_row(model: Path, target: Target, out: Path, precision: Precision) -> DryRow:
    path = engine_path(out, target, precision)
    graph, how = planned_onnx(model, precision, path.stem)
    row = DryRow(precision=precision, engine=path.name, onnx=f"{graph} ({how} on the way)" if how else graph)
    if target.backend == "openvino":
        from tsss_edge.export.openvino_build import ovc_command

        return msgspec.structs.replace(row, command=ovc_command(graph, path.name))
    from tsss_edge.export.tensorrt_build import dry_command

    meta = Checkpoint.load(model).meta if is_checkpoint(model) else OnnxModel.load(model).meta
    try:
        command = dry_command(target, precision, graph, path.name, meta.preprocess.size_hw)
    except UnavailableError as error:
        return msgspec.structs.replace(row, note=str(error))
    return msgspec.structs.replace(row, command=command)


def engine_path(out: Path, target: Target, precision: Precision) -> Path:
    """`out` with the precision in its name and the back end's suffix: fused.engine -> fused.int8.xml."""
    stem = out.stem if out.suffix in KNOWN_SUFFIXES else out.name
    for tag in _PRECISION_TAGS:
        stem = stem.removesuffix(tag)
    return out.with_name(f"{stem}.{precision}{SUFFIXES[target.backend]}")


def require_free_record(path: Path) -> None:
    """Raise ArtifactError when the record's name is taken by another engine, or by a file that is no record."""
    record_path = Engine.record_path(path)
    if not record_path.exists():
        return
    try:
        files = read_json(record_path, EngineRecord).files
    except ArtifactError as error:
        raise ArtifactError(f"{record_path}: exists and is not an engine record; choose another --out name") from error
    if path.name not in files:
        raise ArtifactError(
            f"{record_path}: belongs to {next(iter(files), 'another engine')}; choose another --out name or folder for "
            f"{path.name}, so that both keep their record"
        )


def require_free_names(path: Path, model: Path, precision: Precision) -> None:
    """As `require_free_record`, and ArtifactError as well when a graph made on the way would replace one of another origin."""
    require_free_record(path)
    name, how = planned_onnx(model, precision, path.stem)
    if how:
        _require_ours(path.parent / name)


def _require_ours(graph: Path) -> None:
    """Raise ArtifactError when `graph` exists and no engine's record beside it says that it was made for that engine."""
    if graph.exists() and graph.name not in _kept_files(graph.parent):
        raise ArtifactError(
            f"{graph}: exists, and no `build-engine` made it; give it as MODEL, or choose another --out name or folder"
        )


def _kept_files(folder: Path) -> set[str]:
    kept: set[str] = set()
    for path in folder.glob("*.json"):
        try:
            kept.update(read_json(path, EngineRecord).flags.get("kept", ()))
        except ArtifactError:  # some other JSON file
            continue
    return kept


def require_whole(source: OnnxModel) -> None:
    """Raise ArtifactError when the graph's input is not the one its description promises."""
    import onnx

    graph = onnx.load(source.path).graph
    inputs = [i for i in graph.input if i.name == "image"]
    dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if inputs else []
    height, width = source.meta.preprocess.size_hw
    if not inputs or dims[1:] != [height, width, 3] or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        raise ArtifactError(
            f"{source.path}: its input is {dims or 'missing'}, its description says uint8 image (N,{height},{width},3); "
            "export it again from the checkpoint"
        )


def recorded_target(path: Path, record: EngineRecord) -> Target:
    """The target as it was when the engine at `path` was built. Raises: ArtifactError: its record holds none."""
    try:
        return msgspec.convert(record.flags.get("target"), Target)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path}: its record holds no target ({error}); build it with --target") from error


def build_summary(engine: Engine) -> str:
    """What was built, how it can be built with the stock tool, and what is still to be done; for a terminal."""
    record = engine.record
    layers = record.realised or record.flags.get("typed", {})
    told = f" (convolutions: {', '.join(f'{count} {kind}' for kind, count in layers.items())})" if layers else ""
    lines = [f"{engine.path}: {record.backend}, {record.precision}{told}, {record.device}"]
    lines += [f"  tried before: {name}: {error}" for name, error in record.flags.get("failed_attempts", {}).items()]
    if dropped := record.flags.get("given_back_to_fp16"):
        lines.append(f"  given back to FP16: {', '.join(dropped)}")
    if dla := record.flags.get("dla"):
        lines.append(f"  DLA: {msgspec.convert(dla, Dla).text()}")
    lines.append(f"  the same with the stock tool: {record.flags['command']}")
    if record.parity is None:
        lines.append(f"  not proven yet: tsss-edge parity {engine.path} --reference CHECKPOINT --data DATASET")
    return "\n".join(lines)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A folder beside `path` (same file system, so that moving is atomic) that vanishes at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _build(source: OnnxModel, target: Target, precision: Precision, staging: Path, name: str) -> Built:
    if target.backend == "openvino":
        from tsss_edge.export.openvino_build import build_ir

        return build_ir(source, target, precision, staging, name)
    from tsss_edge.export.tensorrt_build import build_plan

    return build_plan(source, target, precision, staging, name)


def _record(
    source: OnnxModel, target: Target, precision: Precision, staging: Path, built: Built, kept: tuple[str, ...]
) -> EngineRecord:
    meta = source.meta
    told = {
        "onnx": source.path.name,
        "batch": target.batch,
        "target": msgspec.to_builtins(target),
        "kept": list(
            kept
        ),  # beside the engine, not needed to run it: with them it is built and proven without the data
    }
    return EngineRecord(
        backend=target.backend,
        files={name: sha256_file(staging / name) for name in built.files},
        target=target.name,
        onnx_sha256=source.sha256,
        checkpoint_sha256=meta.checkpoint_sha256,
        arch=meta.arch,
        classes=meta.classes,
        preprocess=meta.preprocess,
        head=meta.head,
        objectness=meta.objectness,
        precision=precision,
        realised=built.realised,
        inputs=built.inputs,
        outputs=built.outputs,
        calibration=meta.calibration,
        device=built.device,
        versions=built.versions,
        flags=told | built.flags,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool=f"tsss-edge {tsss_edge.__version__}",
    )


def _commit(staging: Path, path: Path, record: EngineRecord) -> Engine:
    move_built(staging, path.parent, record)
    write_json(Engine.record_path(path), record)
    return Engine.load(path)


def move_built(folder: Path, home: Path, record: EngineRecord) -> None:
    """Move an engine's files and those kept beside it to `home`. Its record is the caller's to write, and the last: until then
    an older record refuses the files by their hashes.

    Raises: ArtifactError: a kept graph would replace another one that no build made; nothing is moved.
    """
    kept: list[str] = record.flags["kept"]
    for name in kept:
        there = home / name
        if name.endswith(".onnx") and there.exists() and sha256_file(there) != sha256_file(folder / name):
            _require_ours(there)
    for name in (*kept, *record.files):
        (folder / name).replace(home / name)
