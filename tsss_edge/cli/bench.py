"""`bench`: how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, Threads, Trust, emit


def bench(
    engine: Annotated[Path, typer.Argument(help="Engine (or ONNX file, or checkpoint).")],
    duration: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds of measurement after the warm-up. [default: 3]")
    ] = None,
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
        if duration is not None or compare:
            raise typer.BadParameter("--stream plays SOURCE with one engine; it takes no --duration and no --compare")
        from tsss_edge.bench.stream_bench import bench_stream

        loops = bench_stream(engine, stream, naive=naive, threads=threads)
        emit(loops, loops.summary(), json)
        return
    if naive is not None:
        raise typer.BadParameter("--naive is the other loop of --stream; give that SOURCE too")
    from tsss_edge.bench import bench_engine

    report = bench_engine(
        engine, duration_s=duration or 3.0, threads=threads, compare=tuple(compare or ()), trust=trust
    )
    emit(report, report.summary(), json)
