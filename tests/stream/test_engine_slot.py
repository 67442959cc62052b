"""An engine put in another's place between two frames: no frame lost, repeated or mixed, the old one closed at the end."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from loopkit import CLASSES, PREPROCESS, Pictures, Seen, fake

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.engine_slot import EngineSlot, Served
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.pipeline import Pipeline

MORE = Classes(names=(*CLASSES.names, "sheep"))


def served(name: str, backend: FakeBackend) -> Served:
    return Served(name, backend, CpuStages(backend, blend=False))


def constant(value: int, classes: Classes = CLASSES, size_hw: tuple[int, int] = PREPROCESS.size_hw) -> FakeBackend:
    """An engine that sees class `value` everywhere."""
    return FakeBackend(
        classes,
        Preprocess(size_hw=size_hw),
        answer=lambda images, k: np.full((len(images), size_hw[0] // 8, size_hw[1] // 8), value, np.uint8),
        slots=2,
    )


def test_every_frame_is_of_one_engine_and_none_is_lost_or_repeated() -> None:
    old, new = constant(1), constant(4, MORE, (32, 64))  # other classes, another input size
    slot = EngineSlot(served("old", old))
    seen: list[tuple[int, str, list[int], int]] = []
    pipeline = Pipeline(Pictures(60), slot)
    for result in pipeline.results():
        assert result.classes is not None
        seen.append((result.frame.index, result.engine, np.unique(result.labels).tolist(), len(result.classes)))
        if result.frame.index == 20:
            slot.swap(served("new", new))
        pipeline.recycle(result)
    slot.close()
    assert [s[0] for s in seen] == list(range(60))
    first_new = next(i for i, s in enumerate(seen) if s[1] == "new")
    assert 20 < first_new < 30  # what had started ended on the old one
    assert [s[1:] for s in seen[:first_new]] == [("old", [1], 4)] * first_new
    assert [s[1:] for s in seen[first_new:]] == [("new", [4], 5)] * (60 - first_new)
    assert old.closed and new.closed


def test_the_old_engine_stays_open_until_its_last_result_is_freed() -> None:
    old = fake()
    slot = EngineSlot(served("old", old))
    result = one(slot, 0)
    slot.swap(served("new", fake()))
    one(slot, 1)
    assert not old.closed and result.engine == "old"
    slot.free(0)
    slot.close()
    assert old.closed


def test_a_kept_engine_comes_back_and_a_dropped_one_is_closed() -> None:
    old, new = fake(), fake()
    slot = EngineSlot(served("old", old))
    before = slot.swap(served("new", new), keep=True)
    assert not old.closed and one(slot, 0).engine == "new"
    slot.free(0)
    after = slot.swap(before, keep=True)
    assert (one(slot, 0).engine, new.closed) == ("old", False)
    slot.free(0)
    slot.drop(after)
    slot.close()
    assert new.closed and not old.closed  # the first engine belongs to whoever opened it


def test_an_engine_with_too_few_requests_is_refused_and_the_old_one_goes_on() -> None:
    slot = EngineSlot(served("old", fake(slots=2)))
    with pytest.raises(ValueError, match="new: 5 slots, 1 in flight; the loop uses 6 and 2"):
        slot.swap(served("new", fake(slots=1)))
    assert slot.current.name == "old"


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    slot = EngineSlot(served("old", fake()))
    slot.swap(served("new", fake()))
    slot.close()
    assert not set(threading.enumerate()) - before


def one(slot: EngineSlot, number: int) -> FrameResult:
    """A frame on slot `number`, not freed."""
    image = np.full((48, 80, 3), 30, np.uint8)
    slot.start(number, image, {})
    slot.wait(number, {})
    return slot.result(number, Frame(image, 0, 0.0), {})


def test_results_of_the_loop_name_their_engine() -> None:
    from tsss_edge.stream.live_loop import run
    from tsss_edge.stream.recorder import Recorder

    names: list[str] = []
    run(Pictures(3), fake(), [Seen(on_write=lambda r: names.append(r.engine))], Recorder(), engine="road.xml")
    assert names == ["road.xml"] * 3


def test_an_engine_that_comes_back_while_its_last_frame_is_freed_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one fails on its first frame, while the sinks still have the old one's last."""
    back, retire = fake(), EngineSlot._retire
    old, new = served("old", back), served("new", fake())
    slot = EngineSlot(old)
    one(slot, 0)
    slot.swap(new, keep=True)

    def late(self: EngineSlot, leaving: Served) -> None:
        if leaving is old:
            slot.swap(old, keep=True)  # on another thread, just now
        retire(self, leaving)

    monkeypatch.setattr(EngineSlot, "_retire", late)
    slot.free(0)
    slot.swap(old, keep=True)
    assert slot.current is old and not back.closed
    slot.close()
