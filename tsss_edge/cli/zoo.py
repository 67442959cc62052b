"""`zoo`: ready networks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Json, emit, flag, usage_errors


def zoo(
    name: Annotated[str | None, typer.Argument(help="A network (default: list them all).")] = None,
    place: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="URL|DIR",
            envvar="TSSS_EDGE_ZOO",
            help="Where ready networks lie: a folder, or an address that serves one.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Networks come to OUT/NAME.")] = Path("zoo"),
    make: Annotated[bool, flag("--make", "Train and build this network by its recipe; needs --data.")] = False,
    data: Annotated[Path | None, typer.Option(help="The set that --make trains on, in VOC layout.")] = None,
    add: Annotated[
        Path | None, typer.Option(metavar="ENGINE", help="Put this engine into --from (a folder) as NAME.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="With --add: its card, Markdown (default: from the record).")
    ] = None,
    json: Json = None,
) -> None:
    """Ready networks by name and hash; those that may not be shipped are made by one command.

    Example: tsss-edge zoo

    Example: tsss-edge zoo camvid-edge-m --make --data camvid --out zoo

    Example: tsss-edge zoo camvid-edge-m --from https://example.org/networks --out zoo
    """
    from tsss_edge.deploy import zoo as rooms

    if make and add is not None:
        raise typer.BadParameter("--make and --add are two steps; give one of them")
    if (data is not None and not make) or (card is not None and add is None):
        raise typer.BadParameter("--data is for --make, --card for --add")
    if name is None:
        if make or add:
            raise typer.BadParameter("--make and --add need a NAME")
        found = rooms.list_networks(place)
        return emit(found, found.summary(), json)
    if make:
        if data is None:
            raise typer.BadParameter("--make needs --data, the set to train on")
        folder = rooms.make(name, data, out, run_command)
        return emit({"made": str(folder)}, f"{folder}: made", json)
    if add is not None:
        if place is None or rooms.is_address(place):
            raise typer.BadParameter("--add needs --from DIR, the folder that receives the network")
        with usage_errors():
            entry = rooms.add(add, name, Path(place), card=card)
        return emit(entry, f"{place}/{name}: {entry.engine}, {len(entry.files)} files", json)
    if place is None:
        text = rooms.how_to(name)
        return emit({"how": text}, text, json)
    engine = rooms.get(name, place, out)
    emit({"engine": str(engine.path)}, f"{engine.path}: checked; its card is {engine.path.parent / rooms.CARD}", json)


def run_command(words: Sequence[str]) -> int:
    """Run `tsss-edge WORDS...` in a process of its own. Returns its exit code."""
    return subprocess.run([sys.executable, "-m", "tsss_edge", *words], check=False).returncode
