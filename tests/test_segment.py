"""Segmenting pictures and files with the fake back end, whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tsss_edge.segment
from tsss_edge.artifacts import Classes, Placement, Preprocess
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.data.pictures import read_mask
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.segment import plan, resize_labels, segment_files, segment_image

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
SPEC = Preprocess(size_hw=(64, 96))


def halves(height: int, width: int) -> NDArray[np.uint8]:
    """Left half dark (class 0), right half bright (class 3)."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[:, width // 2 :] = 230
    return image


def save(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackend]:
    """`open_backend` gives fake back ends; they are listed here."""
    opened: list[FakeBackend] = []

    def open_fake(path: Path, **_: object) -> FakeBackend:
        opened.append(FakeBackend(CLASSES, SPEC))
        return opened[-1]

    monkeypatch.setattr(tsss_edge.segment, "open_backend", open_fake)
    return opened


@pytest.mark.parametrize("head", ["logits", "labels"])
@pytest.mark.parametrize("size_hw", [(64, 96), (128, 192), (75, 201)])
def test_labels_have_the_pictures_own_size(head: str, size_hw: tuple[int, int]) -> None:
    labels = segment_image(FakeBackend(CLASSES, SPEC, head=head), halves(*size_hw))  # type: ignore[arg-type]
    assert labels.shape == size_hw
    assert labels.dtype == np.uint8
    middle, edge = size_hw[1] // 2, size_hw[1] // 12 + 1  # one cell of the grid, in picture pixels
    assert (labels[:, : middle - edge] == 0).all()
    assert (labels[:, middle + edge :] == 3).all()


def test_result_survives_the_next_picture() -> None:
    backend = FakeBackend(CLASSES, SPEC)
    first = segment_image(backend, halves(64, 96))
    kept = first.copy()
    segment_image(backend, np.zeros((64, 96, 3), np.uint8))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("head", ["logits", "labels"])
def test_crop_leaves_the_margins_unlabelled(head: str) -> None:
    backend = FakeBackend(CLASSES, Preprocess(size_hw=(64, 64), fit="crop"), head=head)  # type: ignore[arg-type]
    labels = segment_image(backend, np.full((64, 128, 3), 230, np.uint8))
    assert (labels[:, 32:96] == 3).all()
    assert (labels[:, :32] == 255).all() and (labels[:, 96:] == 255).all()


def test_letterbox_labels_come_from_the_picture_not_the_padding() -> None:
    backend = FakeBackend(CLASSES, Preprocess(size_hw=(64, 64), fit="letterbox"), head="labels")
    assert (segment_image(backend, np.full((64, 128, 3), 230, np.uint8)) == 3).all()


def test_nearest_resize_by_hand() -> None:
    labels = np.array([[9, 9, 9, 9], [9, 1, 2, 9], [9, 3, 4, 9], [9, 9, 9, 9]], np.uint8)
    inside = Placement(source=(1, 0, 4, 4), target=(1, 1, 2, 2))  # the middle 2x2 fills columns 1 to 4
    expected = [[255, 1, 1, 2, 2], [255, 1, 1, 2, 2], [255, 3, 3, 4, 4], [255, 3, 3, 4, 4]]
    np.testing.assert_array_equal(resize_labels(labels, (4, 5), inside), expected)


def test_nearest_resize_takes_centres() -> None:
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    whole = Placement(
        source=(0, 0, 2, 2), target=(0, 0, 4, 4)
    )  # the centre of each 2x2 is the corner of its last pixel
    np.testing.assert_array_equal(resize_labels(labels, (2, 2), whole), [[5, 7], [13, 15]])


def test_network_without_classes_is_refused() -> None:
    class Objectness(FakeBackend):
        def infer(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            return {"objectness": np.zeros((1, 1, 8, 12), np.float32)}

    with pytest.raises(ArtifactError, match="gives objectness; segmenting needs logits or labels"):
        segment_image(Objectness(CLASSES, SPEC), halves(64, 96))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_files_folders_and_globs(tmp_path: Path, fake: list[FakeBackend]) -> None:
    save(tmp_path / "in/a.png", halves(40, 60))
    save(tmp_path / "in/deep/b.png", halves(50, 70))
    save(tmp_path / "more/c1.png", halves(40, 60))
    save(tmp_path / "more/c2.jpg", halves(40, 60))
    (tmp_path / "in/notes.txt").write_text("not a picture")
    out = tmp_path / "out"
    report = segment_files(
        tmp_path / "x.xml",
        [str(tmp_path / "in"), str(tmp_path / "more/c*")],
        out,
        overlay=True,
        sheet=tmp_path / "seen.png",
    )
    assert report.images == 4 and report.failed == ()
    assert report.skipped == (str(tmp_path / "in/notes.txt"),)
    assert "1 files are no pictures" in report.summary()
    masks = {str(p.relative_to(out)) for p in out.rglob("*.png")}
    assert masks == {"a.png", "deep/b.png", "c1.png", "c2.png"}
    mask = read_mask(out / "deep/b.png")
    assert mask.shape == (50, 70) and mask[0, 0] == 0 and mask[0, -1] == 3
    with Image.open(out / "deep/b.overlay.jpg") as blended:
        assert blended.width == 70 and blended.height > 50  # a legend below
    with Image.open(tmp_path / "seen.png") as sheet:
        assert sheet.width > 4 * 320 and sheet.height > 200
    assert [backend.closed for backend in fake] == [True]


def test_broken_picture_is_reported_and_does_not_stop_the_rest(tmp_path: Path, fake: list[FakeBackend]) -> None:
    good = save(tmp_path / "good.jpg", halves(40, 60))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    missing = tmp_path / "missing.jpg"
    report = segment_files(tmp_path / "x.xml", [str(p) for p in (broken, missing, good)], tmp_path / "out")
    assert report.images == 1
    assert [str(p) in line for p, line in zip((broken, missing), report.failed, strict=True)] == [True, True]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]
    assert "failed: " in report.summary()


def test_nothing_found_and_name_collisions_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        plan([str(tmp_path / "empty")], tmp_path)
    with pytest.raises(DataError, match="no pictures"):
        plan([str(tmp_path / "*.jpg")], tmp_path)
    a, b = (save(tmp_path / name, halves(32, 32)) for name in ("x/a.png", "y/a.jpg"))
    with pytest.raises(DataError, match="would both write"):
        plan([str(a), str(b)], tmp_path / "out")
    assert plan([str(a), str(a)], tmp_path / "out") == {a: tmp_path / "out/a.png"}  # named twice is one picture


def test_a_mask_never_takes_a_picture_s_place(tmp_path: Path) -> None:
    picture = save(tmp_path / "photos/a.png", halves(32, 32))
    for given in (str(picture), str(tmp_path / "photos"), f"{tmp_path}/photos/*.png"):
        with pytest.raises(DataError, match="its mask would overwrite the picture"):
            plan([given], tmp_path / "x/../photos")


def test_masks_of_an_earlier_run_are_no_pictures(tmp_path: Path) -> None:
    picture = save(tmp_path / "photos/a.jpg", halves(32, 32))
    save(tmp_path / "photos/masks/a.png", halves(32, 32))
    assert plan([str(tmp_path / "photos")], tmp_path / "photos/masks") == {picture: tmp_path / "photos/masks/a.png"}
    assert len(plan([str(tmp_path / "photos")], tmp_path / "elsewhere")) == 2
