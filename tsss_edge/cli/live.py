"""`stream`, `segment`: the engine at work."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.common import Json, Rebuild, Threads, emit, one_line, rebuild_first


class Policy(str, Enum):
    """What happens when frames come faster than masks."""

    latest = "latest"
    block = "block"


def register(parent: typer.Typer) -> None:
    parent.command()(stream)
    parent.command()(segment)


def stream(
    engine: Annotated[Path, typer.Argument(help="Engine (.xml, .engine).")],
    source: Annotated[
        str, typer.Argument(help="Video file, camera (0, v4l2://, csi://), rtsp://, http://, synthetic://.")
    ],
    sink: Annotated[
        list[str] | None, typer.Argument(help="out.mp4, out.jsonl, masks/, display://0, null:// (default: null).")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Checkpoint for the parity watch.")] = None,
    parity_every: Annotated[int, typer.Option(min=1, help="Every n-th frame also goes through the reference.")] = 30,
    min_agreement: Annotated[float | None, typer.Option(min=0, max=1, help="Stop when agreement falls below.")] = None,
    policy: Annotated[Policy | None, typer.Option(help="Default: latest for live sources, block for files.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Run an engine whose accuracy gate failed.")] = False,
    web: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="Live page; on another host than loopback with a token.")
    ] = None,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Live segmentation of a camera or video.

    Example: tsss-edge stream fused.int8.xml street.mp4 out.mp4 --reference runs/camvid --parity-every 30
    """
    from tsss_edge.stream.loop import stream as run

    if min_agreement is not None and reference is None:
        raise typer.BadParameter("--min-agreement needs --reference, the checkpoint to agree with")
    rebuild_first(engine, rebuild)
    sinks = sink or ["null://"]
    report = run(
        engine,
        source,
        sinks,
        reference=reference,
        parity_every=parity_every,
        min_agreement=min_agreement,
        policy=policy.value if policy else None,
        max_frames=max_frames,
        threads=threads,
        force=force,
        web=web,
    )
    emit(report, one_line(report) if "-" in sinks else report.summary(), json)


def segment(
    engine: Annotated[Path, typer.Argument(help="Engine, ONNX file or checkpoint.")],
    inputs: Annotated[list[str], typer.Argument(help="Pictures, folders or globs.")],
    out: Annotated[Path, typer.Option(help="Folder for the index PNGs.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write blended pictures.")] = False,
    threads: Threads = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Spread over a Ray cluster: HOST:PORT, auto, local.")
    ] = None,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Masks for picture files, on this machine or on a Ray cluster.

    Example: tsss-edge segment fused.int8.xml photos/ --out masks --overlay
    """
    from tsss_edge.errors import DataError
    from tsss_edge.segment import segment_files

    rebuild_first(engine, rebuild)
    if ray is not None:
        from tsss_edge.segment_ray import segment_on_ray

        report = segment_on_ray(engine, inputs, out, address=ray, overlay=overlay, threads=threads)
    else:
        report = segment_files(engine, inputs, out, overlay=overlay, threads=threads)
    emit(report, report.summary(), json)
    if report.failed:
        raise DataError(
            f"{len(report.failed)} of {report.images + len(report.failed)} pictures failed: {report.failed[0]}"
        )
