"""The parity watch and live mIoU: right numbers, nobody waits, errors arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopkit import CLASSES, PATIENCE_S, PREPROCESS, Pictures, Seen, fake
from numpy.typing import NDArray

import tsss_edge.stream.watch
from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends.fake import FakeBackend, brightness_cells
from tsss_edge.errors import ArtifactError, GateError
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.watch import MIOU_FRAMES, Checks, LiveAccuracy, ParityWatch, open_reference


def left_half_is_dog(images: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """Class 2 on the left half of the picture, 0 on the right, whatever the picture."""
    n, height, width, _ = images.shape
    ids = np.zeros((n, height // 8, width // 8), np.uint8)
    ids[:, :, : width // 16] = 2
    return ids


def result(index: int = 0, *, value: int = 2, truth: NDArray[np.uint8] | None = None) -> FrameResult:
    """Labels of one class everywhere."""
    image = np.full((64, 96, 3), 100, np.uint8)
    return FrameResult(Frame(image, index, 0.0, truth=truth), np.full((64, 96), value, np.uint8), None, None)


@pytest.fixture
def watches() -> Iterator[list[ParityWatch]]:
    made: list[ParityWatch] = []
    yield made
    for watch in made:
        watch.close()
        watch.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("parity watch")]


def test_agreement_is_the_share_of_equal_pixels(watches: list[ParityWatch]) -> None:
    watches.append(watch := ParityWatch(fake(answer=left_half_is_dog, head="labels"), every=1))
    assert watch.offer(result(0, value=2)) == {}  # nothing is known yet
    watch.finish()
    assert watch.offer(result(7, value=1)) == {"agreement": 0.5, "frame": 0}
    watch.finish()
    assert watch.offer(result(8, value=0)) == {"agreement": 0.0, "frame": 7}
    watch.finish()
    verdict = watch.verdict
    assert (verdict.agreement, verdict.agreement_min, verdict.worst_frame) == (pytest.approx(1 / 3), 0.0, 7)


def test_the_frame_is_copied_because_the_loop_uses_its_arrays_again(watches: list[ParityWatch]) -> None:
    watches.append(watch := ParityWatch(fake(answer=left_half_is_dog, head="labels", latency_ms=30), every=1))
    offered = result(value=2)
    watch.offer(offered)
    offered.labels[...] = 1
    watch.finish()
    assert watch.verdict.agreement == 0.5


def test_every_nth_frame_is_due(watches: list[ParityWatch]) -> None:
    watches.append(watch := ParityWatch(fake(), every=4))
    for index in range(10):
        watch.offer(result(index))
        watch.finish()
    assert (watch.verdict.due, watch.verdict.checked) == (3, 3)  # 0, 4 and 8


def test_nobody_waits_for_a_slow_reference(watches: list[ParityWatch]) -> None:
    all_offered, in_time = threading.Event(), []

    def answer(images: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
        in_time.append(all_offered.wait(PATIENCE_S))
        return brightness_cells(images, num_classes)

    watches.append(watch := ParityWatch(fake(answer=answer), every=1))
    for index in range(100):
        watch.offer(result(index))
    all_offered.set()
    watch.finish()
    assert in_time == [True], "offer waited for the reference"
    assert (watch.verdict.due, watch.verdict.checked) == (100, 1)


def test_too_little_agreement_stops_the_stream_with_the_gates_exit_code(watches: list[ParityWatch]) -> None:
    watches.append(watch := ParityWatch(fake(answer=left_half_is_dog), every=1, min_agreement=0.9))
    sink = Seen(on_write=lambda result: time.sleep(0.005))
    with pytest.raises(GateError, match=r"frame 0: 0\.\d+ of the pixels agree .* at least 0\.9") as caught:
        run(Pictures(1000), fake(), [sink], Recorder(), checks=Checks(watch))
    assert caught.value.exit_code == 3
    assert 0 < len(sink.indices) < 1000


def test_a_short_stream_still_hears_its_verdict(watches: list[ParityWatch]) -> None:
    watches.append(watch := ParityWatch(fake(answer=left_half_is_dog, latency_ms=100), every=1, min_agreement=0.9))
    with pytest.raises(GateError):
        run(Pictures(1), fake(), [Seen()], Recorder(), checks=Checks(watch))


def test_an_engine_that_agrees_passes(watches: list[ParityWatch]) -> None:
    watches.append(watch := ParityWatch(fake(), every=1, min_agreement=1.0))
    assert run(Pictures(20), fake(), [Seen()], Recorder(), checks=Checks(watch)) == "source"
    assert watch.verdict.agreement == 1.0


def test_an_error_of_the_reference_reaches_the_loop(watches: list[ParityWatch]) -> None:
    watches.append(watch := ParityWatch(fake(fail_at=0), every=1))
    with pytest.raises(RuntimeError, match="fake failure at call 0"):
        run(Pictures(5), fake(), [Seen()], Recorder(), checks=Checks(watch))


@pytest.mark.parametrize(
    ("classes", "preprocess", "message"),
    [
        (Classes(names=("background", "cat", "dog", "horse")), PREPROCESS, "other classes than the engine's"),
        (CLASSES, Preprocess(size_hw=(64, 64)), "different preprocessing"),
    ],
)
def test_a_reference_of_another_engine(
    monkeypatch: pytest.MonkeyPatch, classes: Classes, preprocess: Preprocess, message: str
) -> None:
    monkeypatch.setattr(tsss_edge.stream.watch, "open_backend", lambda path, threads: FakeBackend(classes, preprocess))
    with pytest.raises(ArtifactError, match=message):
        open_reference(Path("other.pt"), fake())


# -- live mIoU -------------------------------------------------------------------------------------------------------------


def test_live_miou_by_hand() -> None:
    accuracy = LiveAccuracy(4)
    assert accuracy.miou is None
    truth = np.zeros((64, 96), np.uint8)
    truth[:, :48] = 2
    assert accuracy.add(result(value=2, truth=truth)) == pytest.approx(25)  # IoU 1/2 of class 2 and 0 of class 0
    # Then all is class 0 and right: IoU (0 + 2) / 3 of class 0, 1/2 of class 2 as before.
    both = pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert accuracy.add(result(value=0, truth=np.zeros((64, 96), np.uint8))) == both == accuracy.miou


def test_the_shown_miou_forgets_and_the_reported_one_does_not() -> None:
    accuracy = LiveAccuracy(4)
    right, wrong = np.full((64, 96), 2, np.uint8), np.full((64, 96), 1, np.uint8)
    accuracy.add(result(value=2, truth=wrong))
    shown = [accuracy.add(result(value=2, truth=right)) for _ in range(MIOU_FRAMES)]
    assert shown[-2] < 100 == shown[-1]
    assert accuracy.miou is not None and accuracy.miou < 100


def test_the_truth_of_a_source_is_counted_and_shown() -> None:
    checks, sink = Checks(accuracy=LiveAccuracy(4)), Seen()
    run(Pictures(8, truth=True), fake(), [sink], Recorder(), checks=checks)
    assert checks.miou == 100.0
    assert sink.verdicts == [{"miou": 100.0}] * 8
