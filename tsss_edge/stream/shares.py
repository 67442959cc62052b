"""Who is next on a full machine: weighted fair queueing (Demers, Keshav, Shenker 1989), a frame as the unit of cost."""

from __future__ import annotations

from collections.abc import Sequence


class Shares:
    """Gives turns so that those who always want one get them in proportion to their weights.

    Whoever wants fewer gets all of them. Turns that somebody did not want are not saved up.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = list(weights)
        self._used = [0.0] * len(self._weights)  # turns taken, over the weight
        self._now = 0.0  # of whoever had the last turn

    def pick(self, ready: Sequence[int]) -> int:
        """The number of the one among `ready` (not empty) that is next; it has had its turn."""
        for one in ready:
            self._used[one] = max(self._used[one], self._now - 1 / self._weights[one])
        chosen = min(ready, key=self._finish)
        self._now = self._used[chosen]
        self._used[chosen] = self._finish(chosen)
        return chosen

    def _finish(self, one: int) -> float:
        return self._used[one] + 1 / self._weights[one]
