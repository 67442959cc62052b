"""An engine on probation: who does a frame, and who is asked for its result and told that it is free."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tsss_edge.stream.guarded import GuardedStages


class Stages:
    """What is called, by slot; `start` or `wait` may fail."""

    slots = in_flight = 2

    def __init__(self, name: str, fails: str = "") -> None:
        self.name, self.fails, self.called = name, fails, list[tuple[str, int]]()

    def thread(self) -> Any:
        return nullcontext()

    def start(self, slot: int, picture: Any, stages_ms: dict[str, float]) -> None:
        self._note("start", slot)

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        self._note("wait", slot)

    def result(self, slot: int, frame: Any, stages_ms: dict[str, float]) -> Any:
        self._note("result", slot)
        return SimpleNamespace(engine=self.name, classes=None)

    def free(self, slot: int) -> None:
        self._note("free", slot)

    def close(self) -> None:
        self._note("close", -1)

    def _note(self, what: str, slot: int) -> None:
        self.called.append((what, slot))
        if what == self.fails:
            raise RuntimeError(f"{what} fails")


def guarded(new: Stages, old: Stages, faults: list[Exception]) -> GuardedStages:
    def served(stages: Stages) -> Any:
        return SimpleNamespace(stages=stages, name=stages.name, backend=SimpleNamespace(classes=f"{stages.name}'s"))

    return GuardedStages(served(new), served(old), faults.append)


@pytest.mark.parametrize("fails", ["", "start", "wait"])
def test_one_engine_has_a_frame_from_result_to_free(fails: str) -> None:
    new, old, faults = Stages("new", fails), Stages("old"), list[Exception]()
    stages: Any = guarded(new, old, faults)
    stages.start(1, np.zeros((2, 2, 3), np.uint8), {})
    stages.wait(1, {})
    result = stages.result(1, None, {})
    stages.free(1)
    whole, last, other = (
        [(what, 1) for what in ("start", "wait", "result", "free")],
        old if fails else new,
        new if fails else old,
    )
    assert last.called == whole
    assert (result.engine, len(faults)) == (last.name, 1 if fails else 0)
    assert other.called == whole[: {"": 0, "start": 1, "wait": 2}[fails]]


def test_a_slot_that_failed_once_is_the_new_engines_again() -> None:
    new, old = Stages("new", "start"), Stages("old")
    stages: Any = guarded(new, old, [])
    stages.start(0, np.zeros((2, 2, 3), np.uint8), {})
    new.fails = ""
    stages.start(0, np.zeros((2, 2, 3), np.uint8), {})
    stages.wait(0, {})
    stages.free(0)
    assert new.called == [("start", 0), ("start", 0), ("wait", 0), ("free", 0)]
    assert old.called == [("start", 0)]
