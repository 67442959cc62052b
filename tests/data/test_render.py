"""Rendered sets: pictures that fit their label maps, the same bytes by any number of processes, disjoint families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datakit import others_than_rare

from tsss_edge.artifacts import Classes
from tsss_edge.data import appearance, patterns
from tsss_edge.data.check import check_dataset
from tsss_edge.data.render import SOURCE, _pieces, _shrunk, look_of, render, render_layouts, render_source
from tsss_edge.data.synthetic import EMBEDDED
from tsss_edge.data.voc import VOC_NAMES, VocDataset, write_mask
from tsss_edge.errors import DataError

VOC = Classes(names=VOC_NAMES)


def write_layouts(root: Path, count: int = 3) -> Path:
    """Label maps of 96x128 with a disc of category i + 1 and a box of category 20, edges 255; lists beside them."""
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    y, x = np.mgrid[:96, :128]
    for index in range(count):
        mask = np.zeros((96, 128), np.uint8)
        distance = (x - 40) ** 2 + (y - 48) ** 2
        mask[distance < 28**2] = 255
        mask[distance < 25**2] = index % 20 + 1
        mask[60:90, 90:120] = 20
        write_mask(root / f"SegmentationClass/im{index}.png", mask)
    (lists / "train.txt").write_text("".join(f"im{i}\n" for i in range(count - 1)))
    (lists / "val.txt").write_text(f"im{count - 1}\n")
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_rendered_set(tmp_path: Path) -> None:
    layouts = write_layouts(tmp_path / "layouts")
    render_layouts(layouts, tmp_path / "set", short_side=48)
    dataset = VocDataset.open(tmp_path / "set")
    assert not others_than_rare(check_dataset(tmp_path / "set"))
    assert (dataset.ids("train"), dataset.ids("val")) == (("im0", "im1"), ("im2",))
    assert dataset.image("im0").shape == (48, 64, 3)
    assert dataset.image_labels("im1") == {2, 20}
    assert dataset.classes == VOC
    assert set(np.unique(dataset.mask("im2"))) == {0, 3, 20, 255}


def test_processes_do_not_matter(tmp_path: Path) -> None:
    layouts = write_layouts(tmp_path / "layouts", count=33)  # enough for two processes
    for name, workers in (("one", 1), ("two", 2)):
        render_layouts(layouts, tmp_path / name, short_side=32, workers=workers, splits=("train", "val"))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_picture_depends_on_its_id_and_the_seed_alone(tmp_path: Path) -> None:
    layouts = write_layouts(tmp_path / "layouts")
    render_layouts(layouts, tmp_path / "all", short_side=48)
    render_layouts(layouts, tmp_path / "val", short_side=48, splits=("val",))
    render_layouts(layouts, tmp_path / "other", short_side=48, seed=1)
    everything, val = tree(tmp_path / "all"), tree(tmp_path / "val")
    assert val["JPEGImages/im2.jpg"] == everything["JPEGImages/im2.jpg"]
    assert tree(tmp_path / "other")["JPEGImages/im2.jpg"] != everything["JPEGImages/im2.jpg"]
    assert len(val) == 6


def test_edges_of_the_layout_show() -> None:
    y, x = np.mgrid[:96, :96]
    mask = ((x - 48) ** 2 + (y - 48) ** 2 < 30**2).astype(np.uint8) * 7
    inside, across = [], []
    for seed in range(12):
        image = render(mask, VOC, np.random.default_rng(seed)).astype(int)
        step = np.abs(np.diff(image, axis=1)).sum(2)
        edge = mask[:, 1:] != mask[:, :-1]
        across.append(step[edge].mean())
        inside.append(step[~edge].mean())
    assert np.mean(across) > 1.5 * np.mean(inside)


def test_an_empty_layout_is_background_only() -> None:
    image = render(np.zeros((64, 64), np.uint8), VOC, np.random.default_rng(0))
    assert image.shape == (64, 64, 3)
    assert image.std() > 0
    all_void = render(np.full((64, 64), 255, np.uint8), VOC, np.random.default_rng(0))
    np.testing.assert_array_equal(image, all_void)


def test_pieces_by_hand() -> None:
    """Two large regions are two objects, a crumb goes with the larger; void next to an object is painted with it."""
    mask = np.zeros((40, 60), np.uint8)
    mask[5:25, 5:25] = 1
    mask[5:20, 35:50] = 1
    mask[35:37, 50:52] = 1
    mask[25, 5:25] = 255
    pieces = list(_pieces(mask, VOC))
    assert [piece.category for piece in pieces] == [1, 1]
    counts = sorted(int((piece.solid > 0).sum()) for piece in pieces)
    assert counts == [15 * 15, 20 * 20 + 20 + 4]


def test_shrinking_by_hand() -> None:
    """Four columns onto two: the pixel centres fall on columns 1 and 3."""
    mask = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8)
    np.testing.assert_array_equal(_shrunk(mask, 1), [[6, 8]])
    np.testing.assert_array_equal(_shrunk(mask, 2), mask)
    assert _shrunk(np.zeros((375, 500), np.uint8), 160).shape == (160, 213)


def test_every_voc_category_has_a_look_of_its_own() -> None:
    looks = {(look_of(c).texture.__name__, frozenset(look_of(c).tones)) for c in VOC.objects}
    assert len(looks) == 20


def test_source_and_target_share_nothing() -> None:
    assert not set(SOURCE.shapes) & set(EMBEDDED.shapes)
    assert not set(SOURCE.materials) & set(EMBEDDED.materials)
    assert not set(SOURCE.pairs) & {*EMBEDDED.pairs, *VOC_NAMES}
    assert not {frozenset(t) for t in SOURCE.tones} & {frozenset(t) for t in EMBEDDED.tones}
    assert len({frozenset(t) for t in SOURCE.tones}) == len(SOURCE.tones)
    assert set(SOURCE.shapes) | set(SOURCE.materials) == {part for pair in SOURCE.pairs for part in pair.split("-")}
    assert {len(patterns.MORE_OUTLINES), len(patterns.MORE_TEXTURES)} == {6}
    assert len(appearance.OTHER_PAIRS) == 16


def test_source_set(tmp_path: Path) -> None:
    render_source(tmp_path / "set", train=5, val=2, short_side=48)
    report = check_dataset(tmp_path / "set")
    assert not others_than_rare(report)
    assert report.splits == {"train": 5, "val": 2}
    dataset = VocDataset.open(tmp_path / "set")
    assert dataset.classes == SOURCE.classes
    assert dataset.image("train_00000").shape == (48, 64, 3)


def test_missing_input_leaves_nothing(tmp_path: Path) -> None:
    layouts = write_layouts(tmp_path / "layouts")
    (layouts / "SegmentationClass/im1.png").unlink()
    with pytest.raises(DataError, match="no label map for 1 listed ids, the first is im1"):
        render_layouts(layouts, tmp_path / "set")
    with pytest.raises(DataError, match=r"test\.txt: no such list"):
        render_layouts(layouts, tmp_path / "set", splits=("test",))
    (layouts / "ImageSets/Segmentation/val.txt").write_text("")
    with pytest.raises(DataError, match="the list is empty"):
        render_layouts(layouts, tmp_path / "set", splits=("val",))
    with pytest.raises(DataError, match="no such folder"):
        render_layouts(tmp_path / "nowhere", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_foreign_class_id(tmp_path: Path) -> None:
    layouts = write_layouts(tmp_path / "layouts")
    write_mask(layouts / "SegmentationClass/im0.png", np.full((96, 128), 77, np.uint8))
    with pytest.raises(DataError, match="class id 77, but the set has ids 0 to 20"):
        render_layouts(layouts, tmp_path / "set")
    assert not list((tmp_path / "set").rglob("*.txt"))


def test_another_set_is_not_overwritten(tmp_path: Path) -> None:
    layouts = write_layouts(tmp_path / "layouts")
    render_layouts(layouts, tmp_path / "set", short_side=32)
    with pytest.raises(DataError, match="holds another set"):
        render_layouts(layouts, tmp_path / "set", short_side=48)


def test_official_layouts(shared_data: Path, tmp_path: Path) -> None:
    """The first pictures of the rendered benchmark, on the real label maps."""
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in ("train", "val"):
        ids = (shared_data / f"voc2012_lists/{split}.txt").read_text().splitlines()[:4]
        (lists / f"{split}.txt").write_text("\n".join(ids))
    render_layouts(shared_data / "voc2012_masks", tmp_path / "set", lists=lists)
    report = check_dataset(tmp_path / "set")
    assert not others_than_rare(report)
    assert report.images == 8
    dataset = VocDataset.open(tmp_path / "set")
    assert min(dataset.image(dataset.ids("train")[0]).shape[:2]) == 160
