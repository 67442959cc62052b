"""What all page writers share: a table, a page with its JSON twin, and the state of the machine around a measurement."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsss_edge import __version__
from tsss_edge.bench.conditions import Machine, examine_machine, read_load, read_mhz
from tsss_edge.disk import atomic_path
from tsss_edge.files import write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOOL = f"tsss-edge {__version__}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = False) -> str:
    """A Markdown table. right: all columns but the first hold numbers, aligned right."""
    rule = f"|---{('|---:' if right else '|---') * (len(columns) - 1)}|"
    return "\n".join([f"| {' | '.join(columns)} |", rule, *(f"| {' | '.join(cells)} |" for cells in rows)])


def percent(value: float | None, digits: int = 1) -> str:
    """A number of a cell; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def met(reached: bool) -> str:
    """The verdict on a target."""
    return "met" if reached else "missed"


def write_page(out: Path, text: str, twin: Any) -> None:
    """Write the page and, beside it under the same name, its numbers as JSON."""
    write_bytes(out, text.encode())
    write_json(out.with_suffix(".json"), twin)


def write_picture(figure: Figure, out: Path) -> None:
    """Save a figure of matplotlib as PNG, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png")


def watch_machine(threads: int | None) -> Callable[[], Machine]:
    """Read clock and load now; call the result after the measurement to get the machine's state."""
    mhz, load = read_mhz(), read_load()
    return lambda: examine_machine(threads=threads, mhz_before=mhz, load_before=load)


def today() -> str:
    """The date, for a page."""
    return date.today().isoformat()


def command(script: str) -> str:
    """The command line of this run, without the folders of this machine."""
    return f"python scripts/{script} {' '.join(_shown(word) for word in sys.argv[1:])}"


def _shown(word: str) -> str:
    path = Path(word)
    return "/".join(path.parts[-2:]) if path.is_absolute() else f'"{word}"' if " " in word else word
