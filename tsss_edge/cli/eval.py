"""`eval`: mIoU of anything that segments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Data, Json, Split, Threads, Trust, emit, sheet_place


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file, engine, or triton://HOST/MODEL.")],
    data: Data,
    split: Split = "val",
    threads: Threads = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=sheet_place, help="Contact sheet (.png, .jpg): the 24 worst, truth beside."
        ),
    ] = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """mIoU and per-class IoU of anything that segments.

    Example: tsss-edge eval runs/camvid --data camvid --split val --sheet worst.png

    Example: tsss-edge eval triton://gpu-1/fused --data camvid
    """
    from tsss_edge.scoring import evaluate as run

    report = run(model, data, split=split, threads=threads, trust=trust, sheet=sheet)
    emit(report, report.summary(), json)
