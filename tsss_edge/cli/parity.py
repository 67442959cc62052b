"""`parity`: an engine against its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Data, Json, Rebuild, Sign, Split, Threads, emit, flag, rebuild_first


def parity(
    engine: Annotated[Path, typer.Argument(help="Engine to prove.")],
    reference: Annotated[
        Path, typer.Option(help="What it was made from: checkpoint, folder of its answers, or FP32 file of `import`.")
    ],
    data: Data,
    split: Split = "val",
    max_drop: Annotated[float, typer.Option(min=0, help="mIoU points the engine may lose (or gain).")] = 0.5,
    report: Annotated[Path | None, typer.Option(help="Folder for the HTML page with the worst pictures.")] = None,
    allow_leak: Annotated[bool, flag("--allow-leak", "Accept evaluation pictures that calibrated.")] = False,
    min_reference: Annotated[
        float | None, typer.Option(min=0, help="mIoU the reference must have (default: twice chance).")
    ] = None,
    served: Annotated[
        Path | None,
        typer.Option(metavar="triton://HOST/MODEL", help="A server that has this engine and answers in its place."),
    ] = None,
    threads: Threads = None,
    sign: Sign = None,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Prove an engine against its PyTorch reference; exit code 3 when the gate fails.

    Example: tsss-edge parity fused.int8.xml --reference runs/camvid --data camvid --max-drop 0.5 --report runs/parity

    Example: tsss-edge parity fused.int8.xml --served triton://gpu-1/fused --reference runs/camvid --data camvid
    """
    from tsss_edge.api import check_parity
    from tsss_edge.errors import GateError

    if sign is not None and served is not None:
        raise typer.BadParameter("--sign is for an engine's own verdict; leave out --served")
    if sign is not None:
        from tsss_edge.signing import read_private

        read_private(sign)  # before the work
    rebuild_first(engine, rebuild)
    judged = {"split": split, "max_drop": max_drop, "allow_leak": allow_leak, "threads": threads, "served": served}
    judged["min_reference"] = min_reference
    result = check_parity(engine, reference, data, report_dir=report, **judged)
    emit(result, result.summary(), json)
    if not result:
        raise GateError(result.verdict())
    if sign is not None:
        from tsss_edge.artifacts import Engine
        from tsss_edge.signing import sign_engine

        sign_engine(Engine.load(engine), sign)
