"""`export`: a checkpoint to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tsss_edge.artifacts import Head
from tsss_edge.cli.options import Json, emit, flag


def export(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or its run folder.")],
    out: Annotated[Path, typer.Option(help="ONNX file to write.")],
    head: Annotated[
        Head, typer.Option(help="logits (stride 8), labels (in-graph upsample + argmax), both.")
    ] = "logits",
    objectness: Annotated[bool, flag("--objectness", "Add L-Net's class-agnostic output.")] = False,
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="fp32, or fp16 by casts in the graph.")] = "fp32",
    batch: Annotated[int, typer.Option(min=0, help="Batch size of the graph; 0 leaves it free.")] = 1,
    data: Annotated[Path | None, typer.Option(help="Check against PyTorch on pictures of this set (val).")] = None,
    json: Json = None,
) -> None:
    """Write the fused inference graph as ONNX and check it against PyTorch.

    Example: tsss-edge export runs/method --out runs/method/fused.onnx --objectness --data runs/synth
    """
    from tsss_edge.api import export as run

    model = run(checkpoint, out, head=head, objectness=objectness, precision=precision, batch=batch, data=data)
    text = f"{model.path}: {model.meta.arch}, {model.meta.precision}, head {model.meta.head}, agrees with PyTorch"
    emit({"onnx": str(model.path), "sha256": model.sha256, "meta": model.meta}, text, json)
