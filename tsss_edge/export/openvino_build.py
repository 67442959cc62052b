"""OnnxModel -> OpenVINO IR, and the precision that each convolution really runs in on this machine."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from tsss_edge.artifacts import BuildInfo, EngineRecord, OnnxModel, Precision, Target, TensorSpec
from tsss_edge.backends.base import expected_outputs, import_extra, openvino_core
from tsss_edge.backends.ov import compile_ir, compile_options, read_ir
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import edge, sha256_file
from tsss_edge.machine import SEVEN_BITS, int8_saturates
from tsss_edge.onnxgraph.openvino_pairs import fast_pairs

_PRECISION_NAMES = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
_DTYPE_NAMES = {"u8": "uint8", "f32": "float32", "f16": "float16"}


def build_ir(source: OnnxModel, target: Target, precision: Precision, folder: Path, name: str) -> EngineRecord:
    """Write `name` (.xml) and its .bin into `folder`, then load them back and look at what runs.

    Raises: ArtifactError: OpenVINO cannot read the graph, or nothing of it runs in the asked precision.
            UnavailableError: OpenVINO is missing, or this CPU has no bf16.
    """
    ov = import_extra("openvino", "cpu")
    model = read_ir(source.path)
    _set_batch(model, source, target)
    if source.meta.calibration is not None:
        fast_pairs(model, source.graph, source.meta.calibration.others)
    path = folder / name
    with edge(path, "engine written by OpenVINO", "is the disk full?"):
        ov.save_model(model, path, compress_to_fp16=False)
    options = compile_options(precision, slots=1, threads=None)
    compiled = compile_ir(read_ir(path), "CPU", options)
    realised = realised_precisions(compiled)
    _require_precision(precision, realised)
    return EngineRecord(
        backend="openvino",
        files={file: sha256_file(folder / file) for file in (name, Path(name).with_suffix(".bin").name)},
        precision=precision,
        onnx_sha256=source.sha256,
        meta=source.meta,
        build=BuildInfo(
            target=target, onnx=source.path.name, command=ovc_command(source.path.name, name), options=options
        ),
        device=str(openvino_core().get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        inputs=(_spec("image", compiled.input("image")),),
        outputs=tuple(_spec(spec.name, compiled.output(spec.name)) for spec in expected_outputs(source.meta)),
        versions={"openvino": ov.get_version()},
        realised=realised,
    )


def ovc_command(onnx: str, name: str) -> str:
    """The line of OpenVINO's own tool that writes the same IR; of an INT8 file, the same without `fast_pairs`."""
    return shlex.join(["ovc", onnx, "--output_model", name, "--compress_to_fp16=False"])


def saturation_note(record: EngineRecord) -> str:
    """One line where an INT8 engine for the CPU will give wrong sums on this one; empty where all is well."""
    calibration = record.meta.calibration
    exact = calibration is not None and calibration.weight_bits < 8
    if record.backend != "openvino" or record.precision != "int8" or exact or not int8_saturates():
        return ""
    return f"this CPU has no VNNI, so INT8 sums of 8-bit weights saturate; for an engine that stays exact: {SEVEN_BITS}"


def realised_precisions(compiled: Any) -> dict[str, int]:
    """Convolutions of a compiled network, counted by the precision the CPU plugin chose for them."""
    counts: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        if info["layerType"].value in ("Convolution", "GroupConvolution", "Deconvolution"):
            kind = info["runtimePrecision"].value
            counts[_PRECISION_NAMES.get(kind, kind)] += 1
    return dict(sorted(counts.items()))


def _set_batch(model: Any, source: OnnxModel, target: Target) -> None:
    ov = import_extra("openvino", "cpu")
    shape = model.inputs[0].get_partial_shape()
    least, _, most = target.batch
    if shape[0].is_dynamic:
        shape[0] = ov.Dimension(least, most)
        model.reshape({model.inputs[0]: shape})
    elif (least, most) != (shape[0].get_length(),) * 2:
        raise ArtifactError(
            f"{source.path}: made for batches of {shape[0].get_length()}, target {target.name} wants {least} to {most}; "
            "export with --batch 0 (free)"
        )


def _require_precision(precision: Precision, realised: dict[str, int]) -> None:
    total = sum(realised.values())
    if precision == "bf16" and not realised.get("bf16"):
        raise UnavailableError(
            "this CPU has no bf16 instructions (OpenVINO ran the convolutions in FP32); use fp32 or int8"
        )
    if precision == "int8" and not realised.get("int8"):
        raise ArtifactError(
            f"INT8 was asked, but none of {total} convolutions runs in INT8; calibrate again and inspect the ONNX file"
        )


def _spec(name: str, port: Any) -> TensorSpec:
    shape = port.get_partial_shape()
    dims = tuple(-1 if d.is_dynamic else d.get_length() for d in shape)
    kind = port.get_element_type().get_type_name()
    return TensorSpec(name=name, dtype=_DTYPE_NAMES.get(kind, kind), shape=dims)
