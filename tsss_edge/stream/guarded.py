"""Stages of an engine on probation: a frame on which it fails is done by the old one, so that no frame is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from tsss_edge.stream.engine_slot import Served
from tsss_edge.stream.frames import Frame, FrameResult, Picture

LOG = logging.getLogger("tsss_edge")


class GuardedStages:
    """`Stages` of `new` with those of `old` behind them. `failed` is called with each error, on the loop's threads."""

    def __init__(self, new: Served, old: Served, failed: Callable[[Exception], None]) -> None:
        self._new, self._old, self._failed = new.stages, old, failed
        self.name, self.slots, self.in_flight = new.stages.name, new.stages.slots, new.stages.in_flight
        self._pictures: dict[int, Picture] = {}  # of frames in the engine
        self._by_old: set[int] = set()  # slots

    def thread(self) -> AbstractContextManager[object]:
        """Of both engines: they run on one kind of device."""
        return self._new.thread()

    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None:
        """Begin on the new engine; on the old one where that fails."""
        self._pictures[slot] = picture
        self._by_old.discard(slot)
        try:
            self._new.start(slot, picture, stages_ms)
        except Exception as error:  # whatever a driver raises must not cost a frame
            self._fall(slot, stages_ms, error)

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """Wait for whoever has the frame; a failure gives it to the old engine, from the start."""
        try:
            if slot not in self._by_old:
                self._new.wait(slot, stages_ms)
        except Exception as error:
            self._fall(slot, stages_ms, error)
        if slot in self._by_old:
            self._old.stages.wait(slot, stages_ms)
        self._pictures.pop(slot, None)

    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> FrameResult:
        """The result, with the name of the old engine where that made it."""
        if slot not in self._by_old:
            return self._new.result(slot, frame, stages_ms)
        result = self._old.stages.result(slot, frame, stages_ms)
        result.engine, result.classes = self._old.name, self._old.backend.classes
        return result

    def free(self, slot: int) -> None:
        """Nobody reads the arrays of `slot` any more."""
        (self._old.stages if slot in self._by_old else self._new).free(slot)

    def close(self) -> None:
        """Close the new engine's; one that failed may fail again."""
        try:
            self._new.close()
        except Exception as error:
            LOG.warning("%s: closed with an error: %s", self.name, error)

    def _fall(self, slot: int, stages_ms: dict[str, float], error: Exception) -> None:
        self._by_old.add(slot)
        self._old.stages.start(slot, self._pictures[slot], stages_ms)
        self._failed(error)
