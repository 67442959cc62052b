"""Scheduling of the CUDA loop without a GPU: slots, order, limits, errors, on a device with latency."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest

from tsss_edge.stream.cuda.frames import Answer
from tsss_edge.stream.cuda.pipeline import IN_FLIGHT, CudaPipeline, slots_needed
from tsss_edge.stream.cuda.ring import SlotRing
from tsss_edge.stream.frames import Frame, Result

PATIENCE_S = 20.0
AHEAD = 2


class FakeDevice:
    """Slots like a GPU's: `start` returns at once, networks run one after the other, `wait` takes what is left.

    The labels of a slot are overwritten by its next `start`, as pinned memory is.
    """

    def __init__(self, slots: int, *, latency_s: float = 0.002, fail: str = "") -> None:
        self.slots = slots
        self.closed = False
        self.running = self.most = self.starts = 0
        self.full = threading.Event()  # as many frames run as a file may have
        self._latency_s, self._fail = latency_s, fail
        self._labels = [np.zeros((2, 2), np.uint8) for _ in range(slots)]
        self._ready_at, self._idle_at = [0.0] * slots, 0.0
        self._lock, self._local = threading.Lock(), threading.local()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._local.inside = True
        yield
        self._local.inside = False

    def start(self, slot: int, image: np.ndarray) -> None:
        assert self._local.inside
        self._maybe_fail("start", int(image[0, 0, 0]))
        self._labels[slot][:] = image[0, 0, 0]
        with self._lock:
            self.starts += 1
            self.running += 1
            self.most = max(self.most, self.running)
            self._idle_at = max(self._idle_at, time.monotonic()) + self._latency_s
            self._ready_at[slot] = self._idle_at
        if self.running == IN_FLIGHT:
            self.full.set()

    def wait(self, slot: int) -> Answer:
        assert self._local.inside
        time.sleep(max(0.0, self._ready_at[slot] - time.monotonic()))
        self._maybe_fail("wait", int(self._labels[slot][0, 0]))
        with self._lock:
            self.running -= 1
        return Answer(self._labels[slot], None, None, {"network": 1.0})

    def close(self) -> None:
        self.closed = True

    def _maybe_fail(self, where: str, value: int) -> None:
        if self._fail == where and value == 5:
            raise RuntimeError(f"{where} failed")


class FakeSource:
    """`count` frames whose first value is their index."""

    fps, size_hw, state = 30.0, (2, 2), "STREAMING"

    def __init__(self, count: int, *, live: bool = False, fail_at: int = -1) -> None:
        self.live, self.length = live, count
        self.reads = 0
        self._fail_at = fail_at

    def read(self, out: np.ndarray | None = None) -> Frame | None:
        if self.reads == self._fail_at:
            raise RuntimeError("read failed")
        if self.reads == self.length:
            return None
        self.reads += 1
        index = self.reads - 1
        return Frame(np.full((2, 2, 3), index, np.uint8), index, time.monotonic())

    def close(self) -> None:
        self.length = self.reads


@contextmanager
def streaming(source: FakeSource, device: FakeDevice) -> Iterator[tuple[CudaPipeline, Generator[Result, None, None]]]:
    """As `loop.run` opens and closes it; afterwards no thread may be left, and the device is closed."""
    before = threading.active_count()
    pipeline = CudaPipeline(source, device, ahead=AHEAD)
    try:
        with closing(pipeline.results()) as results, closing(pipeline):
            yield pipeline, results
    finally:
        assert threading.active_count() == before
        assert device.closed


def test_every_frame_of_a_file_in_order_and_untouched_until_recycled() -> None:
    source, device = FakeSource(60), FakeDevice(slots_needed(live=False, ahead=AHEAD), latency_s=0.0005)
    indices = []
    with streaming(source, device) as (pipeline, results):
        for result in results:
            if result.frame.index % 7 == 0:
                time.sleep(0.003)  # meanwhile the slots go on as far as they may
            assert (result.labels == result.frame.index).all()
            assert set(result.stages_ms) == {"decode", "to_pinned", "network"}
            indices.append(result.frame.index)
            pipeline.recycle(result)
    assert indices == list(range(60))
    assert device.most <= IN_FLIGHT


def test_a_file_fills_the_gpu_while_a_sink_is_slow() -> None:
    """One result is with the sink, AHEAD wait, one is held, and still IN_FLIGHT frames are on the GPU."""
    device = FakeDevice(slots_needed(live=False, ahead=AHEAD), latency_s=0.02)
    with streaming(FakeSource(40), device) as (_, results):
        first = next(results)
        assert device.full.wait(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while device.starts < device.slots and time.monotonic() < deadline:
            time.sleep(0.001)
        assert device.starts == device.slots, "every slot is in use, and none twice"
        assert (first.labels == 0).all()


def test_a_live_source_is_read_only_when_a_frame_can_start() -> None:
    source = FakeSource(30, live=True)
    device = FakeDevice(slots_needed(live=True, ahead=AHEAD))
    with streaming(source, device) as (pipeline, results):
        for result in results:
            assert source.reads <= device.starts + 1
            pipeline.recycle(result)
    assert device.most == 1
    assert device.starts == 30


@pytest.mark.parametrize("where", ["start", "wait", "read"])
def test_errors_come_to_the_consumer_after_the_results_before_them(where: str) -> None:
    source = FakeSource(20, fail_at=5 if where == "read" else -1)
    device = FakeDevice(slots_needed(live=False, ahead=AHEAD), fail=where)
    indices = []
    with pytest.raises(RuntimeError, match=f"{where} failed"), streaming(source, device) as (pipeline, results):
        for result in results:
            indices.append(result.frame.index)
            pipeline.recycle(result)
    assert indices == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("live", [True, False])
def test_a_consumer_that_stops_ends_every_thread(live: bool) -> None:
    """The slots are all taken at that time: whoever waits for one is woken."""
    device = FakeDevice(slots_needed(live=live, ahead=AHEAD))
    with streaming(FakeSource(255, live=live), device) as (_, results):
        next(results)
        next(results)


def test_a_device_with_few_slots_is_slower_but_right() -> None:
    device = FakeDevice(1)
    with streaming(FakeSource(9), device) as (pipeline, results):
        for index, result in enumerate(results):
            assert (result.labels == index).all()
            pipeline.recycle(result)
    assert device.most == 1


def test_ring() -> None:
    ring = SlotRing(3, in_flight=2)
    assert [ring.take(), ring.take()] == [0, 1]
    taken: list[int | None] = []
    waiting = threading.Thread(target=lambda: taken.extend([ring.take(), ring.take()]))
    waiting.start()
    ring.ran()  # room, and slot 2 is free
    ring.ran()  # room, but no slot
    ring.give(1)
    waiting.join(PATIENCE_S)
    assert taken == [2, 1]
    ring.close()
    assert ring.take() is None
