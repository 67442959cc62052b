"""Many cameras on one engine: order, shares, counts that add up, and that nobody is harmed by another."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from loopkit import CLASSES, Beat, fake
from streamkit import MakeVideo, gray_image, read_video
from waiting import wait_for

from tsss_edge.backends import Outputs
from tsss_edge.backends.batching import BatchingBackend
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.stream import av_writer, sources
from tsss_edge.stream.camera_line import CameraLine
from tsss_edge.stream.cameras import CameraSpec
from tsss_edge.stream.encoders import Encoder, Preset, h264_encoder
from tsss_edge.stream.engine_slot import Served
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.many import Many, ManyReport
from tsss_edge.stream.opening import open_stages
from tsss_edge.stream.sinks import JsonLinesSink
from tsss_edge.stream.sources.live import Capture, EndOfStream, Shot
from tsss_edge.stream.status import LiveStatus

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t for t in set(threading.enumerate()) - before if not t.name.startswith("source")]
    assert not left


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> dict[str, Capture]:
    """Cameras by the number in their address: `rtsp://1` gives `beats["1"]`, and no address without one connects."""
    cameras: dict[str, Capture] = {}

    def connect(uri: sources.Uri) -> Capture:
        if uri.path not in cameras:
            raise DataError(f"{uri.shown}: nobody answers")
        return cameras[uri.path]

    monkeypatch.setattr(sources, "open_rtsp", connect)
    return cameras


def camera(number: str, **options: object) -> CameraSpec:
    return CameraSpec(uri=f"rtsp://{number}", name=f"camera-{number}", **options)  # type: ignore[arg-type]


def play(backend: FakeBackend | BatchingBackend, *cameras: CameraSpec, max_frames: int | None = None) -> ManyReport:
    with closing(Many(backend, cameras, engine="fake")) as many:
        return many.run(max_frames=max_frames)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def require_sums(report: ManyReport) -> None:
    for c in report.cameras:
        assert c.arrived == c.frames + c.dropped + c.thinned + c.unfinished, c


def test_videos_are_written_as_each_camera_says(
    tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def encoder(preset: Preset) -> Encoder:
        asked.append(preset)
        return h264_encoder("ultrafast")

    monkeypatch.setattr(av_writer, "h264_encoder", encoder)
    kinds: tuple[Preset, ...] = ("auto", "veryfast")
    specs = [
        CameraSpec(uri=str(make_video(f"{kind}.mp4")), name=kind, sinks=(str(tmp_path / f"o-{kind}.mp4"),), encode=kind)
        for kind in kinds
    ]
    play(fake(slots=2), *specs)
    assert sorted(asked) == ["auto", "veryfast"]


def test_files_come_out_whole_and_in_order_each_with_its_own_masks(tmp_path: Path, make_video: MakeVideo) -> None:
    videos = [make_video(f"{n}.mp4", frames=20 + n, size_hw=(48, 64 + 16 * n)) for n in range(3)]
    specs = [
        CameraSpec(uri=str(v), name=f"v{n}", sinks=(str(tmp_path / f"out{n}.jsonl"), str(tmp_path / f"out{n}.mp4")))
        for n, v in enumerate(videos)
    ]
    report = play(fake(slots=3, latency_ms=1), *specs)
    assert [c.frames for c in report.cameras] == [20, 21, 22]
    assert (report.dropped, report.ended, report.frames) == (0, "source", 63)
    require_sums(report)
    for n in range(3):
        told = lines(tmp_path / f"out{n}.jsonl")
        assert [line["frame"] for line in told] == list(range(20 + n))
        assert [line["size"] for line in told] == [[64 + 16 * n, 48]] * (20 + n)
        grays = [20 + 10 * i % 220 for i in range(20 + n)]
        names = [next(iter(line["areas"])) for line in told]  # type: ignore[call-overload]
        right = sum(name == CLASSES.names[gray * 4 // 256] for name, gray in zip(names, grays, strict=True))
        assert right >= 18 + n  # a codec may move a value at the border of two classes
        assert len(read_video(tmp_path / f"out{n}.mp4")[1]) == 20 + n


def test_only_cameras_that_need_it_get_blended_pictures(tmp_path: Path, make_video: MakeVideo) -> None:
    a = CameraSpec(uri=str(make_video("a.mp4")), name="a", sinks=(str(tmp_path / "seen/%06d.jpg"),))
    b = CameraSpec(uri=str(make_video("b.mp4")), name="b")
    report = play(fake(), a, b)
    assert ["overlay" in c.stages_ms for c in report.cameras] == [True, False]


def test_a_full_machine_is_shared_by_priority_and_every_drop_is_counted(beats: dict[str, Capture]) -> None:
    """Three cameras of 100 frames a second on an engine of about 16: 1/6, 1/6 and 4/6 of them. It is so slow that each camera has
    its next frame ready in time on a busy machine too."""
    beats.update({n: Beat(0.01) for n in "123"})
    report = play(fake(slots=1, latency_ms=60), camera("1"), camera("2"), camera("3", priority=4), max_frames=60)
    one, two, three = (c.frames for c in report.cameras)
    assert abs(one - two) <= 3 and abs(three - 4 * one) <= 12
    require_sums(report)
    assert report.dropped > 0 and all(c.unfinished <= 2 for c in report.cameras)


class Metronome(Beat):
    """A `Beat` whose pictures bear the time they are due, however late a busy machine lets them come."""

    def read(self) -> Shot | None:
        number = self._next
        shot = super().read()
        return shot and shot._replace(captured=self._started + number * self._period_s)


def test_a_camera_that_wants_few_is_thinned_to_them_and_leaves_the_rest_to_others(beats: dict[str, Capture]) -> None:
    beats.update({n: Metronome(0.005) for n in "12"})
    report = play(fake(slots=1, latency_ms=9), camera("1", fps=5), camera("2"), max_frames=100)
    slow, fast = report.cameras
    assert abs(slow.frames + slow.dropped + slow.unfinished - slow.arrived / 40) <= 2  # 5 of 200 a second
    assert fast.thinned == 0 and fast.frames > slow.frames > 0
    require_sums(report)


def test_a_dead_camera_is_told_and_harms_no_other(beats: dict[str, Capture], capfd: pytest.CaptureFixture[str]) -> None:
    beats["1"] = Beat(0.005, frames=60)
    two = (camera("1"), camera("gone"))
    with (
        closing(Many(fake(slots=2, latency_ms=1), two, engine="fake")) as many,
        beside(lambda: interrupt_when(lambda: many.lines[0].over)),
    ):
        report = many.run()
    living, dead = report.cameras
    assert living.frames + living.dropped == 60 and living.state == "ENDED"
    assert (dead.frames, dead.arrived, report.ended) == (0, 0, "interrupted")
    assert "camera-gone  RECONNECTING (rtsp://gone: nobody answers)" in capfd.readouterr().err
    assert dead.error == "rtsp://gone: nobody answers"


def test_what_cannot_heal_is_not_tried_again(beats: dict[str, Capture], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(uri: sources.Uri) -> Capture:
        raise UnavailableError(f"{uri.shown}: this OpenCV has no GStreamer")

    monkeypatch.setattr(sources, "open_csi", never)
    beats["1"] = Beat(0.005, frames=10)
    report = play(fake(), camera("1"), CameraSpec(uri="csi://0", name="csi"))
    assert report.cameras[1].state == "FAILED" and "no GStreamer" in (report.cameras[1].error or "")
    assert report.ended == "source" and report.cameras[0].error is None


def test_a_damaged_file_is_its_own_camera_s_error(tmp_path: Path, make_video: MakeVideo) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"x" * 1000)
    good = CameraSpec(uri=str(make_video("a.mp4", frames=20)), name="good")
    report = play(fake(), good, CameraSpec(uri=str(tmp_path / "bad.mp4"), name="bad"))
    assert (report.cameras[0].frames, report.cameras[0].error) == (20, None)
    assert report.cameras[1].state == "FAILED" and "not a readable video" in (report.cameras[1].error or "")


def test_a_file_is_thinned_to_the_rate_that_is_wanted(tmp_path: Path, make_video: MakeVideo) -> None:
    """By its own times; 40 frames at 25 a second, of which 5 a second are wanted."""
    spec = CameraSpec(uri=str(make_video(frames=40)), name="v", fps=5, sinks=(str(tmp_path / "o.jsonl"),))
    report = play(fake(), spec)
    assert [line["frame"] for line in lines(tmp_path / "o.jsonl")] == [0, *range(4, 40, 5)]  # 0.16 s is due as 0.2
    assert (report.cameras[0].thinned, report.dropped) == (31, 0)
    require_sums(report)


def interrupt() -> None:
    """Ctrl-C while the loop listens for it; at another time it would end the tests themselves."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def interrupt_when(condition: Callable[[], object]) -> None:
    """Ctrl-C as soon as it holds, or when it never does."""
    try:
        wait_for(condition)
    finally:
        interrupt()


@contextmanager
def beside(what: Callable[[], object]) -> Iterator[None]:
    """`what` runs on another thread meanwhile."""
    thread = threading.Thread(target=what)
    thread.start()
    try:
        yield
    finally:
        thread.join()


class Flaky:
    """Gives 10 frames, is lost, and comes back for 10 more."""

    fps = 100.0

    def __init__(self) -> None:
        self.sent = 0

    def read(self) -> Shot | None:
        if self.sent == 20:
            raise EndOfStream
        self.sent += 1
        time.sleep(0.002)
        return None if self.sent == 11 else Shot(gray_image(self.sent), time.monotonic())

    def release(self) -> None:
        """Nothing."""


def test_a_lost_camera_comes_back(beats: dict[str, Capture]) -> None:
    beats.update({"1": Flaky(), "2": Beat(0.01, frames=120)})
    report = play(fake(slots=2), camera("1"), camera("2"))
    assert (report.cameras[0].reconnects, report.cameras[0].arrived) == (1, 19)
    require_sums(report)


def test_a_slow_sink_holds_up_its_own_camera_alone(beats: dict[str, Capture], make_video: MakeVideo) -> None:
    beats["1"] = Beat(0.01)
    video = CameraSpec(uri=str(make_video(frames=50)), name="video")  # a file loses no frame
    entered, stuck, seen = threading.Event(), threading.Event(), list[int]()

    class Stuck:
        wants_overlay = False

        def write(self, result: FrameResult) -> None:
            entered.set()
            stuck.wait(PATIENCE_S)

        def close(self) -> None:
            """Nothing."""

    with closing(Many(fake(slots=2, latency_ms=1), (camera("1"), video), engine="fake")) as many:
        many.lines[0].extra.append(Stuck())

        def end_when_the_video_is_over() -> None:
            try:
                wait_for(lambda: entered.is_set() and many.lines[1].over)
                seen.append(many.lines[0].recorder.frames)
            finally:
                stuck.set()
                interrupt()

        with beside(end_when_the_video_is_over):
            report = many.run()
    assert seen == [0] and report.cameras[1].frames == 50  # the camera was stuck in its first frame all the while
    require_sums(report)


def test_a_sink_that_fails_ends_its_camera_and_the_report_says_why(tmp_path: Path, make_video: MakeVideo) -> None:
    (tmp_path / "taken").write_text("")
    bad = CameraSpec(uri=str(make_video("a.mp4", frames=30)), name="bad", sinks=(str(tmp_path / "taken/x.jsonl"),))
    good = CameraSpec(uri=str(make_video("b.mp4", frames=30)), name="good")
    with closing(Many(fake(), (bad, good), engine="fake")) as many:
        report = many.run()
        shown = [LiveStatus(CLASSES, line.recorder, line).status().state for line in many.lines]
    assert report.cameras[0].state == "FAILED" and "taken" in (report.cameras[0].error or "")
    assert shown == ["FAILED", "ENDED"], "pages and /metrics say the same"
    assert (report.cameras[1].frames, report.cameras[1].error) == (30, None)
    require_sums(report)
    with pytest.raises(DataError, match=r"every camera failed; the first: bad: .*taken"):
        play(fake(), bad)


def test_an_error_that_nobody_expected_is_its_camera_s_and_is_told(
    tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = CameraSpec(uri=str(make_video("a.mp4", frames=5)), name="bad", sinks=(str(tmp_path / "x.jsonl"),))
    good = CameraSpec(uri=str(make_video("b.mp4", frames=5)), name="good")

    def write(self: JsonLinesSink, result: FrameResult) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(JsonLinesSink, "write", write)
    report = play(fake(), bad, good)
    assert (report.cameras[0].state, report.cameras[0].error) == ("FAILED", "bad: no such thing")
    assert report.cameras[1].frames == 5

    def opened(*arguments: object, **options: object) -> None:
        raise OSError("no handles left")

    monkeypatch.setattr(sources, "open_source", opened)
    with pytest.raises(DataError, match=r"good: .*no handles left"):
        play(fake(), good)


def test_an_engine_that_fails_ends_everything(make_video: MakeVideo) -> None:
    specs = [CameraSpec(uri=str(make_video(f"{n}.mp4", frames=50)), name=f"v{n}") for n in range(3)]
    with pytest.raises(RuntimeError, match="fake failure"):
        play(fake(fail_at=7), *specs)


def test_batches_give_the_same_masks(tmp_path: Path, make_video: MakeVideo) -> None:
    videos = [make_video(f"{n}.mp4", frames=25) for n in range(4)]

    def specs(folder: str) -> list[CameraSpec]:
        return [
            CameraSpec(uri=str(v), name=f"v{n}", sinks=(str(tmp_path / f"{folder}/{n}") + "/",))
            for n, v in enumerate(videos)
        ]

    batching = BatchingBackend(fake(latency_ms=2), batch=4, wait_ms=500, slots=8)
    with batching:
        play(batching, *specs("batched"))
    assert batching.pictures == 100 and batching.calls < 60
    play(fake(), *specs("single"))
    masks = sorted(p.relative_to(tmp_path / "single") for p in (tmp_path / "single").rglob("*.png"))
    assert len(masks) == 100
    assert all((tmp_path / "single" / m).read_bytes() == (tmp_path / "batched" / m).read_bytes() for m in masks)


def test_an_engine_is_replaced_under_all_cameras_without_losing_a_frame(tmp_path: Path, make_video: MakeVideo) -> None:
    specs = [CameraSpec(uri=str(make_video(f"{n}.mp4", frames=150)), name=f"v{n}") for n in range(3)]
    names, swapped = list[str](), threading.Event()

    class Names:
        wants_overlay = False

        def write(self, result: FrameResult) -> None:
            if len(names) >= 150:
                swapped.wait(PATIENCE_S)
            names.append(result.engine)

        def close(self) -> None:
            """Nothing."""

    old = fake(slots=2, latency_ms=2)
    with closing(Many(old, specs, engine="old")) as many:
        new = fake(slots=2, latency_ms=2)
        served = Served("new", new, open_stages(new, blend=False, slots=many.engine.slots))
        for line in many.lines:
            line.extra.append(Names())

        def swap() -> None:
            try:
                wait_for(lambda: many.frames > 100)
                many.engine.swap(served)
            finally:
                swapped.set()

        with beside(swap):
            report = many.run()
    assert report.frames == 450 and report.dropped == 0
    assert names.count("new") > 100 < names.count("old") and len(names) == 450
    assert old.closed and report.engine == "new"


@pytest.mark.parametrize(("live", "most"), [(True, 1), (False, 3)])
def test_frames_in_the_engine_at_once(beats: dict[str, Capture], make_video: MakeVideo, live: bool, most: int) -> None:
    """A live camera has one, so that no frame grows old in a queue; a file, of which every frame counts, all slots but one."""
    beats["1"] = Beat(0.001)
    spec = camera("1") if live else CameraSpec(uri=str(make_video(frames=60)), name="v")
    line = CameraLine(spec, range(4), CLASSES, changed=lambda: None)
    turns = []
    try:
        wait_for(lambda: line.source.waiting > 0)
        while line.ready():
            turns.append(line.take())
        assert len(turns) == most
        line.ran()
        assert line.ready()
    finally:
        for _, expected in turns:
            expected.set_exception(DataError("this test has no engine"))
        line.close()


def test_one_file_uses_all_requests_of_the_engine(make_video: MakeVideo) -> None:
    backend, first, together = fake(slots=4), iter(range(3)), threading.Barrier(3)
    wait = backend.wait

    def wait_for_others(slot: int) -> Outputs:
        if next(first, None) is not None:
            together.wait(PATIENCE_S)  # broken where one request waits for the one before it
        return wait(slot)

    backend.wait = wait_for_others  # type: ignore[method-assign]
    assert play(backend, CameraSpec(uri=str(make_video(frames=60)), name="v")).frames == 60
