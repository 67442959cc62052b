"""`segment`: masks for picture files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, Rebuild, Threads, emit, flag, rebuild_first, sheet_place


def segment(
    engine: Annotated[Path, typer.Argument(help="Engine, ONNX file or checkpoint.")],
    inputs: Annotated[list[str], typer.Argument(help="Pictures, folders or globs; with --ray s3://BUCKET/... too.")],
    out: Annotated[
        str, typer.Option(metavar="PATH", help="Folder for the index PNGs; with --ray s3://BUCKET/... too.")
    ],
    overlay: Annotated[bool, flag("--overlay", "Also write pictures with masks, outlines, names.")] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=sheet_place, help="Contact sheet (.png, .jpg) of the first 24 pictures."),
    ] = None,
    threads: Threads = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Spread over a Ray cluster: HOST:PORT, auto, local.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="With --ray: GPUs of one worker; 0.5: two workers share one.")
    ] = None,
    max_failed: Annotated[
        int | None, typer.Option(min=0, help="With --ray: give up when more pictures than this fail.")
    ] = None,
    again: Annotated[bool, flag("--again", "With --ray: make masks too that are there already.")] = False,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Masks for picture files, on this machine or on a Ray cluster.

    Example: tsss-edge segment fused.int8.xml photos/ --out masks --overlay

    Example: tsss-edge segment fused.int8.xml s3://city/day1 --out s3://city/masks --ray 10.0.0.1:6379 --max-failed 100
    """
    from tsss_edge.api import segment as run
    from tsss_edge.deploy.remote_files import is_uri
    from tsss_edge.errors import DataError

    if ray is not None and sheet is not None:
        raise typer.BadParameter("--sheet is drawn on this machine; leave out --ray")
    if ray is None and (gpus is not None or max_failed is not None or again):
        raise typer.BadParameter("--gpus, --max-failed and --again are for --ray")
    if ray is None and (away := [text for text in (*inputs, out) if is_uri(text)]):
        raise typer.BadParameter(f"{away[0]}: addresses are read and written with --ray; `--ray local` does it here")
    rebuild_first(engine, rebuild)
    if ray is not None:
        from tsss_edge.deploy.segment_ray import segment_on_ray

        report = segment_on_ray(
            engine, inputs, out, address=ray, overlay=overlay, threads=threads, gpus=gpus or 0.0, max_failed=max_failed,
            again=again,
        )  # fmt: skip
    else:
        report = run(engine, inputs, Path(out), overlay=overlay, sheet=sheet, threads=threads)
    emit(report, report.summary(), json)
    if report.failed:
        failed = len(report.failed)
        raise DataError(f"{failed} of {report.images + failed} pictures failed: {report.failed[0]}")
