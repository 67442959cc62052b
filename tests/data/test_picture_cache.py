"""What is kept of decoded pictures, and what makes room."""

from __future__ import annotations

import gc

import numpy as np

from tsss_edge.data.picture_cache import PictureCache, Shelf


class Made:
    """A set whose pictures take 10 bytes; it counts how often one is read."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.read = shelf, 0

    def ask(self, *keys: str) -> None:
        for key in keys:
            (found,) = self.shelf.get(key, self._picture)
            assert found.nbytes == 10

    def _picture(self) -> tuple[np.ndarray]:
        self.read += 1
        return (np.zeros(10, np.uint8),)


def test_what_is_kept_of_a_set_stays() -> None:
    cache = PictureCache(35)
    made = Made(cache.shelf())
    made.ask(*"abcde")
    made.ask(*"abcde")
    assert made.read == 5 + 2 and cache.bytes == 30  # d and e are read again; LRU would have read all five


def test_a_set_in_use_puts_out_the_one_unused_for_longest() -> None:
    cache = PictureCache(40)
    first, second, third = (Made(cache.shelf()) for _ in range(3))
    first.ask(*"ab")
    second.ask(*"cd")
    third.ask(*"ef")
    assert cache.bytes == 40 and not first.shelf.kept and len(second.shelf.kept) == 2
    second.ask(*"cdg")
    assert second.read == 3 and len(second.shelf.kept) == 3 and len(third.shelf.kept) == 1


def test_a_set_that_goes_takes_its_pictures_with_it() -> None:
    cache = PictureCache(40)
    made = Made(cache.shelf())
    made.ask(*"abc")
    del made
    gc.collect()
    assert cache.bytes == 0


def test_what_is_larger_than_the_bound_is_given_and_not_kept() -> None:
    cache = PictureCache(5)
    made = Made(cache.shelf())
    made.ask("a", "a")
    assert made.read == 2 and cache.bytes == 0
