"""`eval`, `parity`, `bench`: how good, how true, how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.common import Data, Json, Rebuild, Split, Threads, Trust, emit, rebuild_first


def register(parent: typer.Typer) -> None:
    parent.command("eval")(evaluate)
    parent.command()(parity)
    parent.command()(bench)


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, ONNX file or engine.")],
    data: Data,
    split: Split = "val",
    threads: Threads = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """mIoU and per-class IoU of anything that segments.

    Example: tsss-edge eval runs/camvid --data camvid --split val
    """
    from tsss_edge.evaluate import evaluate as run

    report = run(model, data, split=split, threads=threads, trust=trust)
    emit(report, report.summary(), json)


def parity(
    engine: Annotated[Path, typer.Argument(help="Engine to prove.")],
    reference: Annotated[Path, typer.Option(help="Checkpoint it was made from.")],
    data: Data,
    split: Split = "val",
    max_drop: Annotated[float, typer.Option(min=0, help="mIoU points the engine may lose (or gain).")] = 0.5,
    report: Annotated[Path | None, typer.Option(help="Folder for the HTML page with the worst pictures.")] = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Accept evaluation pictures that calibrated.")
    ] = False,
    threads: Threads = None,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Prove an engine against its PyTorch reference; exit code 3 when the gate fails.

    Example: tsss-edge parity fused.int8.xml --reference runs/camvid --data camvid --max-drop 0.5 --report runs/parity
    """
    from tsss_edge.errors import GateError
    from tsss_edge.parity import check_parity

    rebuild_first(engine, rebuild)
    result = check_parity(
        engine,
        reference,
        data,
        split=split,
        max_drop=max_drop,
        report_dir=report,
        allow_leak=allow_leak,
        threads=threads,
    )
    emit(result, result.summary(), json)
    if not result:
        raise GateError(result.verdict())


def bench(
    engine: Annotated[Path, typer.Argument(help="Engine (or ONNX file, or checkpoint).")],
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of measurement after the warm-up.")] = 3.0,
    threads: Threads = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Others to time in alternating rounds.")] = None,
    stream: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Instead: the live loop on SOURCE, against the naive loop.")
    ] = None,
    naive: Annotated[Path | None, typer.Option(help="FP32 ONNX file of the naive loop, for --stream.")] = None,
    trust: Trust = False,
    json: Json = None,
) -> None:
    """Latency of the network alone and end to end, in percentiles, and the stage that limits.

    Example: tsss-edge bench fused.int8.xml --duration 5 --compare runs/camvid

    Example: tsss-edge bench fused.int8.xml --stream street.mp4 --naive fused.onnx
    """
    if stream is not None:
        if trust:
            raise typer.BadParameter("--stream takes no --trust; build the engine again")
        from tsss_edge.bench.stream import bench_stream

        loops = bench_stream(engine, stream, naive=naive, threads=threads)
        emit(loops, loops.summary(), json)
        return
    from tsss_edge.bench import bench_engine

    report = bench_engine(engine, duration_s=duration, threads=threads, compare=tuple(compare or ()), trust=trust)
    emit(report, report.summary(), json)
