"""An engine -> a Triton model repository: model file, `config.pbtxt`, record, and how to serve it.

Sources of the format: Triton's model repository and model configuration pages (github.com/triton-inference-server/server,
docs/user_guide). A graph of fixed batch is served with `max_batch_size: 0` and full shapes; a batch profile lets Triton batch.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Engine, EngineRecord, Reference, TensorSpec
from tsss_edge.errors import ArtifactError, GateError
from tsss_edge.export.build import folder_beside
from tsss_edge.seals import write_sealed

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32"}
QUEUE_DELAY_US = 2000  # Triton waits so long for a fuller batch: an eighth of a 60 fps frame
README = """# Triton model repository

    tritonserver --model-repository {folder}

Input `image`: uint8 RGB at {width}x{height} (fit {fit}). Output {outputs}. Class names stand in `{name}/labels.txt`, one a line, by id.
The engine is {engine}, built for {device} with {versions}; Triton must carry the same. `{name}/record.json` is its record:
prove it here before serving with `tsss-edge parity`.
"""


def write_repository(
    engine: Path | Engine,
    out: Path,
    *,
    name: str | None = None,
    instances: int = 1,
    reference: Path | Reference | None = None,
    eval_data: Path | None = None,
) -> Path:
    """Write a model repository to the folder `out` and return the model's folder.

    Args:    name: the model's name in Triton; default the engine's file name up to its first dot.
             instances: copies of the model that run side by side.
             reference, eval_data: checkpoint and labelled set; with both, the files in the repository pass the gate first.
    Raises:  ArtifactError: no engine, its hash is wrong, its kind is not served by Triton, or the model's folder exists.
             GateError: the files fail the gate; nothing is written.
    """
    loaded = Engine.load(engine) if isinstance(engine, Path) else engine
    record = loaded.record
    if record.backend == "tensorrt-rtx":
        raise ArtifactError(
            f"{loaded.path}: Triton has no back end for TensorRT-RTX; build for --target datacenter or cpu and serve that"
        )
    name = name or loaded.path.name.split(".")[0]
    folder = out / name
    if folder.exists():
        raise ArtifactError(f"{folder}: exists already; choose another --out or name")
    with folder_beside(folder) as staging:
        _fill(staging, loaded, name, instances)
        if reference is not None and eval_data is not None:
            prove(staging, loaded, reference, eval_data)
        staging.chmod(0o755)
        staging.rename(folder)
    _write_readme(out, name, loaded)
    return folder


def _fill(folder: Path, engine: Engine, name: str, instances: int) -> None:
    engine.require_tensors()
    version = folder / "1"
    version.mkdir()
    for file in engine.record.files:
        shutil.copyfile(engine.path.parent / file, version / _served_name(engine.record, file))
    shutil.copyfile(Engine.record_path(engine.path), folder / "record.json")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in engine.meta.classes.names))
    (folder / "config.pbtxt").write_text(config_text(engine.record, name, instances))


def prove(folder: Path, engine: Engine, reference: Path | Reference, eval_data: Path) -> None:
    """Run the parity gate on the model file as Triton will load it, and put the verdict into `record.json`.

    Raises: GateError: it fails.
    """
    from tsss_edge.parity import check_parity

    with tempfile.TemporaryDirectory(dir=folder) as name:
        copy = _as_engine(folder / "1", engine, Path(name))
        target = engine.record.build.target
        report = check_parity(
            copy, reference, eval_data, max_drop=target.max_drop, min_reference=target.min_reference, store=False
        )
        if not report:
            raise GateError(f"{engine.path}: not written to the repository: {report.verdict()}")
        write_sealed(folder / "record.json", msgspec.structs.replace(copy.record, parity=report.record()))


def _as_engine(served: Path, engine: Engine, folder: Path) -> Engine:
    """The served files under the names of the engine's record, with the hashes that they have now."""
    for file in engine.record.files:
        shutil.copyfile(served / _served_name(engine.record, file), folder / file)
    write_sealed(Engine.record_path(folder / engine.path.name), engine.record)
    return Engine.load(folder / engine.path.name)


def _served_name(record: EngineRecord, file: str) -> str:
    return f"model{'.plan' if record.backend == 'tensorrt' else Path(file).suffix}"


def config_text(record: EngineRecord, name: str, instances: int) -> str:
    """The text of `config.pbtxt` (protobuf text format of Triton's ModelConfig)."""
    free = record.inputs[0].shape[0] < 0
    _, usual, most = record.build.target.batch
    kind = "KIND_CPU" if record.backend == "openvino" else "KIND_GPU"
    served_by = 'backend: "openvino"' if record.backend == "openvino" else 'platform: "tensorrt_plan"'
    parts = [
        f'name: "{name}"',
        served_by,
        f"max_batch_size: {most if free else 0}",
        _tensors("input", record.inputs, free),
        _tensors("output", record.outputs, free),
        f"instance_group [\n  {{\n    kind: {kind}\n    count: {instances}\n  }}\n]",
    ]
    if free:
        sizes = ", ".join(map(str, dict.fromkeys((usual, most))))
        parts.append(
            f"dynamic_batching {{\n  preferred_batch_size: [ {sizes} ]\n"
            f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}"
        )
    return "\n".join(parts) + "\n"


def _tensors(field: str, specs: tuple[TensorSpec, ...], free: bool) -> str:
    items = [
        f'  {{\n    name: "{s.name}"\n    data_type: {TYPES[s.dtype]}\n'
        f"    dims: [ {', '.join(map(str, s.shape[1:] if free else s.shape))} ]\n  }}"
        for s in specs
    ]
    return f"{field} [\n" + ",\n".join(items) + "\n]"


def _write_readme(out: Path, name: str, engine: Engine) -> None:
    record = engine.record
    height, width = record.meta.preprocess.size_hw
    text = README.format(
        folder=out.name,
        name=name,
        width=width,
        height=height,
        fit=record.meta.preprocess.fit,
        outputs=", ".join(f"`{s.name}` ({s.dtype})" for s in record.outputs),
        engine=engine.path.name,
        device=record.device,
        versions=", ".join(f"{k} {v}" for k, v in record.versions.items()),
    )
    (out / "README.md").write_text(text)
