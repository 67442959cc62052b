"""`demo`, `doctor`, `inspect`: try it, examine the machine, read an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.common import Json, emit


def register(parent: typer.Typer) -> None:
    for command in (demo, doctor, inspect):
        parent.command()(command)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of data and training.")] = 0,
    json: Json = None,
) -> None:
    """The whole way on embedded data: train, export, calibrate, build, parity, stream. Takes some minutes on a CPU.

    Example: tsss-edge demo --out runs/demo
    """
    from tsss_edge.demo import run_demo

    summary = run_demo(out, seed=seed)
    emit(summary, summary.table(), json)


def doctor(json: Json = None) -> None:
    """What this machine can do, what is missing, and the command that fixes it.

    Example: tsss-edge doctor
    """
    from tsss_edge.doctor import examine

    report = examine()
    emit(report, report.summary(), json)


def inspect(
    path: Annotated[
        Path, typer.Argument(help="Checkpoint, ONNX file, engine, record, calibration table, kit, bundle, dataset.")
    ],
    strip: Annotated[
        Path | None, typer.Option(metavar="OUT.engine", help="Write the plan without the JSON in front of it.")
    ] = None,
    json: Json = None,
) -> None:
    """Any artifact in plain words.

    Example: tsss-edge inspect fused.int8.xml
    """
    from tsss_edge.inspection import inspect_path

    if strip is not None:
        from tsss_edge.backends.plan import strip_prefix

        header = strip_prefix(path, strip)
        return emit({"plan": str(strip), "header": header}, f"{strip}: plan of {header}", json)

    description = inspect_path(path)
    emit(description, description.summary(), json)
