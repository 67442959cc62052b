"""`demo`: the whole way on embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, emit


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed of data and training.")] = 0,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="NETWORK", help="For photographs, see `zoo`: real pictures of installed packages too."),
    ] = None,
    json: Json = None,
) -> None:
    """The whole way on embedded data: train, export, calibrate, build, parity, stream. Takes some minutes on a CPU.

    Example: tsss-edge demo --out runs/demo
    """
    from tsss_edge.demo import run_demo

    summary = run_demo(out, seed=seed, photos=photos)
    emit(summary, summary.table(), json)
