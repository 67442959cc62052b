"""A checkpoint or ONNX file -> the ONNX file an engine of one precision is built from, exported or calibrated as needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tsss_edge.artifacts import OnnxModel, Precision, Target
from tsss_edge.calib.sets import spread
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError

# What an ONNX file must be for an engine of each precision: bf16 is chosen by the CPU's runtime, not by the file.
_FILE_PRECISION: dict[Precision, Precision] = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8"}

TYPED_SUFFIX = ".trt.onnx"  # of graphs with the casts that TensorRT's strong typing wants
SCANNED = 32  # pictures for FP16's range scan: overflow is a matter of powers of two, not of percents


def is_checkpoint(model: Path) -> bool:
    """A `.pt` file or a run folder."""
    return model.suffix == ".pt" or model.is_dir()


def possible_precisions(model: Path, target: Target, *, can_calibrate: bool) -> tuple[Precision, ...]:
    """The precisions of the target that can be made from `model`, in the target's order.

    Raises: ArtifactError: none can, with the way out.
    """
    have: Precision = "fp32"
    if not is_checkpoint(model):
        given = OnnxModel.load(model)
        have, can_calibrate = given.meta.precision, can_calibrate or quantized_twin(given) is not None
    possible = tuple(p for p in target.precisions if _can_become(have, _FILE_PRECISION[p], can_calibrate))
    if not possible:
        raise ArtifactError(
            f"{model} is {have}, target {target.name} builds {', '.join(target.precisions)}; "
            "give the FP32 ONNX file or the checkpoint (for INT8 with --calib-data)"
        )
    return possible


def _can_become(have: Precision, need: Precision, can_calibrate: bool) -> bool:
    return need == have or (have == "fp32" and (need == "fp16" or (need == "int8" and can_calibrate)))


def quantized_twin(given: OnnxModel) -> OnnxModel | None:
    """The INT8 file that `calibrate` made of `given`, in the same folder; None where there is none.

    Files with TensorRT's casts (`NAME.int8.trt.onnx`) are made of such a twin and are none; what is not ours is passed by.
    """
    for path in sorted(given.path.parent.glob("*int8*.onnx")):
        if path.name.endswith(TYPED_SUFFIX):
            continue
        try:
            twin = OnnxModel.load(path)
        except ArtifactError:
            continue
        record = twin.meta.calibration
        if twin.meta.precision == "int8" and record is not None and record.onnx_sha256 == given.sha256:
            return twin
    return None


def planned_onnx(model: Path, precision: Precision, stem: str) -> tuple[str, str]:
    """(name of the graph that `source_onnx` would give, how it is made: "" when it is there already)."""
    need = _FILE_PRECISION[precision]
    if not is_checkpoint(model):
        given = OnnxModel.load(model)
        twin = quantized_twin(given) if need == "int8" else None
        if given.meta.precision == need or twin is not None:
            return (twin or given).path.name, ""
    made = {"fp32": "exported", "fp16": "exported" if is_checkpoint(model) else "cast", "int8": "calibrated"}
    return f"{stem}.onnx", made[need]


def source_onnx(model: Path, target: Target, precision: Precision, out: Path, calib_data: Path | None) -> OnnxModel:
    """The ONNX file for `precision`: `model` itself where it fits, its INT8 twin beside it, else made at `out`.

    What is made on the way to `out` lies in its folder as well: the float graph that was calibrated, and the ranges.
    Raises: ArtifactError: it cannot be made from `model`.
    """
    need = _FILE_PRECISION[precision]
    if not is_checkpoint(model):
        given = OnnxModel.load(model)
        return given if given.meta.precision == need else _convert(given, need, out, calib_data)
    if need == "fp32":
        return _export(model, target, out, "fp32")
    if need == "fp16":
        return _export(model, target, out, "fp16", _training_pictures(calib_data))
    floating = _export(model, target, out.with_name(f"{out.name.removesuffix('.int8.onnx')}.fp32.onnx"), "fp32")
    return _convert(floating, "int8", out, calib_data)


def _convert(given: OnnxModel, need: Precision, out: Path, calib_data: Path | None) -> OnnxModel:
    if given.meta.precision != "fp32":
        raise ArtifactError(
            f"{given.path} is {given.meta.precision}, {need} was asked; give the FP32 ONNX file or checkpoint"
        )
    if need == "fp16":
        return _half(given, out, calib_data)
    if (twin := quantized_twin(given)) is not None:
        return twin
    if calib_data is None:
        raise ArtifactError(
            f"INT8 needs ranges and {given.path} has none; give --calib-data DIR, or run `tsss-edge calibrate` first"
        )
    from tsss_edge.calib.calibrate import calibrate

    return calibrate(given, calib_data, out)


def _export(
    model: Path, target: Target, out: Path, precision: Precision, check_images: Sequence[Path] = ()
) -> OnnxModel:
    from tsss_edge.export.graph import export_onnx

    least, _, most = target.batch
    batch = most if least == most else 0
    return export_onnx(model, out, head=target.head, precision=precision, batch=batch, check_images=check_images)


def _half(given: OnnxModel, out: Path, calib_data: Path | None) -> OnnxModel:
    """FP16 casts; what overflows on the dataset's training pictures, or else on generated ones, stays FP32."""
    import onnx

    from tsss_edge.export.graph import generated_pictures, load_pictures, to_half

    spec = given.meta.preprocess
    pictures = load_pictures(_training_pictures(calib_data), spec) if calib_data else generated_pictures(spec)
    graph, meta = to_half(onnx.load(given.path), given.meta, pictures)
    return OnnxModel.save(out, graph, msgspec.structs.replace(meta, precision="fp16"))


def _training_pictures(data: Path | None) -> list[Path]:
    if data is None:
        return []
    dataset = VocDataset.open(data)
    return [dataset.image_path(i) for i in spread(dataset.ids("train"), SCANNED, seed=0)]
