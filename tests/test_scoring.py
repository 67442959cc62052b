"""`evaluate` on sets made so that the fake back end's score is known."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tsss_edge.scoring
from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.data.voc import VOC_NAMES, write_mask
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.scoring import evaluate

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
SPEC = Preprocess(size_hw=(64, 96))
Masks = dict[str, NDArray[np.uint8]]


def write_set(root: Path, masks: Masks, image_of: Callable[[str], NDArray[np.uint8]]) -> Path:
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES.names) + "\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(masks) + "\n")
    for name, mask in masks.items():
        Image.fromarray(image_of(name)).save(root / f"JPEGImages/{name}.png")
        write_mask(root / f"SegmentationClass/{name}.png", mask)
    return root


def grey(value: int) -> NDArray[np.uint8]:
    return np.full((64, 96, 3), value, np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures: one all class 3 and right, one answered 1 of which half is truly 2 and a quarter is ignored."""
    second = np.full((64, 96), 1, np.uint8)
    second[:, :48] = 2
    second[:32, 48:] = 255
    masks = {"a": np.full((64, 96), 3, np.uint8), "b": second}
    return write_set(tmp_path / "set", masks, lambda name: grey(230 if name == "a" else 80))


def test_known_score(data: Path) -> None:
    report = evaluate(FakeBackend(CLASSES, SPEC), data)
    # class 1: quarter right of three quarters counted; class 2: 0; class 3: all; background: nowhere
    assert report.per_class == {"background": None, "cat": pytest.approx(100 / 3), "dog": 0.0, "cow": 100.0}
    assert report.miou == pytest.approx((100 / 3 + 0 + 100) / 3)
    assert report.pixel_accuracy == pytest.approx(1.25 / 1.75)
    assert report.images == 2
    assert "mIoU 44.44" in report.summary() and "background      -" in report.summary()


def test_the_sheet_shows_the_worst_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake sees class 0 in dark pictures: the more of a mask is class 1, the worse."""
    masks = {f"p{n}": np.full((64, 96), 0, np.uint8) for n in range(5)}
    for n, mask in enumerate(masks.values()):
        mask[: 10 * n] = 1
    masks["unlabelled"] = np.full((64, 96), 255, np.uint8)
    data, sheets = write_set(tmp_path / "set", masks, lambda name: grey(20)), []
    monkeypatch.setattr(tsss_edge.scoring, "SHEET", 3)
    monkeypatch.setattr(tsss_edge.scoring, "write_sheet", lambda path, tiles, classes: sheets.append((path, tiles)))
    evaluate(FakeBackend(CLASSES, SPEC), data, sheet=tmp_path / "worst.png")
    ((path, tiles),) = sheets
    assert path == tmp_path / "worst.png" and [tile.text.split()[0] for tile in tiles] == ["p4", "p3", "p2"]
    assert tiles[0].text == f"p4  mIoU {100 * 24 / 64 / 2:.1f}" and (tiles[0].truth > 0).mean() == pytest.approx(
        40 / 64, abs=0.02
    )


def test_json_keys_are_the_contract(data: Path) -> None:
    keys = set(msgspec.json.decode(msgspec.json.encode(evaluate(FakeBackend(CLASSES, SPEC), data))))
    assert keys == {"miou", "pixel_accuracy", "per_class", "images"}


def test_score_is_at_the_masks_own_resolution(tmp_path: Path) -> None:
    mask = np.full((301, 477), 3, np.uint8)
    data = write_set(tmp_path / "big", {"a": mask}, lambda _: np.full((301, 477, 3), 230, np.uint8))
    assert evaluate(FakeBackend(CLASSES, SPEC), data).miou == 100.0


def test_callers_back_end_stays_open(data: Path) -> None:
    backend = FakeBackend(CLASSES, SPEC)
    evaluate(backend, data)
    assert not backend.closed


def test_bad_input(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"classes 4 \(background, cat, dog, \.\.\.\), but the network was trained for 2"
    ):
        evaluate(FakeBackend(Classes(names=("background", "x")), SPEC), data)
    with pytest.raises(DataError, match="no such split"):
        evaluate(FakeBackend(CLASSES, SPEC), data, "test")
    with pytest.raises(ArtifactError, match="expected a checkpoint"):
        evaluate(tmp_path / "model.bin", data)
    write_mask(data / "SegmentationClass/a.png", np.full((64, 95), 3, np.uint8))
    with pytest.raises(DataError, match="mask is 95x64, its picture 96x64"):
        evaluate(FakeBackend(CLASSES, SPEC), data)


def test_all_ignored_split_has_no_score(tmp_path: Path) -> None:
    data = write_set(tmp_path / "void", {"a": np.full((64, 96), 255, np.uint8)}, lambda _: grey(10))
    with pytest.raises(DataError, match="no labelled pixel"):
        evaluate(FakeBackend(CLASSES, SPEC), data)


def links(root: Path, count: int) -> Path:
    """A set of `count` pictures of 32x32, all links to one."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(np.full((32, 32, 3), 80, np.uint8)).save(root / "one.png")
    write_mask(root / "mask.png", np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 21)
    for n in range(count):
        os.link(root / "one.png", root / f"JPEGImages/p{n}.png")
        os.link(root / "mask.png", root / f"SegmentationClass/p{n}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"p{n}\n" for n in range(count)))
    return root


def peak(data: Path) -> int:
    """Bytes that Python and NumPy held at most while a set was evaluated."""
    tracemalloc.start()
    evaluate(FakeBackend(Classes(names=VOC_NAMES), Preprocess(size_hw=(32, 32))), data)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    peak(links(tmp_path / "first", 8))  # what is imported and compiled once
    few, many = peak(links(tmp_path / "few", 100)), peak(links(tmp_path / "many", 1600))
    assert (
        many - few < 1500 * 600
    )  # ids and the counts that are not 0; all counts of a picture alone would be 1848 bytes
