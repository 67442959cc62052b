"""How many frames a second are wanted -> which frames of a faster source those are."""

from __future__ import annotations


class Pace:
    """Says of each frame whether it is due. A source's beat is not exact: a quarter of a period early is due.

    Args: max_fps: frames a second that are wanted; None for all.
    """

    def __init__(self, max_fps: float | None) -> None:
        self._period = 1 / max_fps if max_fps else 0.0
        self._next = float("-inf")

    def due(self, time_s: float) -> bool:
        """Whether the frame of this time, by any clock, is wanted."""
        if not self._period:
            return True
        if time_s < self._next - self._period / 4:
            return False
        self._next = (self._next if time_s - self._next < self._period else time_s) + self._period
        return True
