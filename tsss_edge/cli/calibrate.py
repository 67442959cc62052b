"""`calibrate`: INT8 ranges on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tsss_edge.cli.options import Json, emit, flag, names

MethodName = Literal["auto", "minmax", "entropy", "percentile", "mse"]


def calibrate(
    model: Annotated[Path, typer.Argument(help="Float ONNX file made by `tsss-edge export`.")],
    out: Annotated[Path, typer.Option(help="INT8 ONNX file to write.")],
    data: Annotated[Path, typer.Option(help="Dataset folder; its training split calibrates.")],
    calib_set: Annotated[str | None, typer.Option(help="A set in calib/ or a .toml file.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Number of pictures. [default: 512]")] = None,
    method: Annotated[MethodName, typer.Option(help="auto tries them until one holds the budget.")] = "mse",
    seed: Annotated[int | None, typer.Option(min=0, help="Choice of pictures. [default: 0]")] = None,
    search: Annotated[bool, flag("--search", "Give layers back to float until --max-drop holds.")] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, help="mIoU points that --search, or --method auto, may lose (0.3, if not given)."),
    ] = None,
    weight_bits: Annotated[
        int, typer.Option(min=7, max=8, help="7 for CPUs without VNNI, where 8 saturates (`doctor` says so).")
    ] = 8,
    keep_float: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Layers that stay float, by name, or `depthwise` for all of those."),
    ] = None,
    target: Annotated[
        Literal["any", "ort"], typer.Option(help="ort: for ONNX Runtime on x86, where the file for all is slow.")
    ] = "any",
    bias_correction: Annotated[
        bool, flag("--bias-correction", "Move biases by what rounding shifts; see docs/quantization.md.")
    ] = False,
    allow_random: Annotated[bool, flag("--allow-random", "Noise instead of pictures; marked in the record.")] = False,
    json: Json = None,
) -> None:
    """Find INT8 ranges on real pictures and write the Q/DQ graph that every device takes.

    `auto` and --search judge on a part of the training split that does not calibrate. OUT.search.json says what they
    tried; OUT.search.svg is a plot of it (needs matplotlib: pip install 'tsss-edge[report]').
    Example: tsss-edge calibrate fused.onnx --data runs/synth --method auto --search --out fused.int8.onnx
    Under torchrun the processes share the pictures; the file is that of one process.
    Example: tsss-edge calibrate fused.onnx --data runs/synth --weight-bits 7 --out fused.int8.onnx
    Example: tsss-edge calibrate fused.onnx --data runs/synth --target ort --out fused.ort.onnx
    """
    from tsss_edge.api import calibrate as run
    from tsss_edge.artifacts import OnnxModel
    from tsss_edge.calib.calibrate import FULL_SET
    from tsss_edge.calib.search import ENOUGH
    from tsss_edge.onnxgraph.qdq import PairOptions, chosen_layers
    from tsss_edge.ranks import this_process

    if max_drop is not None and not search and method != "auto":
        raise typer.BadParameter("--max-drop is the budget of --search and of --method auto; give one of them, or none")
    if calib_set is not None and (size is not None or seed is not None or allow_random):
        raise typer.BadParameter(
            "--calib-set says which pictures calibrate; leave --size, --seed and --allow-random out"
        )
    budget = ENOUGH if max_drop is None else max_drop
    floating = OnnxModel.load(model)
    kept_float = chosen_layers(floating.graph, names(keep_float)) if keep_float else ()
    result = run(
        floating,
        data,
        out,
        calib_set=calib_set,
        size=size or FULL_SET,
        method=method,
        seed=seed or 0,
        max_drop=budget if search else None,
        method_drop=budget,
        allow_random=allow_random,
        options=PairOptions(float_nodes=kept_float, weight_bits=weight_bits),
        target=target,
        bias_correction=bias_correction,
    )
    record = result.meta.calibration
    assert record is not None
    kept = f", in float: {', '.join(result.meta.float_nodes)}" if result.meta.float_nodes else ""
    bits = "" if record.weight_bits == 8 else f", weights of {record.weight_bits} bits"
    biases = ", biases corrected" if record.bias_correction else ""
    text = f"{result.path}: INT8, {record.method} on {record.images} pictures of {record.split or 'noise'}{bits}{biases}{kept}"
    if this_process().writes:
        emit({"onnx": str(result.path), "sha256": result.sha256, "calibration": record}, text, json)
