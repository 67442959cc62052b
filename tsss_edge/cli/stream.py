"""`stream`: live segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tsss_edge.cli.options import Json, Rebuild, Threads, drop_none, emit, flag, one_line, rebuild_first

BUDGET, RATE = "2GiB", "10/h"  # of --collect


def stream(
    engine: Annotated[
        Path, typer.Argument(help="Engine (.xml, .engine, triton://HOST/MODEL); on a GPU also a checkpoint.")
    ],
    source: Annotated[
        str | None,
        typer.Argument(help="Video file, camera (0, v4l2://, csi://), rtsp://, http://, synthetic://."),
    ] = None,
    sink: Annotated[
        list[str] | None,
        typer.Argument(
            help="out.mp4 (.mkv, .webm, .gif, .m3u8), rtsp://, out.jsonl, masks/, display://0, null:// (default)."
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Checkpoint, or FP32 file of `import`, for the parity watch.")
    ] = None,
    parity_every: Annotated[
        int | None, typer.Option(min=1, help="Every n-th frame also goes through the reference. [default: 30]")
    ] = None,
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
    draw: Annotated[
        Literal["plain", "outlines", "names", "legend"],
        typer.Option(
            help="On videos and pictures: colours alone, outlines, class names, a legend; each with those before."
        ),
    ] = "plain",
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
    encode: Annotated[
        Literal["auto", "hardware", "ultrafast", "superfast", "veryfast"],
        typer.Option(
            help="Writes H.264: a hardware encoder, else x264 ultrafast; or an x264 preset (smaller, slower)."
        ),
    ] = "auto",
    reuse: Annotated[
        Literal["off", "still", "motion"],
        typer.Option(help="Frames without network: unchanged ones (still), also moved ones (motion)."),
    ] = "off",
    smooth: Annotated[
        float,
        typer.Option(
            min=0, max=0.99, metavar="W", help="Against flicker: share of the frames before, where the picture stays."
        ),
    ] = 0.0,
    collect: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep frames worth labelling there, for `review` and `adapt`.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help=f"Most that --collect keeps. [default: {BUDGET}]")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="N/h", help=f"Frames that --collect keeps in a time (s, min, h, d). [default: {RATE}]"),
    ] = None,
    shadow: Annotated[
        Path | None,
        typer.Option(metavar="NEW", help="Engine that runs beside, to be compared; `promote NEW` swaps it in."),
    ] = None,
    promote_when: Annotated[
        Path | None,
        typer.Option(metavar="RULES.toml", help="When the shadow takes over by itself, and when it goes back."),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(metavar="CAMERAS.TOML", help="Many cameras on this one engine, each with its own sinks."),
    ] = None,
    batch_wait_ms: Annotated[
        float | None,
        typer.Option(min=0, help="With --sources: frames share batches, and wait so long for them at most."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="With --sources: the cameras that fall into part K of N by name.")
    ] = None,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Live segmentation of a camera or video, or of many cameras on one engine.

    Example: tsss-edge stream fused.int8.xml street.mp4 out.mp4 --reference runs/camvid --parity-every 30

    Example: tsss-edge stream fused.int8.xml street.mp4 named.mp4 --draw legend

    Example: tsss-edge stream fused.int8.xml --sources cameras.toml --web 8080

    Example: tsss-edge stream fused.int8.xml dog.mp4 --truth dog-masks --truth-class dog

    Example: tsss-edge stream fused.int8.xml 0 --web 8080 --collect field --budget 2GiB --rate 10/h

    Example: tsss-edge stream old.xml 0 --web 8080 --shadow new.xml --promote-when rules.toml
    """
    from tsss_edge.api import stream as run
    from tsss_edge.api import stream_many
    from tsss_edge.field.collector import CollectPlan

    only_one = {
        "--reference": reference, "--parity-every": parity_every, "--min-agreement": min_agreement,
        "--policy": policy, "--audio": audio or None,
        "--truth": truth, "--truth-class": truth_class, "--reuse": None if reuse == "off" else reuse,
        "--smooth": smooth or None,
        "--draw": None if draw == "plain" else draw, "--encode": None if encode == "auto" else encode,
        "--collect": collect, "--budget": budget, "--rate": rate, "--shadow": shadow, "--promote-when": promote_when,
    }  # fmt: skip
    if tls is not None and web is None:
        raise typer.BadParameter("--tls is of the live page; give --web [HOST:]PORT too")
    if (source is None) == (sources is None):
        raise typer.BadParameter("give either a SOURCE or --sources CAMERAS.TOML")
    if sources is None and (batch_wait_ms is not None or shard is not None):
        raise typer.BadParameter("--batch-wait-ms and --shard are for --sources, many cameras")
    if sources is not None:
        if given := [name for name, value in only_one.items() if value is not None]:
            hint = "; write `encode` of a camera or of [defaults] in that file" if given[0] == "--encode" else ""
            raise typer.BadParameter(f"{given[0]} is for one SOURCE, not for --sources{hint}")
        rebuild_first(engine, rebuild)
        many = stream_many(
            engine, sources, batch_wait_ms=batch_wait_ms, max_frames=max_frames, threads=threads, force=force, web=web,
            trusted_key=trusted_key, tls=tls, shard=shard,
        )  # fmt: skip
        return emit(many, many.summary(), json)
    assert source is not None
    if reference is None and (min_agreement is not None or parity_every is not None):
        raise typer.BadParameter("--min-agreement and --parity-every need --reference, the checkpoint to agree with")
    if collect is None and (budget is not None or rate is not None):
        raise typer.BadParameter("--budget and --rate are of what --collect keeps; give that folder too")
    if truth_class is not None and truth is None:
        raise typer.BadParameter("--truth-class says what the masks of --truth show; give that folder too")
    if promote_when is not None and shadow is None:
        raise typer.BadParameter("--promote-when needs --shadow, the engine to be promoted")
    rebuild_first(engine, rebuild)
    sinks = sink or ["null://"]
    report = run(
        engine,
        source,
        sinks,
        reference=reference,
        min_agreement=min_agreement,
        policy=policy,
        max_frames=max_frames,
        threads=threads,
        force=force,
        web=web,
        tls=tls,
        trusted_key=trusted_key,
        audio=audio,
        draw=draw,
        truth=truth,
        truth_class=truth_class,
        encode=encode,
        reuse=reuse,
        smooth=smooth,
        shadow=shadow,
        promote_when=promote_when,
        collect=CollectPlan.parse(collect, budget or BUDGET, rate or RATE) if collect is not None else None,
        **drop_none({"parity_every": parity_every}),
    )
    emit(report, one_line(report) if "-" in sinks else report.summary(), json)
