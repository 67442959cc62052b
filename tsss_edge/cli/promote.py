"""`promote`: put a shadow engine into service, or take it back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, emit, flag


def promote(
    engine: Annotated[
        Path, typer.Argument(help="The engine that a running `stream --shadow ENGINE` has as its shadow.")
    ],
    back: Annotated[bool, flag("--back", "Take it out of service again; the old engine is still open.")] = False,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, metavar="S", help="Seconds to wait for the stream's answer.")
    ] = 30.0,
    json: Json = None,
) -> None:
    """Put the shadow of a running stream into service, between two frames. It goes back by itself when a limit is broken.

    Exit code 1: no stream answered, or the engine went back. What happened stands in ENGINE.rollout.json.

    Example: tsss-edge promote new.int8.xml
    """
    from tsss_edge.stream.asking import ask

    status = ask(engine, "back" if back else "promote", wait_s)
    emit(status, status.line(), json)
