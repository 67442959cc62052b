"""Frames without network: which they are, what their labels are, and that the loop counts them all."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
import pytest
from loopkit import CLASSES, PREPROCESS, fake

from tsss_edge.backends.fake import FakeBackend
from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.reuse import KEYFRAME, Changes, Reuse, Step, changed_part, move_labels

SIZE_HW = (192, 288)


def scene(x: int, noise: int = 0) -> Yuv:
    """A gray frame with a textured square of 64 pixels whose left edge is at `x`; noise of a sensor."""
    rng = np.random.default_rng(x + 999 * noise)
    y = np.full(SIZE_HW, 60, np.int16)
    y[64:128, x : x + 64] = np.random.default_rng(1).integers(205, 250, (4, 4)).repeat(16, 0).repeat(16, 1)
    y += rng.integers(-noise, noise + 1, SIZE_HW, dtype=np.int16)
    picture = Yuv.empty(SIZE_HW, Colour())
    picture.y[...], picture.u[...], picture.v[...] = y, 128, 128
    return picture


class Scenes:
    """A file-like source of scenes."""

    live, fps, size_hw, state = False, 25.0, SIZE_HW, "STREAMING"

    def __init__(self, places: list[int], *, noise: int = 0) -> None:
        self.length: int | None = len(places)
        self._places, self._noise, self._next = places, noise, 0

    def read(self, out: np.ndarray | None = None) -> Frame | None:
        if self._next == self.length:
            return None
        self._next += 1
        return Frame(scene(self._places[self._next - 1], self._noise), self._next - 1, time.monotonic())

    def close(self) -> None:
        pass


class Kept:
    wants_overlay = False

    def __init__(self) -> None:
        self.labels: list[np.ndarray] = []
        self.stages: list[set[str]] = []

    def write(self, result: FrameResult) -> None:
        self.labels.append(result.labels.copy())
        self.stages.append(set(result.stages_ms))
        assert result.objectness is not None

    def close(self) -> None:
        pass


def play(places: list[int], reuse: Reuse, **options: Any) -> tuple[Kept, FakeBackend]:
    sink, backend = Kept(), fake(objectness=True)
    assert run(Scenes(places, **options), backend, [sink], Recorder(), reuse=reuse) == "source"
    return sink, backend


def networks(sink: Kept) -> list[int]:
    return [n for n, stages in enumerate(sink.stages) if "network" in stages]


def test_frames_without_change_cost_no_network() -> None:
    """Sensor noise of 4 levels is no change, a square that moved is; labels are those of a loop that sees every frame."""
    places = [32, 32, 32, 64, 64, 64, 64]
    sink, _ = play(places, "still", noise=4)
    assert networks(sink) == [0, 3]
    every, _ = play(places, "off")
    for got, want in zip(sink.labels, every.labels, strict=True):
        assert (got == want).mean() > 0.98


def test_motion_takes_every_fourth_frame_and_moves_the_labels() -> None:
    """4 pixels a frame: the labels of the first frame, so much further to the right."""
    places = [32 + 4 * n for n in range(8)]
    sink, _ = play(places, "motion")
    assert networks(sink) == [0, KEYFRAME]
    first = sink.labels[0]
    for n in (1, 2, 3):
        moved = (sink.labels[n][:, 4 * n :] == first[:, : -4 * n]).mean()
        stayed = (first[:, 4 * n :] == first[:, : -4 * n]).mean()
        assert 1 - moved < 0.5 * (1 - stayed)


def test_off_is_the_loop_as_it_was() -> None:
    sink, _ = play([16, 16, 28], "off")
    assert networks(sink) == [0, 1, 2]
    assert "change" not in sink.stages[0]


def test_a_new_size_goes_through_the_network() -> None:
    changes = Changes("motion")
    assert changes.look(scene(16)).step is Step.NETWORK
    assert changes.look(scene(16)).step is Step.KEEP
    assert changes.look(scene(40)).step is Step.MOVE
    assert changes.look(np.zeros((96, 64, 3), np.uint8)).step is Step.NETWORK
    assert changes.look(np.zeros((99, 64, 3), np.uint8)).step is Step.NETWORK  # of one size when both are made small


def test_the_changed_part_is_whole_blocks_with_one_around() -> None:
    key = np.zeros((48, 72), np.uint8)
    small = key.copy()
    assert changed_part(key, small, SIZE_HW) is None
    small[20, 30] = 6  # not above the limit
    assert changed_part(key, small, SIZE_HW) is None
    small[20, 30] = 7  # block (2, 3)
    assert changed_part(key, small, SIZE_HW) == (32, 64, 96, 96)
    small[47, 71] = 200
    assert changed_part(key, small, SIZE_HW) == (32, 64, 160, 224)


def test_labels_outside_of_the_changed_part_stay() -> None:
    changes = Changes("motion")
    changes.look(scene(32))
    decision = changes.look(scene(44))
    labels = np.random.default_rng(0).integers(0, 4, SIZE_HW, dtype=np.uint8)
    out = np.empty_like(labels)
    move_labels(labels, decision, out, cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST))
    y, x, height, width = decision.part
    outside = np.ones(SIZE_HW, np.bool_)
    outside[y : y + height, x : x + width] = False
    assert outside.any() and (out[outside] == labels[outside]).all()


@pytest.mark.parametrize("reuse", ["still", "motion"])
def test_the_report_names_it(reuse: Reuse) -> None:
    recorder = Recorder()
    run(Scenes([16] * 3), FakeBackend(CLASSES, PREPROCESS, slots=2), [], recorder, reuse=reuse)
    assert recorder.runs_on == f"fake, reuse {reuse}"


@pytest.mark.parametrize("size_hw", [(1000, 1000), (360, 360), (200, 300), (48, 48), (40, 300)])
def test_a_change_in_the_last_corner_alone_moves_labels(size_hw: tuple[int, int]) -> None:
    """The part around it has fewer pixels than OpenCV's flow takes, and the frame ends there."""
    changes, frame = Changes("motion"), np.zeros((*size_hw, 3), np.uint8)
    changes.look(frame)
    frame[-8:, -8:] = 255
    decision = changes.look(frame)
    assert decision.step is (Step.NETWORK if min(size_hw) < 48 else Step.MOVE)
    if decision.step is Step.MOVE:
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        out = np.empty(size_hw, np.uint8)
        move_labels(np.full(size_hw, 7, np.uint8), decision, out, flow)
        assert (out == 7).all()
