"""`triton`: a model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, emit, flag


def triton(
    engine: Annotated[Path, typer.Argument(help="Engine (.xml, .engine of TensorRT) or ONNX file.")],
    out: Annotated[Path, typer.Option(help="Model repository; more models may join in the same folder.")],
    name: Annotated[str | None, typer.Option(help="The model's name in Triton (default: the engine's).")] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies that run side by side.")] = 1,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Requests that Triton may put into one call, within 2 ms; 1: none.")
    ] = 8,
    python: Annotated[
        bool, flag("--python", "Run it in Triton's Python back end, where that is all there is.")
    ] = False,
    ensemble: Annotated[
        bool, flag("--ensemble", "Also NAME_jpeg and NAME_frame: a picture in, a label map out.")
    ] = False,
    next_version: Annotated[
        bool, flag("--next-version", "Put it beside the versions that are there; Triton serves the two newest.")
    ] = False,
    reference: Annotated[Path | None, typer.Option(help="Checkpoint: prove what Triton will serve.")] = None,
    eval_data: Annotated[Path | None, typer.Option(help="Labelled set for that proof.")] = None,
    json: Json = None,
) -> None:
    """Write a Triton model repository; with --reference and --eval-data its files pass the parity gate first.

    Example: tsss-edge triton fused.int8.xml --out models --ensemble --reference runs/camvid --eval-data camvid

    Example: tsss-edge triton newer.int8.xml --out models --name fused --next-version
    """
    from tsss_edge.deploy.triton import write_repository

    if (reference is None) != (eval_data is None):
        raise typer.BadParameter("--reference and --eval-data belong together")
    folder = write_repository(
        engine,
        out,
        name=name,
        instances=instances,
        max_batch=max_batch,
        python=python,
        ensemble=ensemble,
        next_version=next_version,
        reference=reference,
        eval_data=eval_data,
    )
    proof = "its files passed the gate" if eval_data else "not proven: give --reference and --eval-data"
    text = f"{folder}: {proof}\n  serve it with: tritonserver --model-repository {out}"
    emit({"model": str(folder), "proven": eval_data is not None}, text, json)
