"""A network -> a Triton model repository: versions, `config.pbtxt`, records, ensembles, and how to serve it.

models/
  fused/            config.pbtxt, labels.txt
    1/              model.xml, model.bin, model.json (the record: prove it with `tsss-edge parity`)
    2/              the next version beside it
  fused_jpeg/       ensemble: an encoded picture in, a label map out
  fused_frame/      ensemble: pixels in, a label map out
  config.json       the same networks for OpenVINO Model Server
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tsss_edge.artifacts import Engine, OnnxModel, Reference, TensorSpec
from tsss_edge.backends.base import expected_outputs, import_extra, openvino_core
from tsss_edge.backends.ov import read_ir
from tsss_edge.backends.triton_client import ServedDescription
from tsss_edge.deploy.triton_config import (
    LABELS,
    EnsembleStep,
    Runner,
    ServedNetwork,
    ensemble_config,
    network_config,
    ovms_config,
    step_config,
)
from tsss_edge.disk import held, scratch_folder
from tsss_edge.errors import ArtifactError, GateError, UnavailableError
from tsss_edge.files import sha256_file, write_bytes, write_json
from tsss_edge.seals import ONNX_DIGEST, seal_onnx, write_sealed

MAX_BATCH = 8
SAME = 1e-3  # logits of a picture alone and in a batch: another order of sums, not another network
README = """# Triton model repository

    tritonserver --model-repository {folder}

`{name}`: input `image`, uint8 RGB at {width}x{height} (fit {fit}); output {outputs}. Class names stand in `{name}/labels.txt`, one a
line, by id. {batching}

Served by Triton's `{runner}` back end. The network is {source}{built}. `{name}/1/model.json` is the record of an engine: prove what is
served, here or there, with `tsss-edge parity {name}/1/FILE --reference CHECKPOINT --data DATASET`.
{ensembles}"""
ENSEMBLES = """
`{name}_jpeg` takes `jpeg`, the bytes of an encoded picture (uint8, one dimension); `{name}_frame` takes `frame`, uint8 RGB
(H,W,3). Both give `labels`, uint8 (H,W), as `tsss-edge segment` writes them. Their
steps run in Triton's Python and need `pip install tsss-edge` there.
"""

FRAME = TensorSpec(name="frame", dtype="uint8", shape=(-1, -1, 3))
JPEG = TensorSpec(name="jpeg", dtype="uint8", shape=(-1,))
FRAME_HW = TensorSpec(name="frame_hw", dtype="int32", shape=(2,))
LABEL_MAP = TensorSpec(name="labels", dtype="uint8", shape=(-1, -1))


def write_repository(
    model: Path | Engine | OnnxModel,
    out: Path,
    *,
    name: str | None = None,
    instances: int = 1,
    max_batch: int = MAX_BATCH,
    python: bool = False,
    ensemble: bool = False,
    next_version: bool = False,
    reference: Path | Reference | None = None,
    eval_data: Path | None = None,
) -> Path:
    """Write a model repository to the folder `out` and return the network's folder.

    Args:    model: engine (`.xml`, `.engine` of TensorRT) or ONNX file.
             name: the network's name in Triton; default its file name up to its first dot.
             instances: copies of it that run side by side. max_batch: pictures that Triton may put into one call; 1: none. A
             graph of one picture is given a free batch where its answers stay the same, which is tried here.
             python: run it by our own model.py, where Triton has only the Python back end.
             ensemble: add `NAME_jpeg` and `NAME_frame`: a picture in, a label map out.
             next_version: put it beside the versions that are there.
             reference, eval_data: checkpoint and labelled set; with both, the files in the repository pass the gate first.
    Raises:  ArtifactError: its hash is wrong, its kind is not served by Triton, the network's folder exists, or (of a next
             version) it does not, or takes or gives something else.
             GateError: the files fail the gate; nothing is written.
    """
    loaded = _loaded(model) if isinstance(model, Path) else model
    name = name or loaded.path.name.split(".")[0]
    folder = out / name
    if next_version != folder.exists():
        raise ArtifactError(
            f"{folder}: does not exist; leave --next-version out for the first"
            if next_version
            else f"{folder}: exists already; choose another --out or name, or --next-version to put a version beside it"
        )
    if ensemble:
        _require_own_steps(out, name)
    with held(folder, f"{folder}: this network"), scratch_folder(_staging_home(folder)) as staging:
        version = staging / str(_next_version(folder))
        served = _fill(version, loaded, name, instances, max_batch, python=python)
        if ensemble and not served.max_batch and (size := served.inputs[0].shape[0]) > 1:
            raise ArtifactError(
                f"{loaded.path}: takes {size} pictures at a time, and the ensemble's first step makes one; serve it without --ensemble"
            )
        if reference is not None and eval_data is not None:
            prove(version / served.file, reference, eval_data)
        config = network_config(served)
        if next_version:
            _require_same(folder, config)
            version.rename(folder / version.name)
        else:
            (staging / LABELS).write_text("".join(f"{label}\n" for label in loaded.meta.classes.names))
            (staging / "config.pbtxt").write_text(config)
            staging.chmod(0o755)
            staging.rename(folder)
    if ensemble:
        with scratch_folder(_staging_home(folder)) as made:
            _write_ensembles(made, loaded, served)
            for step in made.iterdir():
                _put(step, out / step.name)
    with held(out / "config.json", f"{out}: its list of networks", wait_s=10):
        write_bytes(out / "config.json", ovms_config(_for_ovms(out)))
    _write_readme(out, loaded, served, ensemble=ensemble)
    return folder


def _loaded(path: Path) -> Engine | OnnxModel:
    if path.suffix == ".onnx":
        return OnnxModel.load(path)
    engine = Engine.load(path)
    engine.require_tensors()
    if engine.record.inputs[0].shape[0] < 0 and (least := engine.record.build.target.batch[0]) > 1:
        raise ArtifactError(
            f"{path}: takes {least} pictures at least, and a client may send one; build an engine whose target has a least batch of 1"
        )
    return engine


def _require_own_steps(out: Path, name: str) -> None:
    """Raise ArtifactError where a network already has a name that a part of the ensembles wants."""
    for part in (f"{name}_{ending}" for ending in ("jpeg", "frame", "from_jpeg", "from_frame", "post")):
        config, step = out / part / "config.pbtxt", out / part / "1/model.py"
        ours = step.is_file() and any(f"{kind}Model as" in step.read_text() for kind in ("Pre", "Post"))
        if config.is_file() and not ours and 'platform: "ensemble"' not in config.read_text():
            raise ArtifactError(
                f"{out / part}: a network has the name of a part of this ensemble; choose another --name"
            )


def _put(made: Path, place: Path) -> None:
    """A folder to its place, as a whole; where one is already, its files in place of those there."""
    if not place.exists():
        made.rename(place)
        return
    for path in (path for path in made.rglob("*") if path.is_file()):
        target = place / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _staging_home(folder: Path) -> Path:
    """Where a network is made: not in the repository, for a server that polls it takes every folder there for a network. A version of
    one that is there is made in its folder, in which the server looks at numbers alone."""
    if folder.exists():
        return folder
    repository = folder.parent
    repository.mkdir(parents=True, exist_ok=True)
    above = repository.resolve().parent
    return above if above.stat().st_dev == repository.stat().st_dev and os.access(above, os.W_OK) else repository


def _next_version(folder: Path) -> int:
    taken = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()] if folder.is_dir() else []
    return max(taken, default=0) + 1


def _require_same(folder: Path, config: str) -> None:
    """A client must not notice that another version answers."""
    if (folder / "config.pbtxt").read_text() != config:
        raise ArtifactError(
            f"{folder}: its config.pbtxt is not that of the new version (other inputs, outputs, batch or settings); "
            "give the same options, or another --name"
        )


def prove(model: Path, reference: Path | Reference, eval_data: Path) -> None:
    """Run the parity gate on a model file as Triton will load it; an engine's record beside it keeps the verdict.

    Raises: GateError: it fails.
    """
    from tsss_edge.parity import check_parity

    limits: dict[str, Any] = {}
    if model.suffix != ".onnx":
        target = Engine.load(model).record.build.target
        limits = {"max_drop": target.max_drop, "min_reference": target.min_reference}
    report = check_parity(model, reference, eval_data, **limits)
    if not report:
        raise GateError(f"{model.name}: not written to the repository: {report.verdict()}")


# ---------------------------------------------------------------------------------------------------------------------
# The network


def _fill(
    version: Path, model: Engine | OnnxModel, name: str, instances: int, max_batch: int, *, python: bool
) -> ServedNetwork:
    """Write the files of one version."""
    version.mkdir()
    runner, file = _runner(model), f"model{model.path.suffix}"
    free = max_batch > 1 and _free_batch(model, version / file)
    if not free:
        _copy(model, version, file)
    if isinstance(model, Engine):
        _write_record(model, version / file, most=max_batch if free else None)
    if python:
        write_python_model(version, "Network", {"file": file})
    inputs, outputs = _tensors(model)
    free = free or (max_batch > 1 and inputs[0].shape[0] < 0)
    whole = [_sized(specs, free=free) for specs in (inputs, outputs)]
    return ServedNetwork(
        name=name,
        runner="python" if python else runner,
        file=file,
        inputs=whole[0],
        outputs=whole[1],
        max_batch=_most(model, max_batch) if free else 0,
        instances=instances,
        gpu=runner == "tensorrt",
        precision=model.record.precision if isinstance(model, Engine) else model.meta.precision,
        description=msgspec.json.encode(ServedDescription(model.meta.classes, model.meta.preprocess)).decode(),
    )


def _runner(model: Engine | OnnxModel) -> Runner:
    if isinstance(model, OnnxModel):
        return "onnxruntime"
    if model.record.backend == "tensorrt-rtx":
        raise ArtifactError(
            f"{model.path}: Triton has no back end for TensorRT-RTX; build for --target datacenter or cpu and serve that"
        )
    return "tensorrt" if model.record.backend == "tensorrt" else "openvino"


def _tensors(model: Engine | OnnxModel) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
    """Inputs and outputs with the batch, -1 where it is free."""
    if isinstance(model, Engine):
        return model.record.inputs, model.record.outputs
    batch = model.graph.graph.input[0].type.tensor_type.shape.dim[0]
    size = -1 if batch.dim_param else batch.dim_value
    image = TensorSpec(name="image", dtype="uint8", shape=(size, *model.meta.preprocess.size_hw, 3))
    outputs = [msgspec.structs.replace(s, shape=(size, *s.shape[1:])) for s in expected_outputs(model.meta)]
    return (image,), outputs


def _sized(specs: Sequence[TensorSpec], *, free: bool) -> tuple[TensorSpec, ...]:
    """Without the batch where Triton counts it; of a graph with a free batch that is not batched, with a batch of 1."""
    return tuple(
        msgspec.structs.replace(s, shape=s.shape[1:] if free else (max(1, s.shape[0]), *s.shape[1:])) for s in specs
    )


def _most(model: Engine | OnnxModel, wanted: int) -> int:
    """An engine of a free batch takes the largest that it was built for; a graph takes any, and so does an IR that was freed here."""
    if isinstance(model, Engine) and model.record.inputs[0].shape[0] < 0:
        return min(wanted, model.record.build.target.batch[2])
    return wanted


def _copy(model: Engine | OnnxModel, version: Path, file: str) -> None:
    shutil.copyfile(model.path, version / file)
    if model.path.suffix == ".xml":
        shutil.copyfile(model.path.with_suffix(".bin"), version / "model.bin")


def _write_record(engine: Engine, served: Path, *, most: int | None) -> None:
    """The engine's record for the served files. most: pictures that it takes now; None: as before. A verdict holds for the file that
    was judged, so not for a changed one."""
    record = engine.record
    files = {p.name: sha256_file(p) for p in (served, served.with_suffix(".bin")) if p.is_file()}
    if most is not None:
        inputs, outputs = (
            tuple(msgspec.structs.replace(s, shape=(-1, *s.shape[1:])) for s in specs)
            for specs in (record.inputs, record.outputs)
        )
        target = msgspec.structs.replace(record.build.target, batch=(1, most, most))
        build = msgspec.structs.replace(record.build, target=target)
        record = msgspec.structs.replace(record, inputs=inputs, outputs=outputs, build=build, parity=None)
    write_sealed(served.with_suffix(".json"), msgspec.structs.replace(record, files=files, signature=""))


def _free_batch(model: Engine | OnnxModel, out: Path) -> bool:
    """Write a graph of one picture with a free batch, if a picture's answers in a batch are those it gives alone."""
    if _tensors(model)[0][0].shape[0] != 1 or model.path.suffix == ".engine":
        return False
    try:
        ov, core = import_extra("openvino", "cpu"), openvino_core()
    except UnavailableError:
        return False
    graph = read_ir(model.path)
    alone = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    try:
        graph.reshape([-1, *list(graph.inputs[0].shape)[1:]])
        together = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        if not _same_answers(alone, together, tuple(graph.inputs[0].partial_shape)[1:]):
            return False
    except RuntimeError:  # a shape inside the graph counts on one picture
        return False
    if isinstance(model, Engine):
        ov.save_model(graph, out, compress_to_fp16=False)
    else:
        _write_free_onnx(model, out)
    return True


def _same_answers(alone: Any, together: Any, shape: Sequence[Any]) -> bool:
    pictures = np.random.default_rng(0).integers(0, 256, (3, *(int(d.get_length()) for d in shape)), np.uint8)
    batch = {port.get_any_name(): np.array(value) for port, value in together(pictures).items()}
    for row in range(len(pictures)):
        for port, value in alone(pictures[row : row + 1]).items():
            if not np.allclose(value[0], batch[port.get_any_name()][row], rtol=SAME, atol=SAME):
                return False
    return True


def _write_free_onnx(model: OnnxModel, out: Path) -> None:
    import onnx

    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    del graph.graph.value_info[:]
    for tensor in (*graph.graph.input, *graph.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    plain = [entry for entry in graph.metadata_props if entry.key != ONNX_DIGEST]
    del graph.metadata_props[:]
    graph.metadata_props.extend(plain)
    write_bytes(out, seal_onnx(graph.SerializeToString(deterministic=True))[0])


# ---------------------------------------------------------------------------------------------------------------------
# What stands around it


def write_python_model(version: Path, kind: str, settings: dict[str, Any]) -> None:
    """A `model.py` of Triton's Python back end: one of the classes of `triton_python.py`, with its settings beside it."""
    write_json(version / "settings.json", settings)
    text = f"from tsss_edge.deploy.triton_python import {kind}Model as TritonPythonModel\n\n__all__ = ['TritonPythonModel']\n"
    (version / "model.py").write_text(text)


def _write_ensembles(out: Path, model: Engine | OnnxModel, served: ServedNetwork) -> None:
    """`NAME_jpeg`, `NAME_frame` and their steps. They name the network's newest version, so that they are written once."""
    name, height_width = served.name, model.meta.preprocess.size_hw
    batch = -1 if served.max_batch else 1
    image = TensorSpec(name="image", dtype="uint8", shape=(batch, *height_width, 3))
    classes = next(s for s in _tensors(model)[1] if s.name in ("logits", "labels"))
    classes = msgspec.structs.replace(classes, shape=(batch, *classes.shape[1:]))
    grid = msgspec.structs.replace(classes, name="classes")
    _write_step(out, f"{name}_post", "Post", model, (grid, FRAME_HW), (LABEL_MAP,), network_output=classes.name)
    for given in (JPEG, FRAME):
        _write_step(
            out, f"{name}_from_{given.name}", "Pre", model, (given,), (image, FRAME_HW), network_output=classes.name
        )
        steps = (
            EnsembleStep(
                f"{name}_from_{given.name}", {given.name: given.name}, {"image": "image", "frame_hw": "frame_hw"}
            ),
            EnsembleStep(name, {"image": "image"}, {classes.name: "classes"}),
            EnsembleStep(f"{name}_post", {"classes": "classes", "frame_hw": "frame_hw"}, {"labels": "labels"}),
        )
        folder = out / f"{name}_{given.name}"
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(ensemble_config(folder.name, (given,), (LABEL_MAP,), steps))


def _write_step(
    out: Path,
    name: str,
    kind: str,
    model: Engine | OnnxModel,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    network_output: str,
) -> None:
    version = out / name / "1"
    version.mkdir(parents=True)
    settings = {"preprocess": msgspec.to_builtins(model.meta.preprocess), "network_output": network_output}
    write_python_model(version, kind, settings)
    (out / name / "config.pbtxt").write_text(step_config(name, inputs, outputs))


def _for_ovms(out: Path) -> list[str]:
    found = (p for p in out.glob("*/*/model.*") if p.parent.name.isdecimal() and p.suffix in (".xml", ".onnx"))
    return sorted({p.parent.parent.name for p in found})


def _write_readme(out: Path, model: Engine | OnnxModel, served: ServedNetwork, *, ensemble: bool) -> None:
    height, width = model.meta.preprocess.size_hw
    built = ""
    if isinstance(model, Engine):
        versions = ", ".join(f"{k} {v}" for k, v in model.record.versions.items())
        built = f", built for {model.record.device} with {versions}; Triton must carry the same"
    text = README.format(
        folder=out.name,
        name=served.name,
        width=width,
        height=height,
        fit=model.meta.preprocess.fit,
        outputs=", ".join(f"`{s.name}` ({s.dtype})" for s in served.outputs),
        runner=served.runner,
        source=model.path.name,
        built=built,
        batching=f"Up to {served.max_batch} requests share a call."
        if served.max_batch
        else "It takes one picture a call: requests are not batched.",
        ensembles=ENSEMBLES.format(name=served.name) if ensemble else "",
    )
    (out / "README.md").write_text(text)
