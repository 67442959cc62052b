"""Metrics: hand-made answers, properties, and two other implementations that must agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tsss_edge import metrics
from tsss_edge.metrics import (
    ConfusionMatrix,
    agreement_counts,
    bootstrap_miou,
    boundary_band,
    interval,
    iou_of,
    miou_drop_interval,
    miou_of,
    per_class,
    resampled,
)

K = 5


def u8(*rows: list[int]) -> NDArray[np.uint8]:
    return np.array(rows, np.uint8)


def matrix_of(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], k: int = K) -> ConfusionMatrix:
    """Of one picture, or of a batch of them, (N,H,W)."""
    matrix = ConfusionMatrix(k)
    pairs = zip(prediction, truth, strict=True) if prediction.ndim == 3 else [(prediction, truth)]
    for one, its_truth in pairs:
        matrix.update(one, its_truth)
    return matrix


def random_pair(seed: int, shape: tuple[int, ...] = (9, 13), k: int = K) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Prediction and truth with some 255 in each."""
    rng = np.random.default_rng(seed)
    prediction, truth = rng.integers(0, k, (2, *shape), dtype=np.uint8)
    prediction[rng.random(shape) < 0.1] = 255
    truth[rng.random(shape) < 0.2] = 255
    return prediction, truth


def obvious_iou(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], k: int) -> list[float | None]:
    """IoU straight from its definition, by sets of pixels."""
    pixels = [(i, j) for i, j in np.ndindex(truth.shape) if truth[i, j] != 255]
    result: list[float | None] = []
    for c in range(k):
        predicted = {p for p in pixels if prediction[p] == c}
        true = {p for p in pixels if truth[p] == c}
        result.append(len(predicted & true) / len(predicted | true) if predicted | true else None)
    return result


def test_a_bootstrap_in_blocks_is_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = pictures(5, images=23)
    whole = resampled(matrix.per_image, samples=11, seed=2)
    drawn = np.random.default_rng(2).multinomial(23, np.full(23, 1 / 23), size=11)
    np.testing.assert_array_equal(whole, np.einsum("bi,ijk->bjk", drawn, matrix.per_image[:]))
    monkeypatch.setattr(metrics, "DRAWN", 50)
    monkeypatch.setattr(metrics, "DENSE", 4)
    np.testing.assert_array_equal(resampled(matrix.per_image, samples=11, seed=2), whole)


def test_matrices_add_up_picture_by_picture() -> None:
    parts = [pictures(seed, images=n) for seed, n in ((0, 3), (1, 0), (2, 4))]
    whole = ConfusionMatrix.together(parts)
    np.testing.assert_array_equal(whole.per_image, np.concatenate([part.per_image[:] for part in parts]))
    np.testing.assert_array_equal(whole.counts, whole.per_image[:].sum(0))
    assert whole.images == 7 and len(whole.per_image[2:5]) == 3 and len(whole.per_image[5:2]) == 0


def test_hand_made_two_by_two() -> None:
    # class 0: 1 right of {2 predicted} and {1 true} -> 1/2; class 1: 1 right, 1 predicted, 2 true -> 1/2; class 2: 1/1
    matrix = matrix_of(u8([0, 0], [1, 2]), u8([0, 1], [1, 2]), k=3)
    assert matrix.iou.tolist() == [0.5, 0.5, 1.0]
    assert matrix.miou == pytest.approx(100 * 2 / 3)
    assert matrix.pixel_accuracy == 0.75
    assert matrix.counts.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]


def test_ignored_truth_is_not_counted_but_missing_prediction_is_wrong() -> None:
    matrix = matrix_of(u8([0, 1], [1, 255]), u8([0, 255], [1, 1]), k=2)
    assert matrix.iou.tolist() == [1.0, 0.5]  # the pixel of 255 in the truth is gone, that in the prediction a miss
    assert matrix.pixel_accuracy == pytest.approx(2 / 3)


def test_class_in_neither_has_no_iou_and_class_only_predicted_has_zero() -> None:
    matrix = matrix_of(u8([0, 1]), u8([0, 0]), k=3)
    assert matrix.iou[:2].tolist() == [0.5, 0.0]
    assert np.isnan(matrix.iou[2])
    assert matrix.miou == 25.0
    assert per_class(matrix.iou, ("a", "b", "c")) == {"a": 50.0, "b": 0.0, "c": None}


def test_nothing_labelled_gives_nan_not_an_error() -> None:
    matrix = matrix_of(u8([0, 1]), u8([255, 255]))
    assert np.isnan(matrix.miou)
    assert np.isnan(matrix.pixel_accuracy)
    assert matrix.images == 1


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (u8([0, 1]), u8([0], [1]), "one shape"),
        (np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8), "uint8"),
        (u8([0, K]), u8([0, 0]), f"prediction holds class id {K}"),
        (u8([0, 0]), u8([0, 254]), "truth holds class id 254"),
    ],
)
def test_bad_input_is_refused(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], message: str) -> None:
    matrix = ConfusionMatrix(K)
    with pytest.raises(ValueError, match=message):
        matrix.update(prediction, truth)
    assert matrix.images == 0
    assert not matrix.counts.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_agrees_with_the_obvious_implementation(seed: int, k: int) -> None:
    prediction, truth = random_pair(seed, k=k)
    expected = obvious_iou(prediction, truth, k)
    got = matrix_of(prediction, truth, k).iou
    assert [None if np.isnan(v) else v for v in got] == expected  # the same integer ratios, so exactly equal


def test_agrees_with_torchmetrics() -> None:
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    prediction, truth = random_pair(7, (64, 96))
    prediction[prediction == 255] = 0  # torchmetrics knows no missing prediction
    theirs = MulticlassJaccardIndex(K, average=None, ignore_index=255)
    value = theirs(torch.from_numpy(prediction).long()[None], torch.from_numpy(truth).long()[None])
    np.testing.assert_allclose(matrix_of(prediction, truth).iou, value.numpy(), rtol=1e-6, atol=0)  # theirs is float32


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(K)))
def test_permuting_classes_permutes_ious(seed: int, order: list[int]) -> None:
    prediction, truth = random_pair(seed)
    table = np.full(256, 255, np.uint8)
    table[:K] = order
    straight, permuted = matrix_of(prediction, truth), matrix_of(table[prediction], table[truth])
    np.testing.assert_array_equal(permuted.iou[order], straight.iou)
    assert permuted.miou == pytest.approx(straight.miou, rel=1e-12)  # the sum runs in another order


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(6)))
def test_any_order_gives_the_same_counts(seed: int, order: list[int]) -> None:
    predictions, truths = random_pair(seed, (6, 7, 5))
    whole, mixed = matrix_of(predictions, truths), matrix_of(predictions[order], truths[order])
    np.testing.assert_array_equal(mixed.counts, whole.counts)
    np.testing.assert_array_equal(mixed.per_image, whole.per_image[:][order])
    assert mixed.images == whole.images == 6


# ---------------------------------------------------------------------------------------------------------------------
# Boundary band and agreement


def test_band_of_one_straight_border() -> None:
    mask = np.zeros((4, 10), np.uint8)
    mask[:, 5:] = 1  # the change is between columns 4 and 5
    for width, columns in ((1, {4, 5}), (3, {2, 3, 4, 5, 6, 7})):
        band = boundary_band(mask, width)
        assert set(np.flatnonzero(band.all(axis=0))) == columns
        assert set(np.flatnonzero(band.any(axis=0))) == columns


def test_band_is_the_brute_force_distance() -> None:
    mask = random_pair(3, (11, 14), k=2)[1] // 200  # two labels, single pixels
    mask[:, :6] = 0
    height, width = mask.shape
    edges = [
        (i, j)
        for i, j in np.ndindex(mask.shape)
        for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1))
        if 0 <= a < height and 0 <= b < width and mask[a, b] != mask[i, j]
    ]
    expected = [[any(max(abs(i - a), abs(j - b)) < 3 for a, b in edges) for j in range(width)] for i in range(height)]
    np.testing.assert_array_equal(boundary_band(mask, 3), expected)


def test_flat_picture_has_no_band_and_a_wide_band_covers_all() -> None:
    assert not boundary_band(np.full((5, 5), 3, np.uint8)).any()
    assert boundary_band(u8([0, 1, 1, 1]), 50).all()
    with pytest.raises(ValueError, match="at least 1"):
        boundary_band(np.zeros((5, 5), np.uint8), 0)


def test_agreement_counts() -> None:
    a, b = u8([0, 1, 2], [3, 255, 255]), u8([0, 1, 1], [3, 255, 0])
    assert agreement_counts(a, b) == (4, 6)
    assert agreement_counts(a, b, a != 255) == (3, 4)
    with pytest.raises(ValueError, match="one shape"):
        agreement_counts(a, a.T)


def test_half_a_band_shift_is_seen_in_the_band_only() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    same, total = agreement_counts(mask, np.roll(mask, 1, axis=1), boundary_band(mask, 3))
    assert (total - same) == 40  # one column in, one column out
    assert same / total < 0.95 < agreement_counts(mask, np.roll(mask, 1, axis=1))[0] / mask.size


# ---------------------------------------------------------------------------------------------------------------------
# Bootstrap


def pictures(seed: int, images: int = 30, noise: float = 0.3) -> ConfusionMatrix:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, (images, 8, 8), dtype=np.uint8)
    wrong = rng.random(truth.shape) < noise * rng.random((images, 1, 1))
    return matrix_of(np.where(wrong, (truth + 1) % K, truth).astype(np.uint8), truth)


def test_bootstrap_is_the_slow_loop() -> None:
    counts = pictures(0, images=9).per_image
    weights = np.random.default_rng(4).multinomial(9, np.full(9, 1 / 9), size=20)
    slow = [miou_of(sum(w * c for w, c in zip(row, counts, strict=True))) for row in weights]
    np.testing.assert_allclose(bootstrap_miou(counts, samples=20, seed=4), slow, rtol=1e-12)


def test_bootstrap_repeats_by_seed_and_covers_the_point() -> None:
    matrix = pictures(1)
    values = bootstrap_miou(matrix.per_image, seed=3)
    np.testing.assert_array_equal(values, bootstrap_miou(matrix.per_image, seed=3))
    assert not np.array_equal(values, bootstrap_miou(matrix.per_image, seed=5))
    low, high = interval(values)
    assert low < matrix.miou < high
    assert high - low > 0.5  # 30 small pictures say little


def test_drop_interval_is_paired() -> None:
    reference = pictures(2)
    assert miou_drop_interval(reference.per_image, reference.per_image) == (0.0, 0.0)
    worse = pictures(2, noise=0.5)
    low, high = miou_drop_interval(reference.per_image, worse.per_image)
    assert 0 < low < reference.miou - worse.miou < high
    with pytest.raises(ValueError, match="one shape"):
        miou_drop_interval(reference.per_image, worse.per_image[:5])


def test_more_pictures_narrow_the_interval() -> None:
    few, many = (np.ptp(interval(bootstrap_miou(pictures(6, images=n).per_image))) for n in (10, 160))
    assert many < few / 2  # about 1/sqrt(16) expected


def test_interval_of_known_values() -> None:
    low, high = interval(np.append(np.arange(101.0), np.nan), level=0.9)
    assert (low, high) == pytest.approx((5.0, 95.0), rel=1e-12)  # 0.05 is not a binary fraction
    with pytest.raises(ValueError, match="no pictures"):
        bootstrap_miou(np.zeros((0, 2, 3), np.int64))


def test_iou_of_works_on_stacks() -> None:
    counts = pictures(3, images=4).per_image[:]
    np.testing.assert_array_equal(iou_of(counts)[2], iou_of(counts[2]))
