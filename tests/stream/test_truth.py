"""Masks of a recorded stream: the right one for every frame, by the engine's ids or as one class, at the frame's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loopkit import GRAYS, fake
from PIL import Image

from tsss_edge.artifacts import Classes
from tsss_edge.data.voc import write_mask
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sinks import open_sinks
from tsss_edge.stream.sources import open_source
from tsss_edge.stream.truth import TruthFolder
from tsss_edge.stream.watch import Checks, LiveAccuracy

CLASSES = Classes(names=("background", "cat", "dog"))


def halves(left: int, right: int, size: tuple[int, int] = (4, 8)) -> np.ndarray:
    mask = np.full(size, right, np.uint8)
    mask[:, : size[1] // 2] = left
    return mask


def result(index: int, labels: np.ndarray) -> FrameResult:
    image = np.zeros((*labels.shape, 3), np.uint8)
    return FrameResult(Frame(image, index, 0.0), labels, None, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames 0, 1, 10 in natural order: background and dog; twice as large; void and background."""
    for name, mask in (("1", halves(0, 2)), ("2", halves(0, 2, (8, 16))), ("10", halves(255, 0))):
        write_mask(tmp_path / f"{name}.png", mask)
    return tmp_path


def test_masks_are_those_of_their_frames_at_the_size_of_the_labels(folder: Path) -> None:
    truth, labels = TruthFolder(folder, CLASSES), halves(0, 2)
    for index in (0, 1):
        pair = truth.pair(index, labels)
        assert pair is not None and np.array_equal(pair[1], halves(0, 2))
    last = truth.pair(2, labels)
    assert last is not None and np.array_equal(last[1], halves(255, 0))
    assert truth.pair(3, labels) is None


def test_one_class_is_scored_against_everything_else(folder: Path) -> None:
    """The masks' ids do not matter; cat is not dog, and void is not counted."""
    write_mask(folder / "1.png", halves(0, 1))  # "the object", as DAVIS writes it
    truth = TruthFolder(folder, CLASSES, "dog")
    pair = truth.pair(0, halves(1, 2))
    assert pair is not None
    assert np.array_equal(pair[0], halves(0, 1)) and np.array_equal(pair[1], halves(0, 1))


def test_live_iou_by_hand(folder: Path) -> None:
    accuracy = LiveAccuracy(2, TruthFolder(folder, CLASSES, "dog"))
    checks = Checks(accuracy=accuracy)
    assert checks.per_class is None
    assert checks.add(result(0, halves(0, 2))) == {"miou": 100.0}
    checks.add(result(1, np.full((4, 8), 2, np.uint8)))  # dog everywhere: half right
    assert checks.add(result(7, halves(0, 2))) is None  # no mask of that frame
    assert checks.per_class == {"everything else": 50.0, "dog": pytest.approx(100 * 32 / 48, abs=0.01)}


def test_masks_stay_with_their_pictures_after_one_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scored, and written: a picture that is passed over keeps its number."""
    pictures, truth, found = tmp_path / "p", tmp_path / "t", tmp_path / "found"
    pictures.mkdir()
    for n in range(4):
        Image.new("L", (8, 8), GRAYS[n]).convert("RGB").save(pictures / f"{n}.png")
        write_mask(truth / f"{n}.png", np.full((8, 8), n, np.uint8))
    (pictures / "1.png").write_bytes(b"broken")
    source, backend, recorder = open_source(str(pictures)), fake(), Recorder()
    masks = TruthFolder(truth, backend.classes)
    checks = Checks.open(backend, str(pictures), None, 30, None, masks)
    sinks = open_sinks([f"{found}/"], fps=0.0, size_hw=source.size_hw, classes=backend.classes)
    run(source, backend, sinks, recorder, checks=checks)
    assert (checks.miou, recorder.frames, recorder.dropped) == (100.0, 3, 0)
    assert sorted(p.name for p in found.iterdir()) == ["000000.png", "000002.png", "000003.png"]
    masks.warn_of_count(source.listed)  # type: ignore[attr-defined]
    assert "masks in" not in caplog.text
    masks.warn_of_count(5)
    assert "4 masks in" in caplog.text and "5 pictures in the source" in caplog.text


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture there"):
        TruthFolder(tmp_path / "none", CLASSES)
    with pytest.raises(DataError, match="unknown categories horse"):
        TruthFolder(folder, CLASSES, "horse")
    write_mask(folder / "1.png", halves(0, 7))
    with pytest.raises(DataError, match=r"holds id 7, the engine has classes 0 to 2.*--truth-class"):
        TruthFolder(folder, CLASSES).pair(0, halves(0, 2))
    Image.new("RGB", (8, 4)).save(folder / "1.png")
    with pytest.raises(DataError, match="a mask is an index PNG"):
        TruthFolder(folder, CLASSES).pair(0, halves(0, 2))
