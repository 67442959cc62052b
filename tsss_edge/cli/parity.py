"""`parity`: an engine against its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Data, Json, Rebuild, Split, Threads, emit, flag, rebuild_first


def parity(
    engine: Annotated[Path, typer.Argument(help="Engine to prove.")],
    reference: Annotated[Path, typer.Option(help="Checkpoint it was made from, or a folder of its answers.")],
    data: Data,
    split: Split = "val",
    max_drop: Annotated[float, typer.Option(min=0, help="mIoU points the engine may lose (or gain).")] = 0.5,
    report: Annotated[Path | None, typer.Option(help="Folder for the HTML page with the worst pictures.")] = None,
    allow_leak: Annotated[bool, flag("--allow-leak", "Accept evaluation pictures that calibrated.")] = False,
    threads: Threads = None,
    rebuild: Rebuild = False,
    json: Json = None,
) -> None:
    """Prove an engine against its PyTorch reference; exit code 3 when the gate fails.

    Example: tsss-edge parity fused.int8.xml --reference runs/camvid --data camvid --max-drop 0.5 --report runs/parity
    """
    from tsss_edge.api import check_parity
    from tsss_edge.errors import GateError

    rebuild_first(engine, rebuild)
    judged = {"split": split, "max_drop": max_drop, "allow_leak": allow_leak, "threads": threads}
    result = check_parity(engine, reference, data, report_dir=report, **judged)
    emit(result, result.summary(), json)
    if not result:
        raise GateError(result.verdict())
