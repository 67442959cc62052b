"""Mixed logits: by hand, where the picture stays and where it changes, and that the loop flickers less by them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from loopkit import CLASSES, PREPROCESS, fake

from tsss_edge.backends.base import Outputs
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.errors import UnavailableError
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.opening import open_stages
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.smooth import Mixer
from tsss_edge.stream.watch import Checks, LiveAccuracy

FRAMES = 24


def test_a_cell_that_stays_is_mixed_and_one_that_changed_is_new() -> None:
    mixer, gray = Mixer(0.75), np.full((1, 2), 100, np.uint8)
    first = np.array([[[8.0, 8.0]]], np.float32)
    assert np.array_equal(mixer.mix(first, gray), first)
    seen = np.array([[106, 107]], np.uint8)  # 6 levels are noise, 7 are a change
    assert mixer.mix(np.zeros_like(first), seen).tolist() == [[[6.0, 0.0]]]
    assert mixer.mix(np.zeros_like(first), seen).tolist() == [[[4.5, 0.0]]]
    assert np.array_equal(first, [[[8.0, 8.0]]]), "the network's own logits stay as they are"


def test_another_shape_starts_anew() -> None:
    mixer = Mixer(0.5)
    mixer.mix(np.ones((2, 1, 2), np.float32), np.zeros((1, 2), np.uint8))
    assert mixer.mix(np.zeros((2, 2, 2), np.float32), np.zeros((2, 2), np.uint8)).max() == 0


@pytest.mark.parametrize("weight", [-0.1, 1.0])
def test_weights_that_never_settle_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="below 1"):
        Mixer(weight)


class Unsure(FakeBackend):
    """An engine whose first two classes win in turn, by a little."""

    def __init__(self) -> None:
        super().__init__(CLASSES, PREPROCESS, slots=2)
        self._asked = 0

    def wait(self, slot: int) -> Outputs:
        answer = dict(super().wait(slot))
        logits = np.zeros_like(answer["logits"])
        logits[:, 0] = 1.0
        logits[:, 1] = 1.1 if self._asked % 4 == 0 else 0.9
        self._asked += 1
        return {**answer, "logits": logits}


class Still:
    """A source of one gray picture, frame after frame, whose truth is the first class."""

    live, fps, size_hw, state, length = False, 25.0, (96, 128), "STREAMING", FRAMES

    def __init__(self) -> None:
        self._next = 0

    def read(self, out: np.ndarray | None = None) -> Frame | None:
        if self._next == FRAMES:
            return None
        self._next += 1
        picture = np.full((*self.size_hw, 3), 90, np.uint8)
        return Frame(picture, self._next - 1, time.monotonic(), truth=np.zeros(self.size_hw, np.uint8))

    def close(self) -> None:
        pass


class Raw:
    """Keeps what the results' logits say of the first cell."""

    wants_overlay = False

    def __init__(self) -> None:
        self.seen: list[float] = []

    def write(self, result: FrameResult) -> None:
        assert result.logits is not None
        self.seen.append(round(float(result.logits[1, 0, 0]), 3))

    def close(self) -> None:
        pass


def play(**options: Any) -> tuple[Checks, Raw, Recorder]:
    checks, sink, recorder = Checks(accuracy=LiveAccuracy(len(CLASSES))), Raw(), Recorder()
    assert run(Still(), Unsure(), [sink], recorder, checks=checks, **options) == "source"
    return checks, sink, recorder


def test_labels_flicker_less_and_the_network_s_logits_stay() -> None:
    plain, raw, _ = play()
    smooth, same, recorder = play(smooth=0.8)
    assert plain.flicker is not None and plain.flicker > 40  # the second class wins in every fourth frame
    assert smooth.flicker is not None and smooth.flicker < 5
    assert raw.seen == same.seen == [1.1, 0.9, 0.9, 0.9] * (FRAMES // 4)
    assert recorder.runs_on == "fake, smooth 0.8"


def test_flicker_by_hand() -> None:
    """Of 4 pixels the truth of 3 stays; of those one changes its label. A frame that was dropped between is no neighbour."""
    accuracy = LiveAccuracy(2)
    rows = ((0, [0, 0, 1, 1], [0, 0, 1, 1]), (1, [0, 1, 1, 0], [0, 0, 1, 0]), (3, [1, 0, 0, 1], [0, 0, 1, 0]))
    for index, labels, truth in rows:
        picture, found = np.zeros((1, 4, 3), np.uint8), np.array([labels], np.uint8)
        accuracy.add(FrameResult(Frame(picture, index, 0.0, truth=np.array([truth], np.uint8)), found, None, None))
    assert accuracy.flicker == pytest.approx(100 / 3)


def test_what_cannot_be_mixed_is_said() -> None:
    with pytest.raises(UnavailableError, match="needs logits"):
        open_stages(fake(head="labels"), blend=False, smooth=0.5)
    with pytest.raises(UnavailableError, match="give one of them"):
        open_stages(fake(), blend=False, smooth=0.5, reuse="still")
