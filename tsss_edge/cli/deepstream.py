"""`deepstream`: a folder that DeepStream runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, emit


def deepstream(
    engine: Annotated[Path, typer.Argument(help="Engine of TensorRT (.engine).")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    sources: Annotated[int, typer.Option(min=1, help="Cameras that share the engine: its batch.")] = 1,
    json: Json = None,
) -> None:
    """Write what DeepStream needs to run the same plan: nvdspreprocess and nvinfer configurations, labels, palette.

    Example: tsss-edge deepstream fused.int8.engine --out deepstream --sources 4
    """
    from tsss_edge.deploy.deepstream import write_deepstream

    folder = write_deepstream(engine, out, sources=sources)
    emit({"folder": str(folder), "sources": sources}, f"{folder}: README.md there has the pipeline", json)
