"""Which reach of the guided filter is chosen, and by which masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tsss_edge.artifacts import Preprocess
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.edges import CAREFUL, RADII, choose_edges, forget_unseen
from tsss_edge.ranks import ALONE, World
from tsss_edge.scoring import Views

PREPROCESS = Preprocess(size_hw=(64, 64))


class Coarse:
    """Knows the truth, on the network's stride-8 grid."""

    def foreground(self, views: Views, world: World = ALONE) -> Iterator[tuple[str, np.ndarray]]:
        for image_id in views.ids:
            objects = (views.mask(image_id) > 0).astype(np.float32)
            yield image_id, cv2.resize(objects, (8, 8), interpolation=cv2.INTER_AREA)[None]


@pytest.fixture
def coarse(squares: Path) -> Views:
    dataset = VocDataset.open(squares)
    return Views(dataset, dataset.ids("train"), PREPROCESS)


def test_pictures_with_edges_want_a_filter(coarse: Views) -> None:
    assert choose_edges(Coarse(), coarse, coarse.mask).radius > 1 / 64


def test_pictures_whose_edges_are_others_want_hardly_any(coarse: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    monkeypatch.setattr(VocDataset, "image", lambda self, image_id: noise)
    assert choose_edges(Coarse(), coarse, coarse.mask).radius <= CAREFUL.radius


def test_what_may_not_be_seen_chooses_nothing(coarse: Views) -> None:
    """With every pixel hidden no radius is better than another: the first of them."""
    hidden = choose_edges(Coarse(), coarse, lambda image_id: np.full_like(coarse.mask(image_id), 255))
    assert hidden.radius == RADII[0]


def test_without_masks_the_filter_is_a_careful_one(squares: Path) -> None:
    nothing = Views(VocDataset.open(squares), (), PREPROCESS)
    assert choose_edges(Coarse(), nothing, nothing.mask) == CAREFUL
    assert CAREFUL.radius in RADII


def test_what_crop_cuts_away_gets_no_label() -> None:
    labels = np.ones((64, 128), np.uint8)
    forget_unseen(labels, Preprocess(size_hw=(64, 64), fit="crop"))
    assert (labels[:, 32:96] == 1).all() and (labels[:, :32] == 255).all() and (labels[:, 96:] == 255).all()
    for fit in ("stretch", "letterbox"):
        labels[...] = 1
        forget_unseen(labels, Preprocess(size_hw=(64, 64), fit=fit))
        assert (labels == 1).all()
