"""Evidence of a picture -> Lw: what counts as object where L-Net is unsure of a category that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datakit import STRONG, write_set

from tsss_edge.artifacts import IGNORE, Preprocess
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.annotate import Evidence, LabelConfig, annotate, transferred, with_known
from tsss_edge.label.named import lifted, lifted_shares, mean_peaks, overlooked
from tsss_edge.scoring import Views

CAT, PERSON = 1, 2


@pytest.fixture
def evidence() -> Evidence:
    """A cat that L-Net is sure of (left) and a person of whom it sees the face alone (right), on 8x16; nobody in the lower half."""
    objectness, maps = np.full((8, 16), 0.02, np.float32), np.full((3, 8, 16), -9.0, np.float32)
    objectness[:4, :6], objectness[:4, 10:] = 0.95, 0.4
    maps[CAT, :4, :6], maps[PERSON, :4, 10:] = 4.0, 4.0
    objectness[0, 12], maps[PERSON, 0, 12] = 0.65, 4.1
    return Evidence(
        objectness=objectness,
        maps=maps,
        features=np.ones((2, 8, 16), np.float32),
        colors=np.zeros((3, 8, 16), np.float32),
    )


def labelled(evidence: Evidence, floor: float | None) -> np.ndarray:
    config = LabelConfig(peak_floor=floor, diffusion=None)
    picture = np.zeros((8, 16, 3), np.uint8)
    return transferred(evidence, picture, Preprocess(size_hw=(8, 16)), frozenset({CAT, PERSON}), config)


def test_a_named_category_is_there_though_l_net_hardly_sees_it(evidence: Evidence) -> None:
    as_it_is, measured_by_its_peak = labelled(evidence, None), labelled(evidence, 0.3)
    assert ((as_it_is == CAT).sum(), (as_it_is == PERSON).sum()) == (24, 1)
    assert (measured_by_its_peak == PERSON).sum() == 24
    np.testing.assert_array_equal(measured_by_its_peak == CAT, as_it_is == CAT)
    assert (measured_by_its_peak[6:] == 0).all()  # where no category is, nothing appears


def test_a_peak_that_is_no_more_than_noise_stays_background(evidence: Evidence) -> None:
    evidence.objectness[:4, 10:] = 0.02  # pytest makes a new one for each test
    assert not (labelled(evidence, 0.3) == PERSON).any()


def test_peaks_are_means_of_m_where_a_map_is_highest(evidence: Evidence) -> None:
    found = mean_peaks(evidence.objectness, evidence.maps[[CAT, PERSON]])
    np.testing.assert_allclose(found, [0.95, (23 * 0.4 + 0.65) / 24], rtol=1e-5)


def test_m_is_a_share_of_its_category_s_peak_and_never_above_one() -> None:
    foreground = np.array([[0.2, 0.5, 0.2, 0.02]], np.float32)
    best = np.array([[0, 0, 1, 1]])
    found = lifted(foreground, best, np.array([0.4, 0.1], np.float32), 0.2)
    np.testing.assert_allclose(found, [[0.5, 1.0, 1.0, 0.1]], rtol=1e-6)  # the second peak counts as the floor


def test_shares_by_their_peaks_sum_to_one_and_take_from_the_background_alone() -> None:
    """Background, cat, person; the person's share is 0.4 at its best, so there it is as sure as can be."""
    shares = np.array([[[0.05, 0.6, 0.95]], [[0.95, 0.0, 0.03]], [[0.0, 0.4, 0.02]]], np.float32)
    found = lifted_shares(shares, np.array([0.9, 0.4], np.float32), 0.2)
    np.testing.assert_allclose(found[:, 0, 0], [0.0, 1.0, 0.0], atol=1e-6)  # a cat
    np.testing.assert_allclose(found[:, 0, 1], [0.0, 0.0, 1.0], atol=1e-6)  # the person's best pixel: was background
    before = np.array([0.95, 0.03 / 0.9, 0.05])
    np.testing.assert_allclose(found[:, 0, 2], before / before.sum(), rtol=1e-5)  # background stays


def test_no_pixel_beside_the_known_ones_is_of_a_category_that_is_all_known(tmp_path: Path) -> None:
    """A picture with a strong and a weak category: what Lw calls strong beside the seen mask is wrong, and 255."""
    write_set(tmp_path)
    supervision = Supervision(VocDataset.open(tmp_path), STRONG)
    image_id = "e"  # shows 2 (strong) and weak categories
    known = supervision.pixel_mask(image_id)
    lw = with_known(np.full(known.shape, 2, np.uint8), supervision, image_id)
    np.testing.assert_array_equal(lw, np.where(known == 2, 2, IGNORE))
    weak = with_known(np.full(known.shape, 3, np.uint8), supervision, image_id)
    np.testing.assert_array_equal(weak, np.where(known == 2, 2, 3))


def test_without_a_mask_any_pixel_may_be_strong(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "SegmentationClass/e.png").unlink()
    supervision = Supervision(VocDataset.open(tmp_path), STRONG)
    everywhere = np.full(supervision.dataset.image_hw("e"), 2, np.uint8)
    np.testing.assert_array_equal(with_known(everywhere, supervision, "e"), everywhere)


@pytest.fixture
def cow_and_horse() -> Evidence:
    """Surely objects, left (a cow) and right (a horse), of which the classifier is sure too; nothing between; 8x16."""
    objectness, maps = np.full((8, 16), 0.02, np.float32), np.full((5, 8, 16), -9.0, np.float32)
    objectness[:, :6] = objectness[:, 10:] = 0.95
    maps[3, :, :6] = maps[4, :, 10:] = 6.0
    features, colors = np.ones((2, 8, 16), np.float32), np.zeros((3, 8, 16), np.float32)
    return Evidence(objectness=objectness, maps=maps, features=features, colors=colors)


def test_the_classifier_names_what_no_label_does(cow_and_horse: Evidence) -> None:
    maps, objectness = cow_and_horse.maps, cow_and_horse.objectness
    assert overlooked(maps, objectness, 0.9) == {3, 4}
    assert overlooked(maps - 5, objectness, 0.9) == set()  # logits of 1: 0.73
    maps[0] = 9.0
    assert overlooked(maps, objectness, 0.9) == {3, 4}  # the background's map says nothing


def test_an_overlooked_category_is_labelled_where_it_shows(cow_and_horse: Evidence, tmp_path: Path) -> None:
    """The label names the cow alone: the horse is taken for one, or for itself."""
    write_set(tmp_path, {"a": [3, 0, 0, 4], "b": [3, 0, 0, 4]})
    (tmp_path / "image_labels.csv").write_text("id,classes\na,3\nb,3\n")
    supervision = Supervision(VocDataset.open(tmp_path), STRONG)
    views = Views(supervision.dataset, ("a",), Preprocess(size_hw=(64, 128)))

    def found(above: float | None) -> set[int]:
        config = LabelConfig(add_above=above, diffusion=None)
        return set(annotate(cow_and_horse, views, "a", supervision, config)[:, -2:].flatten().tolist())

    assert found(None) == {3} and found(0.9) == {4}
