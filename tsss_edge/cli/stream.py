"""`stream`: live segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tsss_edge.cli.options import Json, Rebuild, Threads, emit, flag, one_line, rebuild_first


def stream(
    engine: Annotated[Path, typer.Argument(help="Engine (.xml, .engine); on a GPU also a checkpoint.")],
    source: Annotated[
        str, typer.Argument(help="Video file, camera (0, v4l2://, csi://), rtsp://, http://, synthetic://.")
    ],
    sink: Annotated[
        list[str] | None,
        typer.Argument(
            help="out.mp4 (.mkv, .webm, .gif, .m3u8), rtsp://, out.jsonl, masks/, display://0, null:// (default)."
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Checkpoint, or FP32 file of `import`, for the parity watch.")
    ] = None,
    parity_every: Annotated[int, typer.Option(min=1, help="Every n-th frame also goes through the reference.")] = 30,
    min_agreement: Annotated[float | None, typer.Option(min=0, max=1, help="Stop when agreement falls below.")] = None,
    policy: Annotated[
        Literal["latest", "block"] | None, typer.Option(help="Default: latest for live sources, block for files.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    threads: Threads = None,
    force: Annotated[bool, flag("--force", "Run an engine whose accuracy gate failed.")] = False,
    web: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="Live page; on another host than loopback with a token.")
    ] = None,
    audio: Annotated[bool, typer.Option("--audio", help="Copy the sound of the source file into video files.")] = False,
    truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A mask for every frame (index PNG): report live IoU.")
    ] = None,
    truth_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="The one class those masks show, whatever their ids.")
    ] = None,
    trusted_key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Run only an engine whose record this public key signed (PEM).")
    ] = None,
    tls: Annotated[
        tuple[Path, Path] | None, typer.Option("--tls", metavar="CERT KEY", help="Serve the page by HTTPS (PEM files).")
    ] = None,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Live segmentation of a camera or video.

    Example: tsss-edge stream fused.int8.xml street.mp4 out.mp4 --reference runs/camvid --parity-every 30

    Example: tsss-edge stream fused.int8.xml dog.mp4 --truth dog-masks --truth-class dog
    """
    from tsss_edge.api import stream as run

    if min_agreement is not None and reference is None:
        raise typer.BadParameter("--min-agreement needs --reference, the checkpoint to agree with")
    if tls is not None and web is None:
        raise typer.BadParameter("--tls is of the live page; give --web [HOST:]PORT too")
    if truth_class is not None and truth is None:
        raise typer.BadParameter("--truth-class says what the masks of --truth show; give that folder too")
    rebuild_first(engine, rebuild)
    sinks = sink or ["null://"]
    report = run(
        engine,
        source,
        sinks,
        reference=reference,
        parity_every=parity_every,
        min_agreement=min_agreement,
        policy=policy,
        max_frames=max_frames,
        threads=threads,
        force=force,
        web=web,
        tls=tls,
        trusted_key=trusted_key,
        audio=audio,
        truth=truth,
        truth_class=truth_class,
    )
    emit(report, one_line(report) if "-" in sinks else report.summary(), json)
