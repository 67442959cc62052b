"""Which slot may take the next frame: one that nobody reads any more, while the engine has few enough frames."""

from __future__ import annotations

import threading
from collections import deque


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
