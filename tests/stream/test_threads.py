"""A generator on a thread of its own: order, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from tsss_edge.stream.threads import prefetch

PATIENCE_S = 20.0


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def wait_for_no_thread(name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while named(name):
        assert time.monotonic() < deadline, f"thread {name} is still there"
        time.sleep(0.002)


def count_to(n: int, closed: list[str] | None = None) -> Generator[int, None, None]:
    try:
        yield from range(n)
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


def test_every_item_in_order() -> None:
    assert list(prefetch(count_to(200), depth=3, name="counter")) == list(range(200))
    assert not named("counter")


def test_it_runs_ahead_but_not_further_than_its_depth() -> None:
    made: list[int] = []

    def items() -> Generator[int, None, None]:
        for n in range(50):
            made.append(n)
            yield n

    with closing(prefetch(items(), depth=2, name="ahead")) as ahead:
        assert next(ahead) == 0
        deadline = time.monotonic() + PATIENCE_S
        while len(made) < 4:  # item 0 was taken, 1 and 2 are in the queue, 3 waits for room
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.05)
        assert len(made) == 4


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Generator[int, None, None]:
        yield from range(3)
        raise ValueError("broken camera")

    got = []
    with pytest.raises(ValueError, match="broken camera"):
        for item in prefetch(items(), depth=8, name="broken"):
            got.append(item)
    assert got == [0, 1, 2]
    assert not named("broken")


@pytest.mark.parametrize("taken", [1, 5])
def test_a_consumer_that_stops_ends_the_thread(taken: int) -> None:
    closed: list[str] = []
    with closing(prefetch(count_to(1000, closed), depth=1, name="stopped")) as items:
        for _ in range(taken):
            next(items)
    assert closed == ["stopped"]  # on the thread that ran it
    assert not named("stopped")


def test_a_consumer_that_fails_ends_the_thread() -> None:
    with pytest.raises(RuntimeError, match="sink"), closing(prefetch(count_to(1000), depth=1, name="failed")) as items:
        for _ in items:
            raise RuntimeError("sink")
    assert not named("failed")


def test_stages_in_a_row_end_together() -> None:
    def double(items: Generator[int, None, None]) -> Generator[int, None, None]:
        with closing(items):
            for item in items:
                yield 2 * item

    closed: list[str] = []
    first = prefetch(count_to(1000, closed), depth=1, name="first")
    with closing(prefetch(double(first), depth=1, name="second")) as items:
        assert [next(items) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert closed == ["first"]
    assert not named("first") and not named("second")


def test_an_error_while_closing_is_not_lost() -> None:
    def items() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            raise OSError("no way to close")

    with pytest.raises(OSError, match="no way to close"):
        list(prefetch(items(), depth=1, name="bad close"))
    wait_for_no_thread("bad close")
