"""Figures worked out by hand, and the profile that a record keeps."""

from __future__ import annotations

import numpy as np
import pytest
from fieldkit import CLASSES

from tsss_edge.artifacts import Preprocess
from tsss_edge.field.figures import Meter, profile_of, sureness

FULL = Preprocess(size_hw=(32, 32)).place((64, 64))
LABELS = np.zeros((64, 64), np.uint8)


def logits(*ids: int) -> np.ndarray:
    """(3,4,4): each column of one class, 8 against 0."""
    columns = np.array(ids)
    return ((np.arange(3)[:, None, None] == columns[None, None, :]) * 8.0).repeat(4, axis=1).astype(np.float32)


def test_areas_confidence_and_entropy() -> None:
    values = dict(
        zip((meter := Meter(CLASSES)).names, meter.measure(logits(0, 0, 1, 2), None, LABELS, FULL), strict=True)
    )
    assert (values["area of background"], values["area of cat"], values["area of dog"]) == (0.5, 0.25, 0.25)
    p = np.exp(8) / (np.exp(8) + 2)
    assert values["confidence"] == pytest.approx(p, rel=1e-5)
    q = (1 - p) / 2
    assert values["entropy"] == pytest.approx(-(p * np.log(p) + 2 * q * np.log(q)) / np.log(3), rel=1e-3)
    assert np.isnan(values["unknown"]) and np.isnan(values["neighbours"])


def test_all_classes_alike_is_no_confidence_and_full_entropy() -> None:
    confidence, entropy = sureness(np.zeros((2, 4, 9)))
    assert confidence == pytest.approx([0.25, 0.25]) and entropy == pytest.approx([1.0, 1.0])


def test_several_frames_together_have_the_figures_of_each_alone() -> None:
    rng = np.random.default_rng(0)
    wide = Preprocess(size_hw=(32, 32), fit="letterbox").place((32, 64))  # fewer cells
    frames = [
        (rng.normal(size=(3, 4, 4)).astype(np.float32), rng.normal(size=(4, 4)), LABELS, at)
        for at in (FULL, FULL, wide, FULL)
    ]
    alone, together = Meter(CLASSES), Meter(CLASSES)
    found = together.values([together.look(*frame) for frame in frames])
    np.testing.assert_allclose(found, [alone.measure(*frame) for frame in frames], rtol=1e-6)


def test_unknown_is_an_object_that_the_classes_call_background() -> None:
    objectness = np.full((4, 4), -1.0, np.float32)
    objectness[:, 1:3] = 1.0  # a column of background, and one of cat
    values = Meter(CLASSES).measure(logits(0, 0, 1, 2), objectness, LABELS, FULL)
    assert values[2] == 0.25


def test_neighbours_is_the_share_of_equal_cells() -> None:
    meter = Meter(CLASSES)
    meter.measure(logits(0, 0, 1, 2), None, LABELS, FULL)
    assert meter.measure(logits(0, 0, 1, 1), None, LABELS, FULL)[3] == 0.75


def test_without_logits_the_labels_speak() -> None:
    labels = LABELS.copy()
    labels[:, 32:] = 2
    values = Meter(CLASSES).measure(None, None, labels, FULL)
    assert np.isnan(values[:2]).all() and values[4:].tolist() == [0.5, 0.0, 0.5]


def test_the_black_bars_of_a_letterbox_are_left_out() -> None:
    place = Preprocess(size_hw=(32, 32), fit="letterbox").place((32, 64))  # rows 8 to 24
    grid = logits(1, 1, 1, 1)
    grid[:, [0, 3]] = logits(0, 0, 0, 0)[:, [0, 3]]
    assert Meter(CLASSES).measure(grid, None, LABELS, place)[4:].tolist() == [0.0, 1.0, 0.0]


def test_a_profile_keeps_quantiles_of_known_figures_only() -> None:
    seen = [np.array([n / 100, np.nan], np.float32) for n in range(101)]
    made = profile_of(("a", "b"), seen)
    assert made is not None and set(made.quantiles) == {"a"}
    assert made.pictures == 101
    assert (made.quantiles["a"][0], made.quantiles["a"][32], made.quantiles["a"][-1]) == (0.0, 0.5, 1.0)
    assert profile_of(("a",), seen[:1]) is None
