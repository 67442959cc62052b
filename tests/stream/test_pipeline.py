"""Scheduling of the live loop without any engine: slots, order, limits, errors, on stages with a device's latency."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
from loopkit import fake

from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.pipeline import READY, Pipeline, slots_needed
from tsss_edge.stream.threads import SlotRing

PATIENCE_S = 20.0
IN_FLIGHT = 3
SLOTS = slots_needed(IN_FLIGHT)
LIVE_SLOTS = slots_needed(1, ready=1)


class FakeStages:
    """Slots like a GPU's: `start` returns at once, networks run one after the other, `wait` takes what is left.

    The labels of a result are overwritten by its slot's next `start`, as pinned memory is.
    """

    name, in_flight = "fake", IN_FLIGHT

    def __init__(self, slots: int = SLOTS, *, latency_s: float = 0.002, fail: str = "") -> None:
        self.slots, self.in_flight = slots, min(IN_FLIGHT, slots)
        self.running = self.most = self.starts = 0
        self._latency_s, self._fail = latency_s, fail
        self._labels = [np.zeros((2, 2), np.uint8) for _ in range(slots)]
        self._ready_at, self._idle_at = [0.0] * slots, 0.0
        self._lock, self._local = threading.Lock(), threading.local()

    @contextmanager
    def thread(self) -> Iterator[None]:
        self._local.inside = True
        yield
        self._local.inside = False

    def start(self, slot: int, image: np.ndarray, stages_ms: dict[str, float]) -> None:
        assert self._local.inside
        self._maybe_fail("start", int(image[0, 0, 0]))
        self._labels[slot][:] = image[0, 0, 0]
        with self._lock:
            self.starts += 1
            self.running += 1
            self.most = max(self.most, self.running)
            self._idle_at = max(self._idle_at, time.monotonic()) + self._latency_s
            self._ready_at[slot] = self._idle_at
        stages_ms["start"] = 1.0

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        assert self._local.inside
        time.sleep(max(0.0, self._ready_at[slot] - time.monotonic()))
        self._maybe_fail("wait", int(self._labels[slot][0, 0]))
        with self._lock:
            self.running -= 1
        stages_ms["network"] = 1.0

    def result(self, slot: int, frame: Frame, stages_ms: dict[str, float]) -> FrameResult:
        assert self._local.inside
        self._maybe_fail("result", frame.index)
        return FrameResult(frame, self._labels[slot], None, None, stages_ms)

    def free(self, slot: int) -> None:
        """Nothing: the labels stay."""

    def close(self) -> None:
        """Nothing to free."""

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
def streaming(source: FakeSource, stages: FakeStages) -> Iterator[tuple[Pipeline, Generator[FrameResult, None, None]]]:
    """As `loop.run` opens and closes it; afterwards no thread may be left."""
    before = set(threading.enumerate())
    pipeline = Pipeline(source, stages)
    try:
        with closing(pipeline.results()) as results:
            yield pipeline, results
    finally:
        assert not set(threading.enumerate()) - before


def test_every_frame_of_a_file_in_order_and_untouched_until_recycled() -> None:
    stages = FakeStages(latency_s=0.0005)
    indices = []
    with streaming(FakeSource(60), stages) as (pipeline, results):
        for result in results:
            if result.frame.index % 7 == 0:
                time.sleep(0.003)  # meanwhile the slots go on as far as they may
            assert (result.labels == result.frame.index).all()
            assert set(result.stages_ms) == {"decode", "start", "network"}
            indices.append(result.frame.index)
            pipeline.recycle(result)
    assert indices == list(range(60))
    assert stages.most <= IN_FLIGHT


def test_a_file_fills_the_device_while_a_sink_is_slow() -> None:
    """One result is with the sink, READY wait, one is held, and still IN_FLIGHT frames run."""
    stages = FakeStages(latency_s=0.02)
    with streaming(FakeSource(40), stages) as (_, results):
        first = next(results)
        started, deadline = 1 + READY + 1 + IN_FLIGHT, time.monotonic() + PATIENCE_S
        while stages.starts < started and time.monotonic() < deadline:
            time.sleep(0.001)
        assert stages.starts == started == SLOTS, "every slot is in use, and none twice"
        assert stages.running == IN_FLIGHT
        assert (first.labels == 0).all()


def test_a_live_source_is_read_only_when_a_frame_can_start() -> None:
    source, stages = FakeSource(30, live=True), FakeStages(LIVE_SLOTS)
    with streaming(source, stages) as (pipeline, results):
        for result in results:
            assert source.reads <= stages.starts + 1
            pipeline.recycle(result)
    assert stages.most == 1
    assert stages.starts == 30


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("where", ["start", "wait", "result", "read"])
def test_errors_come_to_the_consumer_after_the_results_before_them(where: str, live: bool) -> None:
    source = FakeSource(20, live=live, fail_at=5 if where == "read" else -1)
    indices = []
    with (
        pytest.raises(RuntimeError, match=f"{where} failed"),
        streaming(source, FakeStages(fail=where)) as (pipeline, results),
    ):
        for result in results:
            indices.append(result.frame.index)
            pipeline.recycle(result)
    assert indices == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("live", [True, False])
def test_a_consumer_that_stops_ends_every_thread(live: bool) -> None:
    """The slots are all taken at that time: whoever waits for one is woken."""
    with streaming(FakeSource(255, live=live), FakeStages(LIVE_SLOTS)) as (_, results):
        next(results)
        next(results)


def test_one_slot_is_slower_but_right() -> None:
    stages = FakeStages(1)
    with streaming(FakeSource(9), stages) as (pipeline, results):
        for index, result in enumerate(results):
            assert (result.labels == index).all()
            pipeline.recycle(result)
    assert stages.most == 1


@pytest.mark.parametrize("where", ["start", "wait"])
def test_a_frame_that_fails_costs_the_engine_no_request(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, picture = fake(slots=1), np.full((48, 80, 3), 30, np.uint8)
    stages = CpuStages(backend, blend=False)

    def hiccup(*_: object) -> None:
        raise RuntimeError("hiccup")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="hiccup"):
        broken.setattr(backend, where, hiccup)
        stages.start(0, picture, {})
        stages.wait(0, {})
    backend._ready_at[0] = None  # a device forgets a call that failed
    stages.start(0, picture, {})
    stages.wait(0, {})
    stages.close()


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
