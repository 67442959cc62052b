"""The loop on a fake engine: order, drops, age, resolution, errors, endings, memory."""

from __future__ import annotations

import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from loopkit import CLASSES, GRAYS, Beat, Pictures, Seen, fake
from waiting import wait_for

from tsss_edge.backends import Outputs
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.errors import ArtifactError, DataError, UnavailableError
from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.stream.frames import Frame, FrameResult, Source
from tsss_edge.stream.live_loop import Pen, run
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sources import LiveSource
from tsss_edge.stream.sources.live import Shot

AHEAD = 9  # frames that slots and queues hold when a sink stands still (two slots, a file)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not [t for t in set(threading.enumerate()) - before if not t.name.startswith("source")]


def play(source: Source, backend: FakeBackend, *sinks: Seen, **options: object) -> tuple[str, Recorder]:
    recorder = Recorder()
    return run(source, backend, sinks, recorder, **options), recorder  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("head", ["logits", "labels"])
def test_every_frame_of_a_file_in_order_with_its_own_labels(slots: int, head: str) -> None:
    seen = Seen()
    ended, recorder = play(Pictures(40), fake(slots=slots, head=head, latency_ms=2), seen)
    assert seen.indices == list(range(40))
    assert seen.labels == [[n % 4] for n in range(40)]
    assert set(seen.shapes) == {(48, 80)}
    assert (ended, recorder.frames, recorder.dropped) == ("source", 40, 0)


def test_slow_sinks_and_a_slow_engine_lose_no_frame_of_a_file() -> None:
    seen = Seen(on_write=lambda result: threading.Event().wait(0.003) and None)
    play(Pictures(30), fake(latency_ms=4), seen)
    assert seen.indices == list(range(30))


def test_the_overlay_is_made_only_when_a_sink_wants_it() -> None:
    plain, coloured = Seen(), Seen(wants_overlay=True)
    play(Pictures(4), fake(), plain)
    assert plain.overlays == [] and "overlay" not in plain.stages[0]
    play(Pictures(4), fake(), coloured)
    colour = np.array(CLASSES.palette[1][::-1])
    assert np.array_equal(coloured.overlays[0], np.full((48, 80, 3), GRAYS[0]))  # background stays
    assert np.allclose(coloured.overlays[1][5, 5], (GRAYS[1] + colour) / 2, atol=1)


def test_what_is_drawn_beside_the_colours() -> None:
    plain, named = Seen(wants_overlay=True), Seen(wants_overlay=True)
    play(Pictures(4), fake(), plain, pen=Pen(CLASSES, "plain"))
    play(Pictures(4), fake(), named, pen=Pen(CLASSES, "names"))
    assert "draw" not in plain.stages[0] and named.stages[0][-1] == "draw"
    assert np.array_equal(plain.overlays[0], named.overlays[0])  # background has no name
    middle = (plain.overlays[1] != named.overlays[1]).any(axis=-1)
    assert middle[20:28, 35:45].any() and not middle[:10].any()  # the name stands in the middle of its region


def test_planes_become_a_picture_to_draw_on() -> None:
    planes = Yuv.empty((96, 160), Colour("bt601", full=False))
    planes.y[:] = 120
    for plane in planes.chroma:
        plane[:] = 128
    frame = Frame(picture=planes, index=0, captured=0.0)
    result = FrameResult(frame, np.full((96, 160), 1, np.uint8), None, planes, {})
    Pen(CLASSES, "names").write(result)
    assert isinstance(result.overlay, np.ndarray) and "draw" in result.stages_ms
    drawn = (result.overlay == CLASSES.palette[1][::-1]).all(axis=-1)
    assert drawn[40:56, 60:100].any() and not drawn[:20].any()


def test_stages_in_the_order_of_the_work() -> None:
    seen = Seen(wants_overlay=True)
    _, recorder = play(Pictures(4), fake(), seen)
    stages = ["decode", "preprocess", "network", "upsample_argmax", "overlay"]
    assert seen.stages[0] == stages
    assert list(recorder.numbers()["stages_ms"]) == [*stages, "sinks"]


def test_a_resolution_change_in_mid_stream() -> None:
    seen = Seen(wants_overlay=True)
    play(Pictures(12, sizes={4: (96, 64), 8: (48, 80)}), fake(), seen)
    assert seen.shapes == [(48, 80)] * 4 + [(96, 64)] * 4 + [(48, 80)] * 4
    assert [o.shape for o in seen.overlays] == [(*shape, 3) for shape in seen.shapes]
    assert seen.labels == [[n % 4] for n in range(12)]


def test_objectness_comes_along() -> None:
    grids: list[tuple[tuple[int, ...], float]] = []

    def note(result: FrameResult) -> None:
        assert result.objectness is not None
        grids.append((result.objectness.shape, float(result.objectness.min())))

    play(Pictures(3), fake(objectness=True), Seen(on_write=note))
    assert grids == [((8, 12), -8.0), ((8, 12), 8.0), ((8, 12), 8.0)]


def test_max_frames() -> None:
    seen = Seen()
    ended, recorder = play(Pictures(1000), fake(), seen, max_frames=7)
    assert (ended, seen.indices, recorder.frames) == ("max-frames", list(range(7)), 7)


def test_a_loop_that_stops_early_leaves_the_engine_idle() -> None:
    """Frames were in flight: whoever opened the engine must be able to use every slot of it at once."""
    backend, images = fake(slots=3, latency_ms=20), np.zeros((1, 64, 96, 3), np.uint8)
    play(Pictures(1000), backend, Seen(), max_frames=2)
    for slot in range(backend.slots):
        backend.start(slot, images)


# -- live ------------------------------------------------------------------------------------------------------------------


def test_a_live_source_on_a_slow_engine_drops_counts_and_stays_young() -> None:
    engine_ms, period_ms = 200, 5  # an engine this slow outweighs what a busy machine adds to a frame
    source = LiveSource(lambda: Beat(period_ms / 1000), name="beat")
    seen = Seen()
    _, recorder = play(source, fake(slots=1, latency_ms=engine_ms), seen, max_frames=8)
    assert seen.indices == sorted(set(seen.indices)), "in order, none twice"
    assert seen.labels == [[n % 4] for n in seen.indices], "the labels of the very frame"
    assert recorder.dropped == seen.indices[-1] + 1 - 8 > 8
    assert seen.dropped == [index - n for n, index in enumerate(seen.indices)], (
        "sinks know the drops before their frame"
    )
    assert (
        min(seen.ages_ms) >= engine_ms
    )  # an engine time is in every age; a queue would put a second one into all but the first
    assert min(seen.ages_ms[1:]) < 2 * engine_ms


class Unhurried(Beat):
    """Gives a frame when the one before has been seen, however slow the machine is."""

    def __init__(self, seen: Seen, frames: int = 1_000_000) -> None:
        super().__init__(0.001, frames)
        self._seen = seen

    def read(self) -> Shot | None:
        self.wait_until_seen()
        return super().read()

    def wait_until_seen(self) -> None:
        while len(self._seen.indices) < min(self._next, self._frames) and not self._stopped.wait(0.001):
            pass


def test_a_live_source_slower_than_the_engine_drops_nothing() -> None:
    seen = Seen()
    source = LiveSource(lambda: Unhurried(seen, frames=15), name="beat")
    ended, recorder = play(source, fake(slots=1), seen)
    assert (ended, recorder.dropped, seen.indices) == ("source", 0, list(range(15)))


def test_a_live_source_that_fails_is_an_error_after_its_last_frame() -> None:
    class Dying(Unhurried):
        def read(self) -> Shot | None:
            if self._next == 3:
                self.wait_until_seen()
                raise RuntimeError("cable pulled")
            return super().read()

    seen = Seen()
    with pytest.raises(DataError, match="cable pulled"):
        play(LiveSource(lambda: Dying(seen), name="beat"), fake(slots=1), seen)
    assert seen.indices == [0, 1, 2]


# -- endings ---------------------------------------------------------------------------------------------------------------


def test_a_broken_file_gives_its_frames_and_then_its_error() -> None:
    seen = Seen()
    with pytest.raises(DataError, match="cut short"):
        play(Pictures(100, errors={9: DataError("v.mp4: cut short")}), fake(), seen)
    assert seen.indices == list(range(9))


def test_an_engine_that_fails_in_mid_stream() -> None:
    seen = Seen()
    with pytest.raises(RuntimeError, match="fake failure at call 6"):
        play(Pictures(1000), fake(fail_at=6), seen)
    assert seen.indices == list(range(6))


def test_a_sink_that_fails_ends_everything() -> None:
    def full(result: FrameResult) -> None:
        if result.frame.index == 5:
            raise DataError("o.mp4: disk full")

    with pytest.raises(DataError, match="disk full"):
        play(Pictures(1000), fake(), Seen(on_write=full))


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_the_window_or_a_reader_that_goes_away_ends_the_stream_quietly(error: type[BaseException]) -> None:
    def leave(result: FrameResult) -> None:
        if result.frame.index == 5:
            raise error

    assert play(Pictures(1000), fake(), Seen(on_write=leave))[0] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_stream_while_it_waits_for_a_camera(number: signal.Signals) -> None:
    timers = list[threading.Timer]()

    def ask_for_the_end(result: FrameResult) -> None:
        if not timers:  # a second signal would find the loop gone, and end the tests
            timers.append(threading.Timer(0.05, os.kill, (os.getpid(), number)))
            timers[0].start()

    before = signal.getsignal(number)
    source = LiveSource(lambda: Beat(0.5), name="beat")  # one frame, and then nothing for a while
    assert play(source, fake(), Seen(on_write=ask_for_the_end))[0] == "interrupted"
    assert signal.getsignal(number) == before


class Elsewhere(FakeBackend):
    """An engine on a server that goes away after three frames and never comes back."""

    def __init__(self) -> None:
        super().__init__(fake().classes, fake().preprocess, slots=2)
        self.waits = 0
        self.waited_for, self.given_up = threading.Event(), threading.Event()

    def wait(self, slot: int) -> Outputs:
        answer = super().wait(slot)
        self.waits += 1
        if self.waits > 3:
            self.waited_for.set()
            assert self.given_up.wait(20.0), "nobody gave it up"
            raise UnavailableError("the server went away")
        return answer

    def give_up(self) -> None:
        self.given_up.set()


@pytest.mark.parametrize("live", [True, False])
def test_a_signal_ends_a_stream_whose_engine_is_lost(live: bool) -> None:
    engine, recorder = Elsewhere(), Recorder()
    source = LiveSource(lambda: Beat(0.005), name="beat") if live else Pictures(1000)

    def interrupt() -> None:
        engine.waited_for.wait(20.0)
        time.sleep(0.05)  # the consumer waits for a result by then, or comes to it with the signal raised already
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(source, engine, [Seen()], recorder) == "interrupted"
    thread.join()
    assert engine.given_up.is_set() and recorder.frames == 3


def test_a_signal_does_not_cut_a_frame_in_two() -> None:
    def signal_here(result: FrameResult) -> None:
        if result.frame.index == 5:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    first, second = Seen(on_write=signal_here), Seen()
    ended, recorder = play(Pictures(1000), fake(), first, second)
    assert ended == "interrupted"
    assert first.indices == second.indices == list(range(6)) and recorder.frames == 6


def test_a_second_signal_does_not_wait() -> None:
    def signal_twice(result: FrameResult) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        pytest.fail("the second signal was held too")

    assert play(Pictures(1000), fake(), Seen(on_write=signal_twice))[0] == "interrupted"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_or_infinity_from_the_engine_is_said_at_once(value: float) -> None:
    class Overflowing(FakeBackend):
        def wait(self, slot: int) -> dict[str, np.ndarray]:
            outputs = super().wait(slot)
            outputs["logits"][0, 1, 2, 3] = value
            return outputs

    with pytest.raises(ArtifactError, match="logits hold NaN or infinity"):
        play(Pictures(10), Overflowing(CLASSES, fake().preprocess, slots=2), Seen())


def test_an_empty_source_gives_an_empty_report() -> None:
    ended, recorder = play(Pictures(0), fake(), Seen())
    numbers = recorder.numbers()
    assert (ended, numbers["frames"], numbers["fps"], numbers["first_mask_s"]) == ("source", 0, 0.0, None)
    assert numbers["latency_ms"] is numbers["frame_age_ms"] is None


# -- memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["logits", "labels"])
def test_no_array_is_made_for_a_frame_once_the_loop_runs(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    size_hw, marks = (360, 640), dict[int, int]()
    source = Pictures(150, size_hw=size_hw)

    def measure(self: Seen, result: FrameResult) -> None:
        if result.frame.index == 20:  # every queue is full then, so every array that is ever needed exists
            wait_for(lambda: source._index >= 20 + AHEAD)
        if result.frame.index == 40:
            tracemalloc.reset_peak()
            marks[40] = tracemalloc.get_traced_memory()[0]
        if result.frame.index == 140:
            marks[140] = tracemalloc.get_traced_memory()[1]

    monkeypatch.setattr(Seen, "write", measure)
    tracemalloc.start()
    try:
        play(source, fake(head=head), Seen(wants_overlay=True))
    finally:
        tracemalloc.stop()
    assert marks[140] - marks[40] < size_hw[0] * size_hw[1] // 2  # half of the smallest array, the labels
