"""Source and engine overlapped: frames go in, results come out in order. `Stages` knows what is done to a frame.

Up to three generators run, each on a thread of its own. The consumer's thread (the sinks) comes after them:

    read --> feed: free slot, start --> finish: wait, result --> sinks
               ^                                                    |
               '------------------- free slots ---------------------'

`feed` reads a live source itself, and only when a frame can start: a frame that waits in a queue grows old.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import Outputs
from tsss_edge.errors import ArtifactError
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.stream.frames import Frame, FrameResult, Picture, Source
from tsss_edge.stream.threads import SlotRing, prefetch

READ_AHEAD = 2  # decoded frames that wait for a slot
READY = 2  # of files: results that wait for the sinks
FINITE_FRAMES = 8  # an engine that overflows does so on its first pictures


class Stages(Protocol):
    """What happens to a frame between source and sinks (`CpuStages`, `CudaStages`), to several at once in slots.

    One thread calls `start`, another calls `wait` and `result`, each within `thread()`. All add to `stages_ms`.
    A result's arrays are its slot's. They stay as they are until the next `wait` of that slot.
    """

    @property
    def name(self) -> str: ...  # what runs where, for the report
    @property
    def slots(self) -> int: ...
    @property
    def in_flight(self) -> int: ...  # frames that the engine works on at once, of a file; of a live source it is one
    def thread(self) -> AbstractContextManager[object]: ...
    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None: ...
    def wait(self, slot: int, stages_ms: dict[str, float]) -> None: ...  # the network is done, its outputs are safe
    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> FrameResult: ...
    def free(self, slot: int) -> None: ...  # the sinks are done with the result
    def close(self) -> None: ...  # safe to call twice


class _Started(NamedTuple):
    """A frame in the engine."""

    frame: Frame
    slot: int
    stages_ms: dict[str, float]


class Pipeline:
    """Iterate `results()`, and hand each result back with `recycle` when the sinks are done with it.

    Args: abandon: called when nobody waits for results any more: it brings `stages.wait` back from an engine that is lost.
    """

    def __init__(self, source: Source, stages: Stages, abandon: Callable[[], None] = lambda: None) -> None:
        self._source, self._stages, self._abandon = source, stages, abandon
        self._ring = SlotRing(stages.slots, 1 if source.live else stages.in_flight)
        self._slot_of: dict[int, int] = {}
        self._stopped = threading.Event()
        self._images: deque[NDArray[np.uint8]] = deque()  # that the sinks are done with; only `_read` takes some out

    def results(self) -> Generator[FrameResult, None, None]:
        """Give every result, in the order of the source. Raises: what source and stages raise."""
        frames = self._read()
        if not self._source.live:
            frames = prefetch(frames, depth=READ_AHEAD, name="decode", wake=self._stop)
        started = prefetch(self._feed(frames), depth=self._stages.slots, name="feed", wake=self._stop)
        ready = ready_results(live=self._source.live)
        return prefetch(self._finish(started), depth=ready, name="finish", wake=self._end)

    def recycle(self, result: FrameResult) -> None:
        """Free the slot and the image of a result."""
        slot = self._slot_of.pop(id(result))
        self._stages.free(slot)
        self._ring.give(slot)
        picture = result.frame.picture
        if not self._source.live and not isinstance(picture, Yuv):  # a live source compares its last one with the next
            self._images.append(picture)

    def _end(self) -> None:
        self._abandon()
        self._stop()

    def _stop(self) -> None:
        """Bring every thread back from where it may block, so that it can end."""
        self._stopped.set()
        self._ring.close()
        if self._source.live:  # a file's reader comes back by itself, and its decoder allows one thread only
            self._source.close()

    def _read(self) -> Generator[Frame, None, None]:
        while not self._stopped.is_set():
            started = time.monotonic()
            frame = self._source.read(self._images.popleft() if self._images else None)
            if frame is None:
                return
            if not self._source.live:  # at a camera the time is mostly waiting
                frame.decode_ms = (time.monotonic() - started) * 1000
            yield frame

    def _feed(self, frames: Generator[Frame, None, None]) -> Generator[_Started, None, None]:
        """Take first a slot and then a frame, so that the frame is the newest there is."""
        with closing(frames), self._stages.thread():
            while (slot := self._ring.take()) is not None and (frame := next(frames, None)) is not None:
                started = _Started(frame, slot, {} if frame.decode_ms is None else {"decode": frame.decode_ms})
                self._stages.start(slot, frame.picture, started.stages_ms)
                yield started

    def _finish(self, running: Generator[_Started, None, None]) -> Generator[FrameResult, None, None]:
        with closing(running), self._stages.thread():
            for frame, slot, stages_ms in running:
                self._stages.wait(slot, stages_ms)
                self._ring.ran()
                result = self._stages.result(slot, frame, stages_ms)
                self._slot_of[id(result)] = slot
                yield result


def ready_results(*, live: bool) -> int:
    """How many results may wait for the sinks."""
    return 1 if live else READY


def slots_needed(in_flight: int, *, ready: int = READY) -> int:
    """Slots for a stream: in the engine, ready for the sinks, with the sinks, and one that waits for room among the ready."""
    return in_flight + ready + 2


@contextmanager
def timed(stages_ms: dict[str, float], name: str) -> Iterator[None]:
    """Put the milliseconds of the block into `stages_ms[name]`."""
    started = time.monotonic()
    yield
    stages_ms[name] = (time.monotonic() - started) * 1000


def require_finite(outputs: Outputs) -> None:
    """Raise ArtifactError when an output holds NaN or infinity."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(
                f"the engine's {name} hold NaN or infinity, expected finite numbers; "
                "build it again, in FP32 where this machine's lower precision overflows"
            )
