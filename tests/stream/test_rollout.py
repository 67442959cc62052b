"""Shadow, promotion, the way back: by wish, by rule, by failure; no frame lost or repeated, and a restart goes on where it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loopkit import CLASSES, PATIENCE_S, PREPROCESS, Pictures, Seen
from waiting import wait_for

from tsss_edge.artifacts import Classes
from tsss_edge.backends import Backend
from tsss_edge.backends.fake import FakeBackend, brightness_cells
from tsss_edge.errors import DataError
from tsss_edge.field.rules import BackWhen, PromoteWhen, RolloutRules, RolloutStatus, load_status, wish, wish_path
from tsss_edge.stream import asking, rollout
from tsss_edge.stream.asking import ask
from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.engine_slot import EngineSlot, Served
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.opening import engine_names, require_shadow
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.rollout import Rollout, RolloutPlan
from tsss_edge.stream.shadow import NOBODY, ShadowWatch, shared_labels

MORE = Classes(names=(*CLASSES.names, "sheep"))


class Field:
    """Two engine files and the fake back ends behind them. `answer`, `fail_at`, `latency_ms` are the new engine's."""

    def __init__(self, root: Path, rules: RolloutRules, **new: object) -> None:
        self.old, self.new = root / "old.xml", root / "new.xml"
        for path in (self.old, self.new):
            path.write_bytes(path.name.encode())
        self.rules, self._options = rules, new
        self.opened: list[FakeBackend] = []
        self.seen = Seen()
        self.engines: list[str] = []

    def backend(self, path: Path, *, service: bool) -> FakeBackend:
        options = dict(self._options) if path == self.new else {}
        if not service:
            options.pop("fail_at", None)
        classes = MORE if path == self.new else CLASSES
        answer = options.pop("answer", lambda images, k: brightness_cells(images, len(CLASSES)))
        made = FakeBackend(classes, PREPROCESS, slots=2, answer=answer, **options)  # type: ignore[arg-type]
        self.opened.append(made)
        return made

    def serve(self, path: Path) -> Served:
        made = self.backend(path, service=True)
        return Served(path.name, made, CpuStages(made, blend=False))

    def shadow(self, path: Path) -> Backend:
        return self.backend(path, service=False)

    def play(self, frames: int, on_write: Callable[[FrameResult], None] = lambda result: None) -> RolloutStatus:
        """Run the loop over `frames` frames -> where the rollout stands at the end."""

        def note(result: FrameResult) -> None:
            self.engines.append(result.engine)
            on_write(result)

        self.seen, self.engines = Seen(on_write=note), []
        recorder, first = Recorder(), self.backend(self.old, service=True)
        plan = RolloutPlan(self.old, self.new, ("old.xml", "new.xml"), self.rules, self.serve, self.shadow)
        run(Pictures(frames), first, [self.seen], recorder, engine=self.old.name, plan=plan)
        first.close()
        assert self.seen.indices == list(range(frames)), "a frame was lost or repeated"
        assert self.seen.labels == [[n % 4] for n in range(frames)] or "answer" in self._options
        assert all(backend.closed for backend in self.opened), "an engine was left open"
        assert not [t for t in threading.enumerate() if t.name.startswith(("shadow", "open", "close"))]
        status = load_status(self.new)
        assert status is not None and status == recorder.rollout
        return status


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """Every one that begins."""
    found, begin = list[Rollout](), Rollout.__init__

    def note(self: Rollout, *args: Any) -> None:
        found.append(self)
        begin(self, *args)

    monkeypatch.setattr(Rollout, "__init__", note)
    return found


@pytest.fixture
def patient_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits for the shadow, which else sees frames when the machine has time: every frame is compared."""
    original = ShadowWatch.offer

    def offer(self: ShadowWatch, result: FrameResult, classes: Classes) -> bool:
        if self._check is not None:
            wait([self._check])
        return original(self, result, classes)

    monkeypatch.setattr(ShadowWatch, "offer", offer)


def phase_at(field: Field, frame: int, *phases: str) -> Callable[[FrameResult], None]:
    """A hook that holds the loop at `frame` until the rollout is in one of `phases`."""

    def hook(result: FrameResult) -> None:
        if result.frame.index == frame:
            wait_for(lambda: (status := load_status(field.new)) is not None and status.phase in phases)

    return hook


def test_a_shadow_only_watches(tmp_path: Path) -> None:
    status = Field(tmp_path, RolloutRules()).play(60)
    assert (status.phase, status.agreement, status.swapped_at) == ("shadow", 1.0, None)
    assert status.compared > 0 and status.latency_p50_ms is not None


def test_a_frame_is_never_offered_to_a_shadow_that_was_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollouts: list[Rollout]
) -> None:
    """The new engine's shadow takes the old one's place on another thread, just when the loop hands over a frame."""
    original, others = ShadowWatch.offer, list[threading.Thread]()

    def offer_late(self: ShadowWatch, result: FrameResult, classes: Classes) -> bool:
        if result.frame.index in (3, 7):
            others.append(threading.Thread(target=rollouts[0]._watch, args=(rollouts[0]._plan.new,)))
            others[-1].start()
            others[-1].join(0.2)  # it must wait for us
        return original(self, result, classes)

    monkeypatch.setattr(ShadowWatch, "offer", offer_late)

    def let_them_end(result: FrameResult) -> None:
        if result.frame.index == 20:  # of a busy machine; here the loop holds nothing that they wait for
            for other in others:
                other.join()

    assert Field(tmp_path, RolloutRules()).play(40, let_them_end).phase == "shadow"


def test_promoted_by_wish_without_losing_or_repeating_a_frame(tmp_path: Path) -> None:
    field = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9)))
    wish(field.new, "promote")
    status = field.play(200, phase_at(field, 50, "promoted"))
    assert status.phase == "promoted" and status.reason == "asked by promote"
    swap = field.engines.index("new.xml")
    assert field.engines == ["old.xml"] * swap + ["new.xml"] * (200 - swap)
    assert status.swapped_at == swap


def test_a_full_disk_ends_no_stream_and_undoes_no_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    field, save = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9))), rollout.save_status

    def full(new: Path, status: RolloutStatus) -> None:
        if status.phase == "promoted" and "full" not in caplog.text:
            raise OSError("disk full")
        save(new, status)

    monkeypatch.setattr(rollout, "save_status", full)
    wish(field.new, "promote")
    status = field.play(
        200, lambda result: wait_for(lambda: "disk full" in caplog.text) if result.frame.index == 50 else None
    )
    assert status.phase == "promoted" and field.engines[-1] == "new.xml"


def test_an_engine_in_service_is_not_compared_with_itself_where_the_old_one_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollouts: list[Rollout]
) -> None:
    field = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9)))
    shadow = field.shadow

    def refused(path: Path) -> Backend:
        if path == field.old:
            raise OSError("no memory")
        return shadow(path)

    def look(result: FrameResult) -> None:
        phase_at(field, 50, "promoted")(result)
        if result.frame.index == 100:
            for thread in rollouts[0]._opening:
                thread.join()
            assert rollouts[0]._shadow is None

    monkeypatch.setattr(field, "shadow", refused)
    wish(field.new, "promote")
    assert field.play(120, look).phase == "promoted"


@pytest.mark.usefixtures("patient_loop")
def test_promoted_by_rule_and_settled(tmp_path: Path) -> None:
    rules = RolloutRules(promote=PromoteWhen(frames=5, agreement=0.99), back=BackWhen(frames=50, age_ratio=1e9))
    field = Field(tmp_path, rules)

    status = field.play(400, phase_at(field, 50, "promoted", "settled"))
    assert status.phase == "settled"
    assert field.engines[-1] == "new.xml"


@pytest.mark.usefixtures("patient_loop")
def test_no_promotion_by_rule_when_they_disagree(tmp_path: Path) -> None:
    wrong = lambda images, k: np.full((len(images), 8, 12), 1, np.uint8)  # noqa: E731
    rules = RolloutRules(promote=PromoteWhen(frames=3, agreement=0.9))
    status = Field(tmp_path, rules, answer=wrong).play(100)
    assert status.phase == "shadow" and status.compared >= 3
    assert status.agreement is not None and status.agreement < 0.9


def test_an_engine_that_fails_goes_back_and_the_old_one_does_its_frames(tmp_path: Path) -> None:
    field = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9)), fail_at=7)
    wish(field.new, "promote")
    status = field.play(200, phase_at(field, 50, "promoted", "back"))
    assert status.phase == "back" and status.failures == 1
    assert "fake failure at call 7" in status.reason
    assert field.engines[-1] == "old.xml"
    assert 0 < field.engines.count("new.xml") <= 9


def test_an_engine_that_fails_in_the_moment_of_its_swap_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollouts: list[Rollout]
) -> None:
    field, swap, others = Field(tmp_path, RolloutRules()), EngineSlot.swap, list[threading.Thread]()

    def fail_at_once(self: EngineSlot, new: Served, *, keep: bool = False) -> Served:
        old = swap(self, new, keep=keep)
        if new.name == "new.xml":
            others.append(threading.Thread(target=rollouts[0]._fail, args=(RuntimeError("no memory"),)))
            others[-1].start()
            others[-1].join(0.2)  # it must wait until the new one counts as promoted
        return old

    monkeypatch.setattr(EngineSlot, "swap", fail_at_once)
    wish(field.new, "promote")
    status = field.play(60, phase_at(field, 30, "back"))
    assert (status.phase, status.failures, status.reason) == ("back", 1, "failed 1 times: no memory")
    assert field.engines[-1] == "old.xml"


@pytest.mark.usefixtures("patient_loop")
@pytest.mark.parametrize(
    ("rules", "options", "reason"),
    [
        (BackWhen(frames=100_000, age_ratio=1e9, agreement=0.9), {"answer": "wrong"}, "agreement with the old engine"),
        (BackWhen(frames=100_000, age_ratio=1e9, age_ms=5), {"latency_ms": 8}, "frame age p95"),
    ],
)
def test_a_broken_limit_sends_it_back(tmp_path: Path, rules: BackWhen, options: dict[str, object], reason: str) -> None:
    if "answer" in options:
        options = {"answer": lambda images, k: np.full((len(images), 8, 12), 1, np.uint8)}
    field = Field(tmp_path, RolloutRules(back=rules), **options)
    wish(field.new, "promote")
    status = field.play(200, phase_at(field, 50, "promoted", "back"))
    assert status.phase == "back" and reason in status.reason
    assert field.engines[-1] == "old.xml" and "new.xml" in field.engines


def refuse_new(field: Field, why: str) -> None:
    """From now on the new engine cannot be opened."""
    serve = field.serve

    def refuse(path: Path) -> Served:
        if path == field.new:
            raise DataError(why)
        return serve(path)

    field.serve = refuse  # type: ignore[method-assign]


def test_a_new_engine_that_cannot_be_opened_leaves_the_old_one_in_service(tmp_path: Path) -> None:
    field = Field(tmp_path, RolloutRules())
    refuse_new(field, "damaged")
    wish(field.new, "promote")
    status = field.play(100, phase_at(field, 50, "back"))
    assert (status.phase, status.reason) == ("back", "could not be opened: damaged")
    assert set(field.engines) == {"old.xml"}


def test_a_restart_goes_on_with_the_engine_that_was_in_service(tmp_path: Path) -> None:
    field = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9)))
    wish(field.new, "promote")
    field.play(100, phase_at(field, 50, "promoted"))
    status = field.play(30)
    assert set(field.engines) == {"new.xml"} and status.phase == "promoted"
    wish(field.new, "back")
    status = field.play(60)
    assert (status.phase, status.reason) == ("back", "asked by promote --back")
    field.play(30)
    assert set(field.engines) == {"old.xml"}


def test_a_restart_goes_on_with_the_old_engine_where_the_new_one_is_gone(tmp_path: Path) -> None:
    field = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9)))
    wish(field.new, "promote")
    field.play(100, phase_at(field, 50, "promoted"))
    refuse_new(field, "of another driver")
    status = field.play(30)
    assert (status.phase, status.reason) == ("back", "could not be opened: of another driver")
    assert set(field.engines) == {"old.xml"}


def test_an_engine_built_anew_starts_from_the_beginning(tmp_path: Path) -> None:
    field = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9)))
    wish(field.new, "promote")
    field.play(100, phase_at(field, 50, "promoted"))
    field.new.write_bytes(b"another")
    assert load_status(field.new) is None
    assert field.play(30).phase == "shadow"


def test_promote_waits_for_the_stream_and_withdraws_what_nobody_took(tmp_path: Path) -> None:
    field = Field(tmp_path, RolloutRules(back=BackWhen(frames=100_000, age_ratio=1e9)))
    with pytest.raises(DataError, match="no stream has it as its shadow"):
        ask(field.new, "promote", 0.1)
    assert not wish_path(field.new).exists()
    answers: list[RolloutStatus] = []
    asking = threading.Thread(target=lambda: answers.append(ask(field.new, "promote", PATIENCE_S)))
    asking.start()
    field.play(200, lambda result: wait_for(lambda: bool(answers)) if result.frame.index == 100 else None)
    asking.join()
    assert answers[0].phase == "promoted"
    # What a stream said that has ended is no answer.
    with pytest.raises(DataError, match="no stream has it as its shadow"):
        ask(field.new, "promote", 0.1)


def test_a_wish_that_was_interrupted_is_no_wish_of_a_later_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = Field(tmp_path, RolloutRules())

    def interrupt(seconds: float) -> None:
        assert wish_path(field.new).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    with pytest.raises(KeyboardInterrupt):
        ask(field.new, "promote", 30.0)
    assert not wish_path(field.new).exists()


def test_the_engine_in_service_is_no_shadow_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollouts: list[Rollout]
) -> None:
    """The new one fails while the old one is still being opened as its shadow."""
    field, original = Field(tmp_path, RolloutRules()), Rollout._watch
    late, shadows = threading.Event(), dict[int, Path]()
    at_the_end: list[Path] = []

    def shadow(path: Path) -> Backend:
        made = field.backend(path, service=False)
        shadows[id(made)] = path
        return made

    def watch(self: Rollout, path: Path) -> None:
        if path == field.old:
            late.wait(PATIENCE_S)  # until the new engine is out of service again
        original(self, path)

    def opened_again(result: FrameResult) -> None:
        status = load_status(field.new)
        if result.frame.index == 20:
            wish(field.new, "promote")
        if status is not None and status.phase == "promoted" and result.engine == "new.xml":
            wish(field.new, "back")
        if status is not None and status.phase == "back" and not late.is_set():
            wait_for(lambda: (s := rollouts[0]._shadow) is not None and shadows[id(s._other)] == field.new)
            late.set()
        if result.frame.index == 280:
            for thread in rollouts[0]._opening:
                thread.join()
            assert rollouts[0]._shadow is not None
            at_the_end.append(shadows[id(rollouts[0]._shadow._other)])
        time.sleep(0.002)

    monkeypatch.setattr(Rollout, "_watch", watch)
    monkeypatch.setattr(field, "shadow", shadow)
    assert field.play(300, opened_again).phase == "back"
    assert field.old in shadows.values() and at_the_end == [field.new]


def test_engines_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    old, new = tmp_path / "a/e.xml", tmp_path / "b/e.xml"
    assert list(engine_names(old, new)) == ["a/e.xml", "b/e.xml"]
    assert list(engine_names(old, tmp_path / "b/f.xml")) == ["e.xml", "f.xml"]
    assert list(engine_names(tmp_path / "x/a/e.xml", tmp_path / "y/a/e.xml")) == [
        str(tmp_path / "x/a/e.xml"), str(tmp_path / "y/a/e.xml"),
    ]  # fmt: skip
    assert list(engine_names(old, None)) == ["e.xml"]


def test_categories_are_compared_by_name() -> None:
    ours, theirs = Classes(names=("background", "cat", "dog")), Classes(names=("background", "dog", "sheep"))
    a = shared_labels(np.array([[0, 1, 2]], np.uint8), ours, theirs)
    b = shared_labels(np.array([[0, 2, 1]], np.uint8), theirs, ours)
    assert a[0, 1] == b[0, 1] == NOBODY
    assert (a[0, 0], a[0, 2]) == (b[0, 0], b[0, 2])


@pytest.mark.parametrize("shadow", ["net.pt", "triton://host/net"])
def test_only_another_engine_file_can_be_a_shadow(shadow: str) -> None:
    with pytest.raises(DataError, match="expected an engine file"):
        require_shadow(Path(shadow), Path("old.xml"))
    with pytest.raises(DataError, match="itself"):
        require_shadow(Path("old.xml"), Path("old.xml"))
