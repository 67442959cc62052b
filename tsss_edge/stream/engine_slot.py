"""The engine in service, which another may replace between two frames: for `--shadow`, promotion, and a server's new version."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from tsss_edge.backends import AsyncBackend
from tsss_edge.stream.frames import Frame, FrameResult, Picture
from tsss_edge.stream.pipeline import Stages


@dataclass
class Served:
    """One engine in service: the name that reports and metrics give it, what runs it, and the slots that hold its arrays."""

    name: str
    backend: AsyncBackend
    stages: Stages
    slots: set[int] = field(default_factory=set)
    kept: bool = False  # out of service, and open: it may come back

    def close(self) -> None:
        """Wait for its frames in flight and let it go. Safe to call twice."""
        self.stages.close()
        self.backend.close()


class EngineSlot:
    """`Stages` that stand for whatever engine is in service.

    A frame ends on the engine it started on. `swap` returns at once; frames that start afterwards run on the new engine. The
    old one is closed, on a thread of its own, when the last of its results is freed.

    The first engine's back end belongs to whoever opened it, and is closed here only when another takes its place. All later
    ones belong to this object.
    """

    def __init__(self, first: Served) -> None:
        self._lock = threading.Lock()
        self._first = self._current = first
        self._of: dict[int, Served] = {}  # the engine whose arrays a slot holds
        self._kept: dict[int, Served] = {}
        self._closers: list[threading.Thread] = []
        self.slots, self.in_flight = first.stages.slots, first.stages.in_flight

    @property
    def current(self) -> Served:
        """The engine that the next frame starts on."""
        return self._current

    @property
    def name(self) -> str:
        return self._current.stages.name

    def swap(self, new: Served, *, keep: bool = False) -> Served:
        """Put `new` in service and return the engine that leaves it. keep: leave that one open, for the way back.

        Raises: ValueError: it has fewer slots or requests than the loop uses.
        """
        if new.stages.slots < self.slots or new.stages.in_flight < self.in_flight:
            raise ValueError(
                f"{new.name}: {new.stages.slots} slots, {new.stages.in_flight} in flight; the loop uses {self.slots} and "
                f"{self.in_flight}. Open it with the same settings"
            )
        with self._lock:
            old, self._current = self._current, new
            old.kept, new.kept = keep, False
            leaves = self._leaves(old)
        if leaves:
            self._retire(old)
        return old

    def drop(self, old: Served) -> None:
        """A kept engine is not needed any more: close it as soon as it holds no result."""
        with self._lock:
            old.kept = False
            leaves = self._leaves(old)
        if leaves:
            self._retire(old)

    def thread(self) -> AbstractContextManager[object]:
        """What a thread of the loop needs; the same for all engines of one kind of device."""
        return self._current.stages.thread()

    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None:
        """Begin a picture in `slot`, on the engine in service now."""
        with self._lock:
            served = self._of[slot] = self._current
            served.slots.add(slot)
        served.stages.start(slot, picture, stages_ms)

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """Wait for the network of `slot`."""
        self._of[slot].stages.wait(slot, stages_ms)

    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> FrameResult:
        """The result of `frame`, with the name and the classes of the engine that made it."""
        served = self._of[slot]
        result = served.stages.result(slot, frame, stages_ms)
        if not result.engine:  # stages that stand for several engines have said which
            result.engine, result.classes = served.name, served.backend.classes
        return result

    def free(self, slot: int) -> None:
        """Nobody reads the arrays of `slot` any more."""
        with self._lock:
            served = self._of.pop(slot)
            served.slots.discard(slot)
            leaves = self._leaves(served)
        if leaves:
            self._retire(served)

    def close(self) -> None:
        """Close what runs frames, and every engine that came by `swap`. Safe to call twice."""
        with self._lock:
            left = {id(served): served for served in (*self._of.values(), *self._kept.values(), self._current)}
            self._of.clear()
        for served in left.values():
            served.stages.close()
            if served is not self._first:
                served.backend.close()
        for thread in self._closers:
            thread.join()

    def _leaves(self, served: Served) -> bool:
        """Whether it is to be closed now. Within the lock: a moment later it may be in service again."""
        if served.slots or served is self._current:
            return False
        if served.kept:
            self._kept[id(served)] = served
            return False
        self._kept.pop(id(served), None)
        return True

    def _retire(self, old: Served) -> None:
        """Close on a thread of its own: letting a network go takes longer than a frame."""
        thread = threading.Thread(target=old.close, name=f"close {old.name}")
        self._closers.append(thread)
        thread.start()
