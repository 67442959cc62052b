"""The threads of the live loop: a generator that runs ahead of its consumer, and the slots that frames go round in."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class SlotRing:
    """A slot goes round: `take` (its frame begins), `ran` (the engine is done), `give` (nobody reads its arrays any more).

    Args: slots: how many there are. in_flight: frames that the engine may have at once. A frame behind others only grows
          old, so a live source has 1; more of them hide copies behind the network.
    """

    def __init__(self, slots: int, in_flight: int) -> None:
        assert 1 <= in_flight <= slots
        self._free = deque(range(slots))
        self._room = in_flight
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> int | None:
        """A free slot, as soon as there is one and the engine has room; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._room and self._free))
            if self._closed:
                return None
            self._room -= 1
            return self._free.popleft()

    def ran(self) -> None:
        """The engine is done with one frame."""
        with self._changed:
            self._room += 1
            self._changed.notify_all()

    def give(self, slot: int) -> None:
        """A slot is free again."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> None:
        """Wake whoever waits in `take`. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True)
class _End:
    """After the last item: why there are no more (None: the generator was done)."""

    error: BaseException | None = None


def prefetch(
    items: Generator[T, None, None], *, depth: int, name: str, wake: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Run `items` on a thread called `name`, at most `depth` items ahead of whoever iterates the result.

    An error of `items` is raised here, after the items before it. When this generator ends for whatever reason (closed,
    or Ctrl-C while it waits) it closes `items` on the thread that ran it, and waits for that. `wake` is called before:
    it must bring `items` back from wherever it blocks.
    """
    ready: queue.Queue[T | _End] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, ready, stopped), name=name, daemon=True)
    thread.start()
    try:
        while not isinstance(entry := ready.get(), _End):
            yield entry
        if entry.error is not None:
            raise entry.error
    finally:
        stopped.set()
        wake()
        while thread.is_alive():
            _drain(ready)  # a producer that waits for room goes on, and sees that it is stopped
            thread.join(0.002)


def _produce(items: Generator[T, None, None], ready: queue.Queue[T | _End], stopped: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            ready.put(item)
            if stopped.is_set():
                break
        items.close()
    except BaseException as caught:  # whatever it is belongs to the consumer
        error = caught
    ready.put(_End(error))


def _drain(ready: queue.Queue[T | _End]) -> None:
    try:
        while True:
            ready.get_nowait()
    except queue.Empty:
        return
