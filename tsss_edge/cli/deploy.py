"""`export`, `calibrate`, `build-engine`: from a checkpoint to an engine."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tsss_edge.cli.common import Json, Split, emit, usage_errors

if TYPE_CHECKING:
    from tsss_edge.artifacts import Precision
    from tsss_edge.config import Target


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
    method: Annotated[MethodChoice, typer.Option(help="auto tries all and keeps the best.")] = MethodChoice.mse,
    seed: Annotated[int, typer.Option(min=0, help="Choice of pictures.")] = 0,
    search: Annotated[bool, typer.Option("--search", help="Give layers back to float until --max-drop holds.")] = False,
    max_drop: Annotated[float, typer.Option(min=0, help="mIoU points that --search may lose.")] = 0.3,
    allow_random: Annotated[
        bool, typer.Option("--allow-random", help="Noise instead of pictures; marked in the record.")
    ] = False,
    json: Json = None,
) -> None:
    """Find INT8 ranges on real pictures and write the Q/DQ graph that every device takes.

    `auto` and --search judge on a part of the training split that does not calibrate; what they tried is written to
    OUT.search.json and OUT.search.svg.
    Example: tsss-edge calibrate fused.onnx --data runs/synth --method auto --search --out fused.int8.onnx
    """
    from tsss_edge.calib.calibrate import calibrate as run

    result = run(
        model,
        data,
        out,
        calib_set=calib_set,
        size=size,
        method=method.value,
        seed=seed,
        max_drop=max_drop if search else None,
        allow_random=allow_random,
    )
    record = result.meta.calibration
    assert record is not None
    kept = f", in float: {', '.join(result.meta.float_nodes)}" if result.meta.float_nodes else ""
    text = f"{result.path}: INT8, {record.method} on {record.images} pictures of {record.split}{kept}"
    emit({"onnx": str(result.path), "sha256": result.sha256, "calibration": record}, text, json)


def build_engine(
    model: Annotated[Path, typer.Argument(help="Checkpoint or ONNX file; or an engine, to build it again here.")],
    target: Annotated[str | None, typer.Option(help="A target in export/ (cpu, rtx, ...) or a .toml file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Engine to write; the precision is added to its name.")] = None,
    precision: Annotated[PrecisionChoice | None, typer.Option(help="Force one (default: the target's choice).")] = None,
    calib_data: Annotated[Path | None, typer.Option(help="Dataset for INT8 ranges, where MODEL has none.")] = None,
    eval_data: Annotated[
        Path | None, typer.Option(help="Labelled set: build all candidates, keep the fastest that passes the gate.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Checkpoint for the gate (default: MODEL).")] = None,
    split: Split = "val",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be built.")] = False,
    json: Json = None,
) -> None:
    """Build an engine and its record; for a device that is not this machine, a build kit.

    Example: tsss-edge build-engine runs/camvid --target cpu --calib-data camvid --eval-data camvid --out fused.xml
    """
    if model.suffix in (".xml", ".engine"):
        return _build_again(model, reference, eval_data, split, json, given=(target, out, precision, calib_data))
    if target is None or out is None:
        raise typer.BadParameter("--target and --out are needed (they may be left out where MODEL is an engine)")
    from tsss_edge.config import load_target
    from tsss_edge.export.kit import kit_folder, runs_here, write_kit

    loaded = load_target(target)
    forced: Precision | None = precision.value if precision else None
    if dry_run:
        return _tell_dry_run(model, loaded, out, forced, calib_data, json)
    if not runs_here(loaded):
        folder = kit_folder(out, loaded)
        kit = write_kit(
            model,
            loaded,
            folder,
            calib_data=calib_data,
            reference=reference,
            eval_data=eval_data,
            split=split,
            precision=forced,
        )
        emit({"kit": str(folder), **msgspec.to_builtins(kit)}, kit.summary(folder), json)
    elif eval_data is not None:
        _choose(model, loaded, out, forced, calib_data, eval_data, reference, split, json)
    else:
        from tsss_edge.export.engine import build_engine as run
        from tsss_edge.export.engine import build_summary

        engine = run(model, loaded, out, precision=forced, calib_data=calib_data)
        emit({"engine": str(engine.path), "record": engine.record}, build_summary(engine), json)


def _choose(
    model: Path,
    target: Target,
    out: Path,
    precision: Precision | None,
    calib_data: Path | None,
    eval_data: Path,
    reference: Path | None,
    split: str,
    json: str | None,
) -> None:
    from tsss_edge.artifacts import Engine
    from tsss_edge.choose import choose_engine
    from tsss_edge.export.engine import build_summary

    with usage_errors():
        choice = choose_engine(
            model,
            target,
            out,
            eval_data=eval_data,
            precision=precision,
            reference=reference,
            calib_data=calib_data,
            split=split,
        )
    engine = Engine.load(out.parent / choice.engine)
    result = {"engine": str(engine.path), "choice": choice, "record": engine.record}
    emit(result, f"{choice.summary()}\n{build_summary(engine)}", json)


def _build_again(
    engine: Path,
    reference: Path | None,
    eval_data: Path | None,
    split: str,
    json: str | None,
    *,
    given: tuple[object, ...],
) -> None:
    if any(value is not None for value in given):
        raise typer.BadParameter("an engine is built again as its record says; give its ONNX file to change anything")
    from tsss_edge.errors import GateError
    from tsss_edge.rebuild import rebuild_engine

    rebuilt = rebuild_engine(engine, reference=reference, eval_data=eval_data, split=split)
    emit(rebuilt, rebuilt.summary(), json)
    if rebuilt.parity is not None and not rebuilt.parity:
        raise GateError(rebuilt.parity.verdict())


def _tell_dry_run(
    model: Path, target: Target, out: Path, precision: Precision | None, calib_data: Path | None, json: str | None
) -> None:
    from tsss_edge.export.engine import dry_run
    from tsss_edge.export.kit import kit_folder, runs_here

    rows = dry_run(model, target, out, precision=precision, calib_data=calib_data)
    here = runs_here(target)
    where = "on this machine" if here else f"on the device, from a build kit written to {kit_folder(out, target)}"
    emit({"here": here, "engines": rows}, "\n".join([f"would build {where}:", *(r.text() for r in rows)]), json)


def _pictures(data: Path | None, limit: int = 8) -> list[Path]:
    if data is None:
        return []
    from tsss_edge.data.voc import VocDataset

    dataset = VocDataset.open(data)
    split = "val" if "val" in dataset.splits else dataset.splits[0]
    return [dataset.image_path(image_id) for image_id in dataset.ids(split)[:limit]]
