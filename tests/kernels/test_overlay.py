"""The CPU twin of `overlay`: the formula by hand, what stays as it is, runs across words, wrong arrays."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsss_edge.artifacts import Classes, voc_color
from tsss_edge.kernels.overlay import OutlinePlan, OverlayPlan, overlay

PALETTE = tuple(voc_color(k) for k in range(5))


def formula(
    frame: np.ndarray, labels: np.ndarray, palette: tuple[tuple[int, int, int], ...], alpha: float, shown: set[int]
) -> np.ndarray:
    colours = np.zeros((256, 3), np.int64)
    colours[: len(palette)] = np.array(palette)[:, ::-1]
    a = round(alpha * 256)
    mixed = (frame.astype(np.int64) * (256 - a) + colours[labels] * a + 128) // 256
    return np.where(np.isin(labels, list(shown))[..., None], mixed, frame).astype(np.uint8)


def test_by_hand() -> None:
    """VOC's class 1 is RGB (128,0,0): red is the last byte of BGR. Half of 10 and of 128 is 69, half of 11 and 0 is 6."""
    frame = np.array([[[10, 11, 10], [1, 2, 3], [4, 5, 6]]], np.uint8)
    labels = np.array([[1, 0, 255]], np.uint8)
    blended = overlay(frame, labels, PALETTE)
    assert blended.tolist() == [[[5, 6, 69], [1, 2, 3], [4, 5, 6]]]
    assert frame[0, 0].tolist() == [10, 11, 10], "the frame is left alone unless it is `out`"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    height=st.integers(1, 9),
    width=st.integers(1, 70),
    run=st.integers(1, 40),
    alpha=st.floats(0, 1),
)
def test_matches_the_formula(seed: int, height: int, width: int, run: int, alpha: float) -> None:
    """Exactly: it is integer arithmetic. Runs of every length and start against the words of eight labels."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.repeat(rng.choice([0, 1, 2, 3, 4, 9, 255], height * width), run)[: height * width]
    labels = labels.reshape(height, width).astype(np.uint8)
    want = formula(frame, labels, PALETTE, alpha, {1, 2, 3, 4})
    np.testing.assert_array_equal(overlay(frame, labels, PALETTE, alpha), want)
    assert overlay(frame, labels, PALETTE, alpha, out=frame) is frame
    np.testing.assert_array_equal(frame, want)


def test_a_set_without_background_shows_class_0_where_asked() -> None:
    """Its colour is black in VOC's map, so by default it would look like a background."""
    colours = (voc_color(0), voc_color(1))
    street = Classes(names=("sky", "road"), background=False)
    frame, labels = np.full((1, 2, 3), 100, np.uint8), np.array([[0, 1]], np.uint8)
    assert overlay(frame, labels, colours)[0, 0].tolist() == [100, 100, 100]
    assert overlay(frame, labels, colours, shown=street.objects)[0, 0].tolist() == [50, 50, 50]
    assert overlay(frame, labels, colours, shown=())[0, 1].tolist() == [100, 100, 100]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    run=st.integers(1, 30),
    thickness=st.integers(1, 3),
)
def test_outlines_match_the_formula(seed: int, height: int, width: int, run: int, thickness: int) -> None:
    """A pixel is of a line where one of another label is near in its row or column; only shown classes have lines."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.choice([0, 1, 2, 255], height * width), run)[: height * width].astype(np.uint8)
    labels = labels.reshape(height, width)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    want = frame.copy()
    for y in range(height):
        for x in range(width):
            cross = [labels[y, max(0, x - thickness) : x + thickness + 1]]
            cross.append(labels[max(0, y - thickness) : y + thickness + 1, x])
            if labels[y, x] in (1, 2) and any((line != labels[y, x]).any() for line in cross):
                want[y, x] = PALETTE[labels[y, x]][::-1]
    np.testing.assert_array_equal(OutlinePlan((height, width), PALETTE, (1, 2), thickness)(frame, labels), want)


def test_labels_may_be_read_only() -> None:
    labels = np.ones((2, 9), np.uint8)
    labels.flags.writeable = False
    assert overlay(np.zeros((2, 9, 3), np.uint8), labels, PALETTE)[1, 8].tolist() == [0, 0, 64]


def test_calls_of_a_plan_allocate_nothing() -> None:
    plan = OverlayPlan((240, 320), PALETTE)
    frame, labels = np.zeros((240, 320, 3), np.uint8), np.ones((240, 320), np.uint8)
    plan(frame, labels)
    tracemalloc.start()
    try:
        for _ in range(5):
            plan(frame, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4096, "only Python's own call objects"


@pytest.mark.parametrize(
    ("frame", "labels", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), "frame is uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.int64), "labels is int64"),
        (np.zeros((4, 8, 3), np.uint8)[:, ::2], np.zeros((4, 4), np.uint8), "C-contiguous"),
    ],
)
def test_wrong_arrays(frame: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OverlayPlan((4, 4), PALETTE)(frame, labels)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"alpha": 1.1}, "expected 0 to 1"), ({"shown": [5]}, "the palette has 0 to 4"), ({"palette": ()}, "0 colours")],
)
def test_wrong_settings(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OverlayPlan((4, 4), **{"palette": PALETTE, **arguments})  # type: ignore[arg-type]
