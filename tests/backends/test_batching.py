"""Single requests put together into batches: the same answers, full batches under load, no wait beyond the deadline."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends.batching import BatchingBackend
from tsss_edge.backends.fake import FakeBackend

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
PREPROCESS = Preprocess(size_hw=(64, 96))
LONG_MS = 60_000.0


def batching(*, wait_ms: float, slots: int = 8, **options: Any) -> BatchingBackend:
    inner = FakeBackend(CLASSES, PREPROCESS, slots=2, objectness=True, **options)
    return BatchingBackend(inner, batch=4, wait_ms=wait_ms, slots=slots)


def picture(value: int) -> np.ndarray:
    return np.full((1, 64, 96, 3), value, np.uint8)


def answer(backend: BatchingBackend, slot: int) -> int:
    outputs = backend.wait(slot)
    assert outputs["logits"].shape == (1, 4, 8, 12) and outputs["objectness"].shape == (1, 1, 8, 12)
    return int(np.unique(outputs["logits"].argmax(axis=1)).item())


def test_a_full_batch_starts_at_once_and_each_gets_its_own_answer() -> None:
    with batching(wait_ms=LONG_MS) as backend:
        for slot, value in enumerate((30, 90, 160, 220)):
            backend.start(slot, picture(value))
        assert [answer(backend, slot) for slot in (3, 1, 0, 2)] == [3, 1, 0, 2]
        assert (backend.calls, backend.pictures) == (1, 4)


def test_a_lonely_request_starts_at_the_deadline() -> None:
    with batching(wait_ms=20) as backend:
        started = time.monotonic()
        backend.start(0, picture(90))
        assert answer(backend, 0) == 1
        assert time.monotonic() - started >= 0.02
        assert (backend.calls, backend.pictures) == (1, 1)


def test_many_threads_get_what_single_calls_give() -> None:
    values = np.random.default_rng(0).integers(0, 256, 200)
    with batching(wait_ms=1, latency_ms=0.5) as backend:
        slots = list(range(backend.slots))
        lock = threading.Lock()

        def one(value: int) -> int:
            with lock:
                slot = slots.pop()
            backend.start(slot, picture(value))
            found = answer(backend, slot)
            with lock:
                slots.append(slot)
            return found

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(one, values.tolist()))
        assert found == (values * 4 // 256).tolist()
        assert backend.calls < backend.pictures == 200


def test_a_failure_reaches_everybody_in_the_batch_and_the_next_batch_runs() -> None:
    inner = FakeBackend(CLASSES, PREPROCESS, slots=2, objectness=True, fail_at=0)
    with BatchingBackend(inner, batch=4, wait_ms=LONG_MS, slots=8) as backend:
        for slot in range(4):
            backend.start(slot, picture(90))
        inner.calls = 1  # it failed once
        for slot in range(4, 8):
            backend.start(slot, picture(90))
        for slot in range(4):
            with pytest.raises(RuntimeError, match="fake failure"):
                backend.wait(slot)
        assert [answer(backend, slot) for slot in range(4, 8)] == [1] * 4


def test_close_starts_what_waits_and_ends_the_thread() -> None:
    before = set(threading.enumerate())
    backend = batching(wait_ms=LONG_MS)
    backend.start(0, picture(160))
    waiter = ThreadPoolExecutor(1)
    found = waiter.submit(answer, backend, 0)
    backend.close()
    assert found.result(20) == 2
    waiter.shutdown()
    assert not set(threading.enumerate()) - before


def test_more_than_one_picture_is_refused() -> None:
    with batching(wait_ms=1) as backend, pytest.raises(ValueError, match="expected one picture, got 2"):
        backend.start(0, np.zeros((2, 64, 96, 3), np.uint8))
