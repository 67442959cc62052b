"""`build-engine`: an engine for this machine, or a build kit for another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from tsss_edge.artifacts import Precision
from tsss_edge.cli.options import Json, Sign, Split, emit, flag, usage_errors

if TYPE_CHECKING:
    from tsss_edge.artifacts import Engine, OnnxModel, Target


def build_engine(
    model: Annotated[Path, typer.Argument(help="Checkpoint or ONNX file; or an engine, to build it again here.")],
    target: Annotated[str | None, typer.Option(help="A target in export/ (cpu, rtx, ...) or a .toml file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Engine to write; the precision is added to its name.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Force one (default: the target's choice).")] = None,
    calib_data: Annotated[Path | None, typer.Option(help="Dataset for INT8 ranges, where MODEL has none.")] = None,
    eval_data: Annotated[
        Path | None, typer.Option(help="Labelled set: build all candidates, keep the fastest that passes the gate.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Checkpoint, or FP32 file of `import`, for the gate (default: MODEL).")
    ] = None,
    split: Split = "val",
    sign: Sign = None,
    dry_run: Annotated[bool, flag("--dry-run", "Only say what would be built.")] = False,
    json: Json = None,
) -> None:
    """Build an engine and its record; for a device that is not this machine, a build kit.

    Example: tsss-edge build-engine runs/camvid --target cpu --calib-data camvid --eval-data camvid --out fused.xml
    """
    if sign is not None:
        from tsss_edge.signing import read_private

        read_private(sign)  # before the work
    gate: dict[str, Any] = {"reference": reference, "eval_data": eval_data, "split": split}
    how: dict[str, Any] = {"precision": precision, "calib_data": calib_data}
    if model.suffix in (".xml", ".engine"):
        if any(value is not None for value in (target, out, precision, calib_data)):
            raise typer.BadParameter("an engine is built again as its record says; give its ONNX file to change it")
        if (reference is None) != (eval_data is None):
            raise typer.BadParameter("to prove the engine again, give --reference and --eval-data")
        return _tell_dry_rebuild(model, json) if dry_run else _build_again(model, gate, sign, json)
    if target is None or out is None:
        raise typer.BadParameter("--target and --out are needed (they may be left out where MODEL is an engine)")
    from tsss_edge.config import load_target
    from tsss_edge.deploy.kit import kit_folder, runs_here, write_kit

    loaded = load_target(target)
    if dry_run:
        with usage_errors():
            return _tell_dry_run(model, loaded, out, how, json)
    if not runs_here(loaded):
        if sign is not None:
            raise typer.BadParameter("a kit is signed after its build: `parity --sign` on the device")
        folder = kit_folder(out, loaded)
        with usage_errors():
            kit = write_kit(model, loaded, folder, **how, **gate)
        return emit({"kit": str(folder), **msgspec.to_builtins(kit)}, kit.summary(folder), json)
    from tsss_edge.api import build_engine as run

    with usage_errors():
        engine = run(model, loaded, out, **how, **gate)
    engine = _signed(engine, sign)
    _tell_built(engine, json, compared=eval_data is not None)
    return None


def _tell_built(engine: Engine, json: str | None, *, compared: bool) -> None:
    from tsss_edge.export.build import build_summary

    result, text = {"engine": str(engine.path), "record": engine.record}, build_summary(engine)
    if compared and (choice := engine.record.build.chosen) is not None:
        result, text = {**result, "choice": choice}, f"{choice.summary()}\n{text}"
    emit(result, text, json)


def _signed(engine: Engine, key: Path | None) -> Engine:
    from tsss_edge.signing import sign_engine

    return sign_engine(engine, key) if key is not None else engine


def _build_again(engine: Path, gate: dict[str, Any], sign: Path | None, json: str | None) -> None:
    from tsss_edge.deploy.rebuild import rebuild_engine
    from tsss_edge.errors import GateError

    rebuilt = rebuild_engine(engine, **gate)
    emit(rebuilt, rebuilt.summary(), json)
    if rebuilt.parity is not None and not rebuilt.parity:
        raise GateError(rebuilt.parity.verdict())
    if sign is not None:
        from tsss_edge.artifacts import Engine

        _signed(Engine.load(engine), sign)


def _tell_dry_rebuild(engine: Path, json: str | None) -> None:
    from tsss_edge.artifacts import Engine
    from tsss_edge.deploy.rebuild import stored_onnx

    record = Engine.load_record(engine)
    target = msgspec.structs.replace(record.build.target, local=True)  # an engine is built again here or not at all
    _tell_dry_run(stored_onnx(engine), target, engine, {"precision": record.precision}, json)


def _tell_dry_run(model: Path | OnnxModel, target: Target, out: Path, how: dict[str, Any], json: str | None) -> None:
    from tsss_edge.deploy.kit import kit_folder, runs_here
    from tsss_edge.export.build import dry_run

    rows, here = dry_run(model, target, out, **how), runs_here(target)
    where = "on this machine" if here else f"on the device, from a build kit written to {kit_folder(out, target)}"
    emit({"here": here, "engines": rows}, "\n".join([f"would build {where}:", *(r.text() for r in rows)]), json)
