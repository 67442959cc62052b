"""`export`, `calibrate`, `build-engine`: from a checkpoint to an engine."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.common import Json, emit


class HeadChoice(str, Enum):
    """Class output of the graph."""

    logits = "logits"
    labels = "labels"
    both = "both"


class FloatChoice(str, Enum):
    """Precision of an exported graph."""

    fp32 = "fp32"
    fp16 = "fp16"


class PrecisionChoice(str, Enum):
    """Precision of an engine."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class MethodChoice(str, Enum):
    """How activation ranges are chosen."""

    auto = "auto"
    minmax = "minmax"
    entropy = "entropy"
    percentile = "percentile"
    mse = "mse"


def register(parent: typer.Typer) -> None:
    for command in (export, calibrate):
        parent.command()(command)
    parent.command("build-engine")(build_engine)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or its run folder.")],
    out: Annotated[Path, typer.Option(help="ONNX file to write.")],
    head: Annotated[
        HeadChoice, typer.Option(help="logits (stride 8), labels (in-graph upsample + argmax), both.")
    ] = HeadChoice.logits,
    objectness: Annotated[bool, typer.Option("--objectness", help="Add L-Net's class-agnostic output.")] = False,
    precision: Annotated[FloatChoice, typer.Option(help="fp32, or fp16 by casts in the graph.")] = FloatChoice.fp32,
    batch: Annotated[int, typer.Option(min=0, help="Batch size of the graph; 0 leaves it free.")] = 1,
    data: Annotated[Path | None, typer.Option(help="Check against PyTorch on pictures of this set (val).")] = None,
    json: Json = None,
) -> None:
    """Write the fused inference graph as ONNX and check it against PyTorch.

    Example: tsss-edge export runs/method --out runs/method/fused.onnx --objectness --data runs/synth
    """
    from tsss_edge.export.graph import export_onnx

    model = export_onnx(
        checkpoint,
        out,
        head=head.value,
        objectness=objectness,
        precision=precision.value,
        batch=batch,
        check_images=_pictures(data),
    )
    text = f"{model.path}: {model.meta.arch}, {model.meta.precision}, head {model.meta.head}, agrees with PyTorch"
    emit({"onnx": str(model.path), "sha256": model.sha256, "meta": model.meta}, text, json)


def calibrate(
    model: Annotated[Path, typer.Argument(help="Float ONNX file made by `tsss-edge export`.")],
    out: Annotated[Path, typer.Option(help="INT8 ONNX file to write.")],
    data: Annotated[Path, typer.Option(help="Dataset folder; its training split calibrates.")],
    calib_set: Annotated[str | None, typer.Option(help="A set in calib/ or a .toml file.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 512,
    method: Annotated[MethodChoice, typer.Option(help="auto tries all and keeps the best.")] = MethodChoice.minmax,
    seed: Annotated[int, typer.Option(help="Choice of pictures.")] = 0,
    allow_random: Annotated[
        bool, typer.Option("--allow-random", help="Noise instead of pictures; marked in the record.")
    ] = False,
    json: Json = None,
) -> None:
    """Find INT8 ranges on real pictures and write the Q/DQ graph that every device takes.

    Example: tsss-edge calibrate fused.onnx --data runs/synth --method minmax --out fused.int8.onnx
    """
    from tsss_edge.calib.calibrate import calibrate as run

    result = run(
        model, data, out, calib_set=calib_set, size=size, method=method.value, seed=seed, allow_random=allow_random
    )
    record = result.meta.calibration
    assert record is not None
    text = f"{result.path}: INT8, {record.method} on {record.images} pictures of {record.split}"
    emit({"onnx": str(result.path), "sha256": result.sha256, "calibration": record}, text, json)


def build_engine(
    model: Annotated[Path, typer.Argument(help="ONNX file (or checkpoint) to build from.")],
    target: Annotated[str, typer.Option(help="A target in export/ (cpu, rtx, ...) or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Engine to write; the precision is added to its name.")],
    precision: Annotated[PrecisionChoice | None, typer.Option(help="Force one (default: the target's choice).")] = None,
    calib_data: Annotated[
        Path | None, typer.Option(help="Dataset for INT8 ranges, when MODEL is a checkpoint.")
    ] = None,
    json: Json = None,
) -> None:
    """Build an engine and its record.

    Example: tsss-edge build-engine fused.int8.onnx --target cpu --out fused.xml
    """
    from tsss_edge.config import load_target
    from tsss_edge.export.engine import build_engine as run

    engine = run(
        model, load_target(target), out, precision=precision.value if precision else None, calib_data=calib_data
    )
    record = engine.record
    realised = ", ".join(f"{count} x {kind}" for kind, count in record.realised.items())
    text = f"{engine.path}: {record.backend}, {record.precision}{f' (layers: {realised})' if realised else ''}"
    emit({"engine": str(engine.path), "record": record}, text, json)


def _pictures(data: Path | None, limit: int = 8) -> list[Path]:
    if data is None:
        return []
    from tsss_edge.data.voc import VocDataset

    dataset = VocDataset.open(data)
    split = "val" if "val" in dataset.splits else dataset.splits[0]
    return [dataset.image_path(image_id) for image_id in dataset.ids(split)[:limit]]
