"""What a loss may see: the rule by hand on five images, and the poison test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datakit import NAMES, STRONG, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from tsss_edge.artifacts import Classes
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.supervision import Supervision, strong_from_fraction
from tsss_edge.data.voc import VocDataset, write_mask

SEEN = {  # of the five images of datakit.py
    "a": [0, 1, 1, 2],
    "b": [255, 255, 255, 255],
    "c": [255, 1, 255, 255],
    "d": [0, 0, 0, 0],
    "e": [255, 2, 255, 255],
}


def opened(root: Path, strong: tuple[str, ...] = STRONG) -> Supervision:
    return Supervision(VocDataset.open(root), strong)


def test_what_may_be_seen(tiny: Path) -> None:
    supervision = opened(tiny)
    for image_id, row in SEEN.items():
        seen = supervision.pixel_mask(image_id)
        assert seen.dtype == np.uint8
        np.testing.assert_array_equal(seen, np.array(row, np.uint8).repeat(4)[None].repeat(8, 0), err_msg=image_id)


def test_weak_and_strong(tiny: Path) -> None:
    supervision = opened(tiny)
    assert supervision.strong_ids("train") == ("a", "d")
    assert supervision.weak_ids("train") == ("b", "c", "e")
    assert supervision.image_labels("e") == {2, 3, 4}
    assert [supervision.is_weak(i) for i in "abcde"] == [False, True, True, False, True]


def test_a_weak_category_that_the_label_left_out_is_not_seen_either(tiny: Path) -> None:
    """Masks and labels may come of two hands (SBD's masks, VOC's annotations): the mask must not tell what the label hid."""
    csv = tiny / "image_labels.csv"
    csv.write_text(csv.read_text().replace("e,2 3 4", "e,2"))
    supervision = opened(tiny)
    assert not supervision.is_weak("e")
    seen = supervision.pixel_mask("e")[0, ::4].tolist()
    assert seen == [255, 2, 255, 255]


@pytest.mark.parametrize("strong", [(), NAMES[1:]])
def test_the_ends_of_the_range(tiny: Path, strong: tuple[str, ...]) -> None:
    """With no strong category only the empty image shows anything; with all, everything."""
    supervision = opened(tiny, strong)
    for image_id in "abcde":
        truth = read_mask(tiny / f"SegmentationClass/{image_id}.png")
        expected = truth if strong or image_id == "d" else np.full_like(truth, 255)
        np.testing.assert_array_equal(supervision.pixel_mask(image_id), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strong=st.sets(st.sampled_from(NAMES[1:])))
def test_poison(tmp_path_factory: pytest.TempPathFactory, seed: int, strong: set[str]) -> None:
    """Noise on every pixel of weak images that is not strong: bit-identical, whatever the split into strong and weak."""
    clean = write_set(tmp_path_factory.mktemp("clean") / "set")
    dirty = write_set(tmp_path_factory.mktemp("dirty") / "set")
    names = tuple(sorted(strong))
    before, after = opened(clean, names), opened(dirty, names)
    kept = before.dataset.classes.ids(names)
    noise = np.array(sorted({0, 1, 2, 3, 4, 255} - set(kept)), np.uint8)
    rng = np.random.default_rng(seed)
    for image_id in before.weak_ids("train"):
        mask = read_mask(clean / f"SegmentationClass/{image_id}.png").copy()
        hidden = ~np.isin(mask, kept)
        mask[hidden] = rng.choice(noise, int(hidden.sum()))
        write_mask(dirty / f"SegmentationClass/{image_id}.png", mask)
    for image_id in before.dataset.ids("train"):
        assert before.is_weak(image_id) == after.is_weak(image_id)
        assert before.image_labels(image_id) == after.image_labels(image_id)
        assert before.pixel_mask(image_id).tobytes() == after.pixel_mask(image_id).tobytes()


def test_a_strong_pixel_that_the_label_does_not_name_is_hidden(tiny: Path) -> None:
    csv = tiny / "image_labels.csv"
    csv.write_text(csv.read_text().replace("e,2 3 4", "e,3 4"))
    assert (opened(tiny).pixel_mask("e") == 255).all()


def test_masks_of_weak_images_need_not_exist(tiny: Path) -> None:
    for image_id in "bc":
        (tiny / f"SegmentationClass/{image_id}.png").unlink()
        assert (opened(tiny).pixel_mask(image_id) == np.full((8, 16), 255)).all()


def test_a_picture_without_mask_is_weak_whatever_its_label_names(tiny: Path) -> None:
    """As a tagged photo that shows strong categories alone."""
    assert "a" in opened(tiny).strong_ids("train")
    (tiny / "SegmentationClass/a.png").unlink()
    without = opened(tiny)
    assert "a" in without.weak_ids("train") and "a" not in without.strong_ids("train")
    assert (without.pixel_mask("a") == 255).all() and not without.drawn("a")


def test_a_mask_with_weak_categories_only_is_not_even_opened(tiny: Path) -> None:
    (tiny / "SegmentationClass/b.png").write_bytes(b"not a mask")
    assert (opened(tiny).pixel_mask("b") == 255).all()


def test_labels_from_masks_where_there_is_nothing_else(tmp_path: Path) -> None:
    supervision = opened(write_set(tmp_path / "set", csv=False))
    assert supervision.image_labels("e") == {2, 3, 4}
    assert supervision.weak_ids("train") == ("b", "c", "e")


def test_labels_from_annotations_before_masks(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", csv=False)
    (root / "Annotations").mkdir()
    (root / "Annotations/a.xml").write_text(
        "<annotation><object><name>cow</name></object><object><name>cat</name></object></annotation>"
    )
    supervision = opened(root)
    assert supervision.image_labels("a") == {1, 3}
    assert supervision.pixel_mask("a")[0, ::4].tolist() == [255, 1, 1, 255]  # weak now; dog is not in the label


def test_what_it_gives_may_be_changed(tiny: Path) -> None:
    supervision = opened(tiny)
    supervision.pixel_mask("a")[:] = 9
    assert supervision.pixel_mask("a")[0, ::4].tolist() == SEEN["a"]


def test_unknown_category(tiny: Path) -> None:
    with pytest.raises(ValueError, match="unknown categories zebra; choose from cat, dog, cow, horse"):
        opened(tiny, ("zebra",))


def test_strong_from_fraction() -> None:
    classes = Classes(names=NAMES)
    assert strong_from_fraction(classes, 0.5) == ("cat", "dog")
    assert strong_from_fraction(classes, 0) == ()
    assert strong_from_fraction(classes, 1) == NAMES[1:]
    assert strong_from_fraction(classes, 0.6) == ("cat", "dog")
    assert strong_from_fraction(classes, 0.625) == ("cat", "dog", "cow")
    assert strong_from_fraction(Classes(names=NAMES[1:], background=False), 0.5) == ("cat", "dog")
    with pytest.raises(ValueError, match="expected 0 to 1"):
        strong_from_fraction(classes, 1.5)
