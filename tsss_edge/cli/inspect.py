"""`inspect`: any artifact in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, emit


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
