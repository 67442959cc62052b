"""Decoded pictures and masks of all sets of this process, within one bound.

An epoch asks for each picture of a set once, in a new order, so putting one picture of a set out for another of the same set would
gain nothing: what is kept of a set stays. A set that is in use puts out those that were not used for longer: the pictures of a
stage that is over make room for those of the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from typing import TypeVar
from weakref import finalize, ref

import numpy as np
from numpy.typing import NDArray

from tsss_edge.machine import memory_bytes

Arrays = TypeVar("Arrays", bound=tuple[NDArray[np.uint8], ...])
MOST = 4 << 30
SHARE = 4  # at most one part in so many of the machine's memory


class PictureCache:
    """`limit` bytes of arrays, on shelves."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._shelves = OrderedDict[int, ref[Shelf]]()  # longest unused first
        self._lock = RLock()  # a shelf may be collected, and `_gone` called, by a thread that holds it

    def shelf(self) -> Shelf:
        """A place for the arrays of one set; they go when it goes."""
        shelf = Shelf(self)
        with self._lock:
            self._shelves[id(shelf)] = ref(shelf)
        finalize(shelf, self._gone, id(shelf), shelf.kept)
        return shelf

    def keep(self, shelf: Shelf, key: str, arrays: tuple[NDArray[np.uint8], ...]) -> None:
        """Keep arrays while there is room or another shelf, unused for longer, can make some."""
        wanted = _size(arrays)
        with self._lock:
            self._shelves.move_to_end(id(shelf))
            if key not in shelf.kept and self._make_room(shelf, wanted):
                shelf.kept[key] = arrays
                self.bytes += wanted

    def used(self, shelf: Shelf) -> None:
        """Note that a shelf is in use."""
        with self._lock:
            self._shelves.move_to_end(id(shelf))

    def _make_room(self, shelf: Shelf, wanted: int) -> bool:
        for other in [
            found for at in list(self._shelves.values()) if (found := at()) is not None and found is not shelf
        ]:
            while other.kept and self.bytes + wanted > self.limit:
                self.bytes -= _size(other.kept.popitem()[1])
        return self.bytes + wanted <= self.limit

    def _gone(self, shelf: int, kept: dict[str, tuple[NDArray[np.uint8], ...]]) -> None:
        with self._lock:
            self._shelves.pop(shelf, None)
            self.bytes -= sum(_size(arrays) for arrays in kept.values())


class Shelf:
    """The arrays of one set that are kept, by key."""

    def __init__(self, cache: PictureCache) -> None:
        self._cache, self.kept = cache, dict[str, tuple[NDArray[np.uint8], ...]]()

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """What is kept under a key, or what `make` gives. From any thread."""
        found = self.kept.get(key)
        if found is None:
            found = make()
            self._cache.keep(self, key, found)
        else:
            self._cache.used(self)
        return found  # type: ignore[return-value]  # under one key stands one kind


def _size(arrays: tuple[NDArray[np.uint8], ...]) -> int:
    return sum(array.nbytes for array in arrays)


PICTURES = PictureCache(min(MOST, memory_bytes()[0] // SHARE or MOST))
