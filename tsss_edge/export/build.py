"""Model + Target -> Engine: the plain file that stock tools load and its record, written together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import get_args

import msgspec

import tsss_edge
from tsss_edge.artifacts import Checkpoint, Engine, OnnxModel, Precision, Struct, Target
from tsss_edge.disk import held, scratch_folder, swap_in
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.onnx_export import EngineSources
from tsss_edge.export.openvino_build import build_ir, ovc_command, saturation_note
from tsss_edge.files import parse_json, sha256_file
from tsss_edge.onnxgraph.sessions import OpenVinoCompiler
from tsss_edge.seals import write_sealed

SUFFIXES = {"openvino": ".xml", "tensorrt": ".engine", "tensorrt-rtx": ".engine"}
KNOWN_SUFFIXES = (".xml", ".engine", ".plan", ".onnx")


def build_engine(
    model: Path | Checkpoint | OnnxModel,
    target: Target,
    out: Path,
    *,
    precision: Precision | None = None,
    calib_data: Path | None = None,
) -> Engine:
    """Build one engine and write it with its record; a failed build leaves nothing.

    Args:    model: a graph of ours, or a checkpoint, exported and calibrated as needed; loaded or by its path.
             out: wanted path; suffix and precision are put right (`fused.engine` -> `fused.int8.xml` for target cpu).
             precision: forced; None takes the target's first that `model` allows and this machine runs.
             calib_data: dataset folder for INT8 ranges where `model` has none, and for FP16's range scan.
    Raises:  ArtifactError: `model` does not fit, the builder refuses it, or `out` would overwrite another engine's record
             or a graph that you made.
             UnavailableError: the builder is not installed, or this machine lacks the precision.
    """
    sources = EngineSources(model, target, calib_data)
    precision = sources.wanted(precision)[0] if precision is not None else first_served(sources)
    path = engine_path(out, target, precision)
    require_free_names(path, sources, precision)
    with folder_beside(path) as folder:
        return publish(build_in(folder, path.name, sources, precision), path.parent)


def first_served(sources: EngineSources) -> Precision:
    """The target's first precision that the model allows and, for OpenVINO, this CPU runs: not every CPU has bf16."""
    possible = sources.possible()
    if sources.target.backend != "openvino":
        return possible[0]
    served = ("int8", *OpenVinoCompiler().floats)
    return next((precision for precision in possible if precision in served), possible[0])


def build_in(folder: Path, name: str, sources: EngineSources, precision: Precision) -> Engine:
    """Build the engine `name` in `folder`, beside the graphs that are made for it. Its record is not written yet.

    Raises: ArtifactError, UnavailableError: as `build_engine`.
    """
    source = sources.graph(precision, folder, engine_base(Path(name)))
    require_whole(source)
    run_builder = build_ir
    if sources.target.backend != "openvino":
        from tsss_edge.export.tensorrt_build import build_plan as run_builder
    record = run_builder(source, sources.target, precision, folder, name)
    build = msgspec.structs.replace(record.build, kept=(*sources.kept(precision), *record.build.kept))
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    tool = f"tsss-edge {tsss_edge.__version__}"
    record = msgspec.structs.replace(record, build=build, created=created, tool=tool)
    return Engine(path=folder / name, record=record)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A scratch folder in that of `path`, while no other process builds an engine of this name there."""
    base = engine_base(path)
    with held(path.with_name(base), f"{path.with_name(base)}: this engine"), scratch_folder(path.parent) as folder:
        yield folder


def publish(engine: Engine, home: Path) -> Engine:
    """Move an engine, its record and what is kept beside it to `home`, all together: a kill leaves the old engine or the new.

    Raises: ArtifactError: a kept graph would replace another one that no build made; nothing is moved.
    """
    folder, record = engine.path.parent, engine.record
    for name in record.build.kept:
        there = home / name
        if name.endswith(".onnx") and there.exists() and sha256_file(there) != sha256_file(folder / name):
            _require_ours(there)
    written = Engine.record_path(home / engine.path.name).name
    still = [name for name in _kept_before(home / engine.path.name) if (home / name).is_file()]
    kept = tuple(dict.fromkeys((*record.build.kept, *still)))  # also of an earlier build: they stay ours
    engine = msgspec.structs.replace(
        engine, record=msgspec.structs.replace(record, build=msgspec.structs.replace(record.build, kept=kept))
    )
    write_sealed(folder / written, engine.record)
    swap_in(folder, home, (*record.build.kept, *record.files, written), engine.path.name)
    return msgspec.structs.replace(engine, path=home / engine.path.name)


def _kept_before(path: Path) -> tuple[str, ...]:
    """Files that the record of an engine that is there speaks for; none of a damaged record, which is about to be replaced."""
    try:
        return Engine.load_record(path).build.kept if Engine.record_path(path).is_file() else ()
    except ArtifactError:
        return ()


# ---------------------------------------------------------------------------------------------------------------------
# Names, and what may not be overwritten


def engine_path(out: Path, target: Target, precision: Precision) -> Path:
    """`out` with the precision in its name and the back end's suffix: fused.engine -> fused.int8.xml."""
    return out.with_name(f"{engine_base(out)}.{precision}{SUFFIXES[target.backend]}")


def engine_base(out: Path) -> str:
    """The name without suffix and precision: fused.int8.xml -> fused."""
    stem = out.stem if out.suffix in KNOWN_SUFFIXES else out.name
    for tag in get_args(Precision):
        stem = stem.removesuffix(f".{tag}")
    return stem


class _Claim(msgspec.Struct):
    """What every format of the engine record has: the files that it speaks of, and those kept beside them."""

    class Kept(msgspec.Struct):
        kept: tuple[str, ...] = ()

    files: dict[str, str]
    build: Kept = msgspec.field(default_factory=Kept)


def _read_claim(record_path: Path) -> _Claim | None:
    """None for another JSON file."""
    try:
        return parse_json(record_path.read_bytes(), _Claim)
    except msgspec.DecodeError:
        return None


def require_free_names(path: Path, sources: EngineSources, precision: Precision) -> None:
    """Raise ArtifactError when the engine's record would replace another file, or a graph made on the way one that you made."""
    record_path = Engine.record_path(path)
    if record_path.exists():
        if (claim := _read_claim(record_path)) is None:
            raise ArtifactError(f"{record_path}: exists and is not an engine record; choose another --out name")
        if path.name not in claim.files:
            raise ArtifactError(
                f"{record_path}: belongs to {next(iter(claim.files), 'another engine')}; choose another --out name or "
                f"folder for {path.name}, so that both keep their record"
            )
    for name in sources.planned(precision, engine_base(path)):
        _require_ours(path.parent / name)


def _require_ours(graph: Path) -> None:
    """Raise ArtifactError when `graph` exists and no engine's record beside it says that it was made for that engine."""
    claims = (_read_claim(path) for path in graph.parent.glob("[!.]*.json"))
    if graph.exists() and not any(claim and graph.name in claim.build.kept for claim in claims):
        raise ArtifactError(
            f"{graph}: exists, and no `build-engine` made it; give it as MODEL, or choose another --out name or folder"
        )


def require_whole(source: OnnxModel) -> None:
    """Raise ArtifactError when the graph's input is not the one its description promises."""
    from onnx import TensorProto

    image = next((i.type.tensor_type for i in source.graph.graph.input if i.name == "image"), None)
    dims = [d.dim_value for d in image.shape.dim] if image else []
    height, width = source.meta.preprocess.size_hw
    if image is None or dims[1:] != [height, width, 3] or image.elem_type != TensorProto.UINT8:
        raise ArtifactError(
            f"{source.path}: its input is {dims or 'missing'}, its description says uint8 image (N,{height},{width},3); "
            "export it again from the checkpoint"
        )


# ---------------------------------------------------------------------------------------------------------------------
# What is told


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
    model: Path | Checkpoint | OnnxModel,
    target: Target,
    out: Path,
    *,
    precision: Precision | None = None,
    calib_data: Path | None = None,
) -> list[DryRow]:
    """What `build_engine` would try, in order; writes nothing. Raises: ArtifactError: as `build_engine`."""
    sources = EngineSources(model, target, calib_data)
    return [_dry_row(sources, out, p) for p in sources.wanted(precision)]


def _dry_row(sources: EngineSources, out: Path, precision: Precision) -> DryRow:
    target = sources.target
    path = engine_path(out, target, precision)
    base = engine_base(path)
    graph, how = sources.name(precision, base), sources.planned(precision, base)
    command = note = ""
    try:
        if target.backend == "openvino":
            command = ovc_command(graph, path.name)
        else:
            from tsss_edge.export.tensorrt_build import dry_command

            command = dry_command(target, precision, graph, path.name, sources.model.meta.preprocess.size_hw)
    except UnavailableError as error:
        note = str(error)
    onnx = f"{graph} ({how[graph]} on the way)" if how else graph
    return DryRow(precision=precision, engine=path.name, onnx=onnx, command=command, note=note)


def build_summary(engine: Engine) -> str:
    """What was built, how it can be built with the stock tool, and what is still to be done; for a terminal."""
    record, build = engine.record, engine.record.build
    layers = record.realised or build.typed
    told = f" (convolutions: {', '.join(f'{count} {kind}' for kind, count in layers.items())})" if layers else ""
    lines = [f"{engine.path}: {record.backend}, {record.precision}{told}, {record.device}"]
    lines += [f"  tried before: {name}: {error}" for name, error in build.failed_attempts.items()]
    if build.given_back_to_fp16:
        lines.append(f"  given back to FP16: {', '.join(build.given_back_to_fp16)}")
    if build.dla is not None:
        lines.append(f"  DLA: {build.dla.text()}")
    if note := saturation_note(record):
        lines.append(f"  {note}")
    ours = record.backend == "openvino" and record.precision == "int8"
    like = "with the stock tool, a little slower" if ours else "the same with the stock tool"
    lines.append(f"  {like}: {build.command}")
    if record.parity is None:
        reference = "CHECKPOINT" if record.meta.imported is None else "FLOAT.onnx"
        lines.append(f"  not proven yet: tsss-edge parity {engine.path} --reference {reference} --data DATASET")
    return "\n".join(lines)
