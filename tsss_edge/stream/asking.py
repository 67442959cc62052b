"""A wish -> the answer of the stream that has the engine as its shadow."""

from __future__ import annotations

import time
from pathlib import Path

from tsss_edge.errors import DataError
from tsss_edge.field.rules import Phase, RolloutStatus, Wish, load_status, wish, wish_path

WANTED: dict[Wish, tuple[Phase, ...]] = {"promote": ("promoted", "settled"), "back": ("back",)}
LOOK_S = 0.1


def ask(engine: Path, what: Wish, wait_s: float) -> RolloutStatus:
    """Leave the wish, and wait for it to be fulfilled.

    However this ends, no wish stays for a later stream.
    Raises: DataError: no stream took the wish in time, or the engine went another way.
    """
    wish(engine, what)
    try:
        return _answered(engine, what, time.monotonic() + wait_s, wait_s)
    finally:
        wish_path(engine).unlink(missing_ok=True)


def _answered(engine: Path, what: Wish, deadline: float, wait_s: float) -> RolloutStatus:
    while True:
        status = load_status(engine)
        if not wish_path(engine).exists() and status is not None:
            if status.phase in WANTED[what]:
                return status
            if status.phase == "back" and what == "promote" and status.reason.startswith("could not"):
                raise DataError(f"{engine}: {status.reason}")
        if time.monotonic() >= deadline:
            break
        time.sleep(LOOK_S)
    if wish_path(engine).exists() and status is not None and status.phase == "opening":
        raise DataError(
            f"{engine}: its stream was still opening it after {wait_s:g} s; ask again, with a longer --wait"
        )
    if wish_path(engine).exists():
        raise DataError(
            f"{engine}: no stream has it as its shadow; start one with `tsss-edge stream OLD SOURCE --shadow {engine}`"
        )
    raise DataError(f"{engine}: not done within {wait_s:g} s; see {engine.name}.rollout.json")
