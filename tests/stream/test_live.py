"""Every way of the live source's state machine, on a camera that follows a script."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamkit import MakeResult, MakeVideo, gray_image
from waiting import wait_for

from tsss_edge.errors import DataError
from tsss_edge.stream.av_reader import VideoReader
from tsss_edge.stream.frames import Frame
from tsss_edge.stream.sources import LiveSource, Retry, open_source
from tsss_edge.stream.sources.live import Capture, EndOfStream, Shot
from tsss_edge.stream.sources.player import FilePlayer
from tsss_edge.stream.sources.recorded import SyntheticSource
from tsss_edge.stream.video_sink import VideoSink

PATIENCE_S = 20.0
QUICK = Retry(first_s=0.001, longest_s=0.004, attempts=3, stall_s=PATIENCE_S, frozen_s=PATIENCE_S)

Step = int | tuple[int, tuple[int, int]] | None | BaseException | threading.Event


class ScriptedCamera:
    """A camera that does one step a read: a grey value (and size), None (dies), an error, or waiting for an event.

    Past the end of its script it waits until it is released.
    """

    def __init__(self, steps: list[Step]) -> None:
        self.fps = 30.0
        self.released = threading.Event()
        self._steps = iter(steps)

    def read(self) -> Shot | None:
        step = next(self._steps, self.released)
        if isinstance(step, threading.Event):
            step.wait(PATIENCE_S)
            return None if step is self.released else self.read()
        if isinstance(step, BaseException):
            raise step
        if step is None:
            return None
        value, size_hw = step if isinstance(step, tuple) else (step, (8, 12))
        return Shot(gray_image(value, size_hw), time.monotonic())

    def release(self) -> None:
        self.released.set()


class Cameras:
    """One script after the other, each time the source opens; an error in the list is an opening that fails."""

    def __init__(self, *scripts: list[Step] | Exception) -> None:
        self._scripts: Iterator[list[Step] | Exception] = iter(scripts)
        self.opened: list[ScriptedCamera] = []
        self.calls = 0

    def __call__(self) -> Capture:
        self.calls += 1
        script = next(self._scripts, DataError("camera: not there"))
        if isinstance(script, Exception):
            raise script
        self.opened.append(ScriptedCamera(script))
        return self.opened[-1]


def value(frame: Frame | None) -> int:
    assert frame is not None
    return int(frame.image[0, 0, 0])


def close(source: LiveSource, cameras: Cameras) -> None:
    for camera in cameras.opened:
        camera.released.set()
    source.close()


def test_newest_frame_wins_and_drops_are_counted() -> None:
    cameras = Cameras([1, 2, 3, 4, 5])
    source = LiveSource(cameras, name="cam", retry=QUICK)
    wait_for(lambda: source.dropped == 4)
    frame = source.read()
    assert (value(frame), frame and frame.index) == (5, 4)
    close(source, cameras)


def test_block_gives_every_frame_in_order() -> None:
    cameras = Cameras([*range(20), EndOfStream()])
    source = LiveSource(cameras, name="cam", policy="block", retry=QUICK, depth=2)
    assert [value(source.read()) for _ in range(20)] == list(range(20))
    assert source.read() is None
    assert (source.dropped, source.state) == (0, "ENDED")


def test_captured_is_the_time_of_arrival_not_of_reading() -> None:
    cameras = Cameras([1])
    before = time.monotonic()
    source = LiveSource(cameras, name="cam", retry=QUICK)
    after = time.monotonic()
    time.sleep(0.02)
    frame = source.read()
    assert frame is not None and before <= frame.captured <= after
    close(source, cameras)


def test_a_recording_lasts_as_long_as_the_camera_did(tmp_path: Path, make_result: MakeResult) -> None:
    """Frames that were dropped leave gaps in its times; by the nominal rate alone it would play too fast."""
    camera = Sent(0.5, 5)
    source = LiveSource(lambda: camera, name="cam", policy="block", retry=QUICK, depth=10)
    camera.go.set()
    sink = VideoSink(str(tmp_path / "a.mp4"), fps=30.0, size_hw=(48, 64))
    while (frame := source.read()) is not None:
        result = make_result()
        result.frame.time_s, result.painted = frame.time_s, result.frame.image
        sink.write(result)
    sink.close()
    reader, times = VideoReader(str(tmp_path / "a.mp4")), []
    while reader.read() is not None:
        times.append(reader.time_s)
    assert times == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])


def test_a_lost_camera_comes_back_without_an_invented_frame() -> None:
    cameras = Cameras([1, 2, None], OSError("no route"), [], [7, 8])
    cameras_script_empty_dies = cameras  # the third opening gives no picture: it counts as a failed attempt
    source = LiveSource(cameras_script_empty_dies, name="cam", policy="block", retry=QUICK)
    wait_for(lambda: len(cameras.opened) == 2)
    cameras.opened[1].released.set()  # that camera gives up
    assert [value(source.read()) for _ in range(4)] == [1, 2, 7, 8]
    assert (source.reconnects, source.state) == (1, "STREAMING")
    assert cameras.opened[0].released.is_set()
    close(source, cameras)


def test_reconnecting_shows_while_waiting() -> None:
    cameras = Cameras([1, None], [2])
    source = LiveSource(cameras, name="cam", retry=Retry(first_s=PATIENCE_S))
    wait_for(lambda: source.state == "RECONNECTING")
    assert value(source.read()) == 1  # the last real frame is still there, once
    source.close()  # and closing does not wait for the back-off
    assert source.state == "ENDED" and source.read() is None


def test_a_camera_that_stays_away_fails_after_the_limit() -> None:
    cameras = Cameras([1, None])
    source = LiveSource(cameras, name="cam", retry=QUICK)
    assert value(source.read()) == 1
    with pytest.raises(DataError, match=r"cam: lost after 1 frames and not back after 3 attempts .*not there"):
        source.read()
    assert cameras.calls == 1 + 3
    assert source.state == "FAILED"
    source.close()
    assert source.state == "FAILED"


def test_the_attempts_start_again_after_each_return() -> None:
    lost = OSError("gone")
    cameras = Cameras([1, None], lost, lost, [2, None], lost, lost, [3])
    source = LiveSource(cameras, name="cam", policy="block", retry=QUICK)
    assert [value(source.read()) for _ in range(3)] == [1, 2, 3]
    assert source.reconnects == 2
    close(source, cameras)


def test_back_off_doubles_and_is_bounded() -> None:
    retry = Retry(first_s=0.5, longest_s=8.0)
    assert [retry.delay_s(n) for n in range(6)] == [0.5, 1, 2, 4, 8, 8]
    assert retry.delay_s(10_000) == 8


def test_stalled_and_streaming_again() -> None:
    go = threading.Event()
    cameras = Cameras([1, go, 2])
    source = LiveSource(cameras, name="cam", retry=Retry(stall_s=0.05))
    assert value(source.read()) == 1
    wait_for(lambda: source.state == "STALLED")
    go.set()
    assert value(source.read()) == 2
    close(source, cameras)


def test_a_frozen_camera_is_noticed_and_released_by_a_new_picture() -> None:
    thaw, counter = threading.Event(), itertools.count()

    class Freezing(ScriptedCamera):
        def read(self) -> Shot | None:
            time.sleep(0.002)
            return Shot(gray_image(8 + next(counter) % 2 if thaw.is_set() else 5), time.monotonic())

    source = LiveSource(lambda: Freezing([]), name="cam", retry=Retry(stall_s=PATIENCE_S, frozen_s=0.05))
    wait_for(lambda: source.frozen)
    assert source.state == "STALLED"
    thaw.set()
    wait_for(lambda: not source.frozen)
    source.close()


def test_one_changed_pixel_is_not_frozen() -> None:
    class Noisy(ScriptedCamera):
        count = 0

        def read(self) -> Shot | None:
            time.sleep(0.001)
            image = gray_image(5)
            self.count += 1
            image[1, 1, 1] = self.count % 2  # off the coarse grid
            return Shot(image, time.monotonic())

    camera = Noisy([])
    source = LiveSource(lambda: camera, name="cam", retry=Retry(frozen_s=0.2))
    wait_for(lambda: camera.count > 300)
    assert not source.frozen
    source.close()


def test_a_change_of_resolution_is_told() -> None:
    cameras = Cameras([(1, (8, 12)), (2, (16, 20))])
    source = LiveSource(cameras, name="cam", policy="block", retry=QUICK)
    assert value(source.read()) == 1 and source.size_hw == (8, 12)
    frame = source.read()
    assert frame is not None and frame.image.shape == (16, 20, 3)
    assert source.size_hw == (16, 20)
    close(source, cameras)


def test_a_driver_error_reaches_the_reader() -> None:
    cameras = Cameras([1, RuntimeError("bus reset")])
    source = LiveSource(cameras, name="cam", retry=QUICK)
    assert value(source.read()) == 1
    with pytest.raises(DataError, match="cam: RuntimeError: bus reset"):
        source.read()
    assert source.state == "FAILED" and cameras.opened[0].released.is_set()


@pytest.mark.parametrize("script", [[None], [EndOfStream()]])
def test_a_camera_without_a_picture_fails_at_once(script: list[Step]) -> None:
    cameras = Cameras(script)
    with pytest.raises(DataError, match="gives no picture"):
        LiveSource(cameras, name="cam", retry=QUICK)
    assert cameras.opened[0].released.is_set()


def test_closing_wakes_a_waiting_reader_and_ends_the_thread() -> None:
    cameras = Cameras([1])
    source = LiveSource(cameras, name="cam", retry=QUICK)
    source.read()
    got: list[Frame | None] = []
    waiter = threading.Thread(target=lambda: got.append(source.read()))
    waiter.start()
    close(source, cameras)
    waiter.join(PATIENCE_S)
    assert got == [None]
    wait_for(lambda: not source._thread.is_alive())
    source.close()


def test_closing_ends_a_reader_that_is_blocked_on_a_full_queue() -> None:
    cameras = Cameras([*range(50)])
    source = LiveSource(cameras, name="cam", policy="block", retry=QUICK, depth=2)
    wait_for(lambda: len(source._slot) == 2)
    source.close()
    wait_for(lambda: not source._thread.is_alive())


def test_a_file_with_latest_plays_at_its_own_rate() -> None:
    slept: list[float] = []
    images = SyntheticSource(
        lambda scene, t: (gray_image(round(t), (4, 4)), np.zeros((4, 4), np.uint8)),
        size_hw=(4, 4), fps=0.05, frames=3,
    )  # fmt: skip
    player = FilePlayer(images, sleep=slept.append)
    shots = [player.read(), player.read(), player.read()]
    assert all(shot is not None and shot.truth is not None for shot in shots)
    assert len(slept) == 2 and 0 < slept[0] <= 20 < slept[1] <= 40
    with pytest.raises(EndOfStream):
        player.read()


def test_a_player_that_is_too_slow_passes_frames_over_and_counts_each_once() -> None:
    """Eight overloaded streams once reported no drops; later a file of 40 frames reported 60, and every one was read."""
    images = SyntheticSource(
        lambda scene, t: (time.sleep(0.02), (gray_image(round(100 * t), (4, 4)), np.zeros((4, 4), np.uint8)))[1],  # type: ignore[func-returns-value]
        size_hw=(4, 4), fps=100.0, frames=30,
    )  # fmt: skip
    player, numbers, missed = FilePlayer(images), list[int](), 0
    with pytest.raises(EndOfStream):
        while (shot := player.read()) is not None:
            missed += shot.missed
            numbers.append(int(shot.picture[0, 0, 0]))  # type: ignore[index]
            assert numbers[-1] == len(numbers) - 1 + missed
    assert numbers[-1] == 29 and 0 < missed == 30 - len(numbers)


def test_missed_frames_count_as_dropped_and_the_count_adds_up() -> None:
    class Late:
        fps = 30.0

        def __init__(self) -> None:
            self.shots = [Shot(gray_image(n), 0.1 * n, None, missed) for n, missed in enumerate((0, 2, 0, 3))]

        def read(self) -> Shot | None:
            if not self.shots:
                raise EndOfStream
            return self.shots.pop(0)

        def release(self) -> None:
            """Nothing."""

    source = LiveSource(Late, name="cam", policy="block", retry=QUICK)
    frames = [source.read() for _ in range(4)]
    assert [frame.missed for frame in frames if frame] == [0, 2, 2, 5]
    wait_for(lambda: source.over)
    assert (source.arrived, source.taken, source.dropped) == (9, 4, 5)


class Sent:
    """A camera of exact times: frame n at n * `period_s`, all at once; `hold` after the first until the test goes on."""

    def __init__(self, period_s: float, frames: int) -> None:
        self.fps = 1 / period_s
        self._times = [n * period_s for n in range(frames)]
        self.go = threading.Event()

    def read(self) -> Shot | None:
        if not self._times:
            raise EndOfStream
        at = self._times.pop(0)
        if at:
            self.go.wait(PATIENCE_S)
        return Shot(gray_image(0), 1000.0 + at)

    def release(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(("wanted", "offered"), [(5, 50), (10, 100), (3, 30), (15, 100), (0.5, 5)])
def test_a_camera_is_thinned_to_the_rate_that_is_wanted(wanted: float, offered: int) -> None:
    camera = Sent(0.1, 100)
    source = LiveSource(lambda: camera, name="cam", policy="block", retry=QUICK, max_fps=wanted, depth=100)
    camera.go.set()
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    assert abs(len(frames) - offered) <= 1
    assert (source.arrived, source.taken, source.dropped) == (100, len(frames), 0)
    assert source.thinned == 100 - len(frames)
    assert all(frame.index - frame.thinned == n for n, frame in enumerate(frames))


def test_the_newest_frame_of_a_period_stands_for_it() -> None:
    camera = Sent(0.1, 9)
    source = LiveSource(lambda: camera, name="cam", retry=QUICK, max_fps=2)
    camera.go.set()
    wait_for(lambda: source.state == "ENDED")
    frame = source.poll()
    assert frame is not None and frame.index == 8  # of the second period, and the last of it
    assert (source.arrived, source.taken, source.dropped, source.thinned, source.waiting) == (9, 1, 1, 7, 0)


def test_a_patient_source_is_there_before_its_camera() -> None:
    cameras = Cameras(DataError("camera: not there"), DataError("camera: not there"), [7])
    changes: list[str] = []
    source = LiveSource(cameras, name="cam", retry=QUICK, patient=True, on_change=lambda: changes.append("x"))
    assert source.state in ("OPEN", "RECONNECTING", "STREAMING")
    assert value(source.read()) == 7
    assert (source.reconnects, source.size_hw) == (0, (8, 12))
    assert changes
    close(source, cameras)


def test_a_patient_source_never_gives_up() -> None:
    cameras = Cameras(*[DataError("not there")] * 50, [7])
    retry = replace(Retry.forever(), first_s=0.0, longest_s=0.0)
    source = LiveSource(cameras, name="cam", retry=retry, patient=True)
    assert value(source.read()) == 7
    close(source, cameras)


def test_latest_on_a_file_ends(make_video: MakeVideo) -> None:
    source = open_source(str(make_video(frames=5, fps=200.0)), policy="latest")
    assert source.live and source.fps == 200.0
    indices = []
    while (frame := source.read()) is not None:
        indices.append(frame.index)
        assert round(float(frame.image.mean()), -1) == 20 + 10 * frame.number, "the number is the file's"
    assert indices == sorted(set(indices))
    assert isinstance(source, LiveSource) and source.arrived == len(indices) + source.dropped == 5
    assert source.state == "ENDED"
