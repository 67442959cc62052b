"""Reading a VOC folder: what comes out by hand, and every bad input as one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datakit import NAMES, ROWS, write_set
from PIL import Image

from tsss_edge.artifacts import IGNORE, Classes, voc_color
from tsss_edge.data.check import check_dataset
from tsss_edge.data.joined import join_sets
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.voc import VOC_NAMES, VocDataset, suggested_size_hw, write_mask, write_pair
from tsss_edge.errors import EXIT_ERROR, DataError

Damage = Callable[[Path], object]


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def big_mask(root: Path) -> None:
    write_mask(root / "SegmentationClass/a.png", np.zeros((9, 16), np.uint8))


def foreign_id(root: Path) -> None:
    write_mask(root / "SegmentationClass/a.png", np.full((8, 16), 5, np.uint8))


def color_mask(root: Path) -> None:
    Image.new("RGB", (16, 8)).save(root / "SegmentationClass/a.png")


DAMAGES: dict[str, tuple[Damage, str]] = {  # what is done to the set, what the line says
    "no picture": (lambda r: (r / "JPEGImages/a.jpg").unlink(), "JPEGImages/a: no picture"),
    "truncated picture": (lambda r: cut_in_half(r / "JPEGImages/a.jpg"), "a.jpg: not a readable picture"),
    "empty picture": (lambda r: (r / "JPEGImages/a.jpg").write_bytes(b""), "a.jpg: not a readable picture"),
    "text as picture": (lambda r: (r / "JPEGImages/a.jpg").write_text("hello"), "a.jpg: not a readable picture"),
    "no mask": (lambda r: (r / "SegmentationClass/a.png").unlink(), "image a has no mask"),
    "truncated mask": (lambda r: cut_in_half(r / "SegmentationClass/a.png"), "a.png: not a readable mask"),
    "mask of another size": (big_mask, "mask is 16x9, its picture 16x8"),
    "class id beyond classes.txt": (foreign_id, "class id 5, but the set has ids 0 to 4"),
    "colour mask": (color_mask, "a RGB picture; a mask is an index PNG"),
    "empty list": (lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("\n"), "val.txt: the list is empty"),
    "id twice": (lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("a\nb\na\n"), "an id stands there twice"),
    "csv with words": (lambda r: replace(r / "image_labels.csv", "a,1 2", "a,cat dog"), "line 2: expected `id,class ids`"),
    "csv with unknown ids": (lambda r: replace(r / "image_labels.csv", "b,3", "b,9"), "line 3: class id outside 1-4"),
    "csv with background": (lambda r: replace(r / "image_labels.csv", "b,3", "b,0 3"), "line 3: class id outside 1-4"),
}  # fmt: skip


def read_everything(root: Path) -> None:
    dataset = VocDataset.open(root)
    for split in dataset.splits:
        for image_id in dataset.ids(split):
            dataset.image_labels(image_id)
            dataset.image(image_id)
            dataset.mask(image_id)


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_input_is_one_clear_line(tiny: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    read_everything(tiny)
    damage(tiny)
    with pytest.raises(DataError) as caught:
        read_everything(tiny)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == EXIT_ERROR


@pytest.mark.parametrize("name", DAMAGES)
def test_check_finds_it_and_reads_on(tiny: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(tiny)
    report = check_dataset(tiny)
    assert len([line for line in report.problems if message in line]) == 1
    assert report.images >= 4
    assert report.classes["horse"].images == 1  # image e was read nevertheless


def test_check_collects_all_problems(tiny: Path) -> None:
    (tiny / "JPEGImages/b.jpg").unlink()
    big_mask(tiny)
    cut_in_half(tiny / "JPEGImages/c.jpg")
    replace(tiny / "image_labels.csv", "e,2 3 4", "ghost,2\ne,2 3")
    problems = check_dataset(tiny).problems
    assert len(problems) == 6  # b is missed by its list and by its row in the table
    for expected in (
        "16x9",
        "JPEGImages/b",
        "id b names no picture",
        "c.jpg",
        "id ghost names no picture",
        "shows horse",
    ):
        assert len([line for line in problems if expected in line]) == 1, expected


def test_check_counts(tiny: Path) -> None:
    report = check_dataset(tiny)
    assert not report.problems
    assert (report.images, report.unlabelled, report.splits) == (5, 0, {"train": 5, "val": 2})
    assert {name: (c.images, c.pixels) for name, c in report.classes.items()} == {
        "background": (5, 32 * (1 + 2 + 1 + 4 + 1)),
        "cat": (2, 32 * 3),
        "dog": (2, 32 * 2),
        "cow": (3, 32 * 4),
        "horse": (1, 32),
    }
    assert report.ignored_pixels == 32
    assert "no problems" in report.summary()
    assert "train 5, val 2" in report.summary()
    assert check_dataset(tiny, ["val"]).images == 2


def test_images_with_a_label_need_no_mask_but_for_validation(tiny: Path) -> None:
    (tiny / "SegmentationClass/d.png").unlink()
    report = check_dataset(tiny)
    assert not report.problems
    assert report.unlabelled == 1
    (tiny / "image_labels.csv").unlink()
    assert any("image d has no mask" in line for line in check_dataset(tiny).problems)


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        VocDataset.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder JPEGImages"):
        check_dataset(tmp_path)


def test_an_unknown_split(tiny: Path) -> None:
    with pytest.raises(DataError, match="no such split; this set has train, val"):
        VocDataset.open(tiny).ids("test")
    assert "no such split" in check_dataset(tiny, ["test"]).problems[0]


def test_a_set_without_lists(tiny: Path) -> None:
    for path in (tiny / "ImageSets/Segmentation").iterdir():
        path.unlink()
    assert "no list" in check_dataset(tiny).problems[0]


def test_class_names(tiny: Path) -> None:
    assert VocDataset.open(tiny).classes == Classes(names=NAMES)
    (tiny / "classes.txt").unlink()
    assert VocDataset.open(tiny).classes.names == VOC_NAMES
    (tiny / "classes.txt").write_text("Sky\nRoad\nCar\n")
    without = VocDataset.open(tiny).classes
    assert (without.background, without.objects) == (False, (0, 1, 2))
    (tiny / "classes.txt").write_text("background\ncat\ncat\n")
    with pytest.raises(DataError, match="differ"):
        VocDataset.open(tiny)


def test_labels_from_annotations(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", csv=False)
    (root / "Annotations").mkdir()
    xml = root / "Annotations/a.xml"
    xml.write_text("<annotation><object><name>cow</name></object></annotation>")
    assert VocDataset.open(root).image_labels("a") == {3}
    assert "shows cat, dog" in check_dataset(root).problems[0]
    xml.write_text("<annotation><object><name>unicorn</name></object></annotation>")
    with pytest.raises(DataError, match="unicorn"):
        VocDataset.open(root).image_labels("a")
    xml.write_text("<annotation>")
    with pytest.raises(DataError, match="not a readable VOC annotation"):
        VocDataset.open(root).image_labels("a")
    assert len(check_dataset(root).problems) == 1


def test_masks_survive_writing(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (7, 5), np.uint8)
    write_mask(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
    with Image.open(tmp_path / "m.png") as picture:
        palette = picture.getpalette()
        assert picture.mode == "P"
    assert palette is not None
    assert tuple(palette[45:48]) == voc_color(15) == (192, 128, 128)  # VOC's colour of "person"
    with pytest.raises(ValueError, match=r"\(H,W\) uint8"):
        write_mask(tmp_path / "m.png", mask.astype(np.int32))


def test_split_hash_sees_every_byte(tiny: Path) -> None:
    before = VocDataset.open(tiny).split_hash("val")
    assert VocDataset.open(tiny).split_hash("val") == before
    mask = read_mask(tiny / "SegmentationClass/b.png").copy()
    mask[0, 0] = IGNORE
    write_mask(tiny / "SegmentationClass/b.png", mask)
    assert VocDataset.open(tiny).split_hash("val") != before


def test_suggested_size(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for image_id in ROWS:
        Image.new("RGB", (480, 360)).save(root / f"JPEGImages/{image_id}.jpg")
    assert suggested_size_hw(VocDataset.open(root)) == (352, 480)
    assert suggested_size_hw(VocDataset.open(root), limit=128) == (96, 128)


def test_pictures_named_as_cameras_do(tiny: Path) -> None:
    path = VocDataset.open(tiny).image_path("c")
    path.rename(path.with_suffix(path.suffix.upper()))
    assert VocDataset.open(tiny).image("c").ndim == 3


def test_pictures_in_train_and_val_are_told(tiny: Path) -> None:
    (tiny / "ImageSets/Segmentation/train.txt").write_text("a\nc\n")
    (tiny / "ImageSets/Segmentation/val.txt").write_text("c\n")
    assert any("1 pictures stand in train and in val: c" in note for note in check_dataset(tiny).notes)


def test_joined_again_after_a_mask_changed(tiny: Path, tmp_path: Path) -> None:
    """A later join links what is there now, and takes a withdrawn mask away."""
    old, field = VocDataset.open(tiny), tmp_path / "field"
    (field / "ImageSets/Segmentation").mkdir(parents=True)
    (field / "ImageSets/Segmentation/train.txt").write_text("f1\nf2\n")
    (field / "image_labels.csv").write_text("id,classes\nf1,5\nf2,5\n")
    (field / "classes.txt").write_text("\n".join([*old.classes.names, "robot"]) + "\n")
    for name, value in (("f1", 0), ("f2", 5)):
        write_pair(field, name, np.zeros((8, 8, 3), np.uint8), np.full((8, 8), value, np.uint8))
    join_sets(tiny, field, tmp_path / "both", new_class="robot")
    write_mask(field / "SegmentationClass/f1.png", np.full((8, 8), 5, np.uint8))
    (field / "SegmentationClass/f2.png").unlink()
    both = join_sets(tiny, field, tmp_path / "both", new_class="robot")
    assert set(np.unique(both.mask("f1"))) == {5}
    assert not both.mask_path("f2").is_file()


def test_a_table_of_labels_without_a_head_keeps_its_first_picture(tiny: Path) -> None:
    ids = VocDataset.open(tiny).ids("train")
    (tiny / "image_labels.csv").write_text("".join(f"{image_id},1\n" for image_id in ids))
    assert list(VocDataset.open(tiny).label_table) == list(ids)
    (tiny / "image_labels.csv").write_text("".join(["id,classes\n", *(f"{image_id},\n" for image_id in ids)]))
    assert set(VocDataset.open(tiny).label_table.values()) == {frozenset()}


def test_no_size_without_a_list(tiny: Path) -> None:
    for path in (tiny / "ImageSets/Segmentation").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no list of pictures; expected"):
        suggested_size_hw(VocDataset.open(tiny))
