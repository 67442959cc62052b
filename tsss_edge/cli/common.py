"""What every command shares: the `--json` option, output, and turning bad option values into usage errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tsss_edge.files import write_json

Json = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="-|FILE", help="Result as JSON: '-' prints it instead of text, FILE writes it as well."
    ),
]
Data = Annotated[Path, typer.Option("--data", help="Dataset folder in PASCAL VOC layout.")]
Split = Annotated[str, typer.Option(help="A list in ImageSets/Segmentation.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network (default: all cores).")]
Trust = Annotated[bool, typer.Option("--trust", help="Load an engine whose hash is not the one in its record.")]
Rebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild", help="Build the engine again from its stored ONNX file where it is damaged or unfit here."
    ),
]


def rebuild_first(engine: Path, wanted: bool) -> None:
    """Build an unfit engine again, and say so on stderr."""
    if not wanted:
        return
    from tsss_edge.deploy.rebuild import rebuild_if_unfit

    if (rebuilt := rebuild_if_unfit(engine)) is not None:
        typer.echo(rebuilt.summary(), err=True)


def emit(value: Any, text: str, json_to: str | None) -> None:
    """Print `text`, or `value` as JSON: to stdout for "-", else to a file beside the text."""
    if json_to == "-":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        return
    if json_to:
        write_json(Path(json_to), value)
    typer.echo(text)


def one_line(value: Any) -> str:
    """`value` as JSON without line breaks: the last line of a JSON-lines output."""
    return msgspec.json.encode(value).decode()


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn ValueError (a bad option value) into a usage error, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def parse_size(text: str) -> tuple[int, int]:
    """`512` or `WIDTHxHEIGHT` -> (height, width) in pixels. Raises: ValueError."""
    width, _, height = text.lower().partition("x")
    try:
        return int(height or width), int(width)
    except ValueError as error:
        raise ValueError(f"size {text!r}: expected a number or WIDTHxHEIGHT, for example 512 or 480x352") from error


def names(text: str) -> tuple[str, ...]:
    """`a,b, c` -> ("a", "b", "c")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
