"""`build-engine`: an engine for this machine, or a build kit for another."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tsss_edge.cli.options import Json, Split, emit, usage_errors

if TYPE_CHECKING:
    from tsss_edge.artifacts import Precision, Target


class PrecisionChoice(str, Enum):
    """Precision of an engine."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


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
    from tsss_edge.deploy.kit import kit_folder, runs_here, write_kit

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
    else:
        _build_here(model, loaded, out, forced, calib_data, eval_data, reference, split, json)


def _build_here(
    model: Path,
    target: Target,
    out: Path,
    precision: Precision | None,
    calib_data: Path | None,
    eval_data: Path | None,
    reference: Path | None,
    split: str,
    json: str | None,
) -> None:
    from tsss_edge.api import build_engine as run
    from tsss_edge.export.build import build_summary

    with usage_errors():
        engine = run(
            model,
            target,
            out,
            precision=precision,
            calib_data=calib_data,
            eval_data=eval_data,
            reference=reference,
            split=split,
        )
    result, text = {"engine": str(engine.path), "record": engine.record}, build_summary(engine)
    if (choice := engine.record.build.chosen) is not None and eval_data is not None:
        result, text = (
            {"engine": str(engine.path), "choice": choice, "record": engine.record},
            f"{choice.summary()}\n{text}",
        )
    emit(result, text, json)


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
    from tsss_edge.deploy.rebuild import rebuild_engine
    from tsss_edge.errors import GateError

    rebuilt = rebuild_engine(engine, reference=reference, eval_data=eval_data, split=split)
    emit(rebuilt, rebuilt.summary(), json)
    if rebuilt.parity is not None and not rebuilt.parity:
        raise GateError(rebuilt.parity.verdict())


def _tell_dry_run(
    model: Path, target: Target, out: Path, precision: Precision | None, calib_data: Path | None, json: str | None
) -> None:
    from tsss_edge.deploy.kit import kit_folder, runs_here
    from tsss_edge.export.build import dry_run

    rows = dry_run(model, target, out, precision=precision, calib_data=calib_data)
    here = runs_here(target)
    where = "on this machine" if here else f"on the device, from a build kit written to {kit_folder(out, target)}"
    emit({"here": here, "engines": rows}, "\n".join([f"would build {where}:", *(r.text() for r in rows)]), json)
