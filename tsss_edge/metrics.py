"""Label maps -> how well they agree: confusion counts, IoU, mIoU, accuracy, boundary bands, bootstrap intervals.

A label map is (H,W) uint8 class ids. Truth pixels of 255 are never counted; a prediction of 255 ("the network did not
see this pixel") is counted as wrong.
"""
# Letters: I images, K classes, B bootstrap samples.

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Struct

Counts = NDArray[np.int64]
DRAWN, DENSE = (
    1 << 22,
    1 << 12,
)  # numbers that a bootstrap holds at once: of drawn pictures, and pictures with all their counts


def confusion(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int) -> Counts:
    """Pixel counts by true class (row) and predicted class (column): (K,K+1) int64; column K is "no prediction" (255).

    Raises: ValueError: different shapes, not uint8, or an id that is neither below `num_classes` nor 255.
    """
    if prediction.shape != truth.shape or prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(
            f"prediction and truth must be uint8 of one shape, got {prediction.shape} {prediction.dtype} "
            f"and {truth.shape} {truth.dtype}"
        )
    # 256 rows of 256: an unknown id lands in a row or column of its own instead of in another class.
    pairs = truth.ravel().astype(np.uint16) << 8 | prediction.ravel()
    full = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    for name, histogram in (("prediction", full.sum(axis=0)), ("truth", full.sum(axis=1))):
        if (unknown := num_classes + np.flatnonzero(histogram[num_classes:IGNORE])).size:
            raise ValueError(f"{name} holds class id {unknown[0]}, expected 0-{num_classes - 1} or {IGNORE}")
    counts = np.empty((num_classes, num_classes + 1), np.int64)
    counts[:, :num_classes] = full[:num_classes, :num_classes]
    counts[:, num_classes] = full[:num_classes, IGNORE]
    return counts


def iou_of(counts: Counts) -> NDArray[np.float64]:
    """IoU of each class, 0-1: (...,K,K+1) counts -> (...,K); NaN where a class is in neither truth nor prediction.

    TP / (TP + FP + FN), PASCAL VOC's segmentation accuracy (VOC2012 devkit, section 5.2.2).
    """
    k = counts.shape[-2]
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)  # (...,K): the last column has no diagonal
    union = counts.sum(axis=-1) + counts[..., :k].sum(axis=-2) - hits
    result: NDArray[np.float64] = np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
    return result


def miou_of(counts: Counts) -> NDArray[np.float64]:
    """Mean IoU in percent over the classes present in truth or prediction: (...,K,K+1) -> (...); NaN where none is."""
    iou = iou_of(counts)
    present = ~np.isnan(iou)
    total, number = np.where(present, iou, 0.0).sum(axis=-1), present.sum(axis=-1)
    result: NDArray[np.float64] = np.divide(100.0 * total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return result


class ImageCounts:
    """Counts of single pictures, (I,K,K+1) int64 where it is indexed. Zeros take no memory: a picture shows few of the classes,
    and 100,000 pictures with all of VOC's would take 370 MB."""

    def __init__(self, num_classes: int) -> None:
        self._shape = (num_classes, num_classes + 1)
        self._cells, self._counts, self._ends = array("H"), array("i"), array("q", [0])  # K(K+1) < 2^16 for 255 classes

    def add(self, counts: Counts) -> None:
        """One picture more, (K,K+1); it has fewer than 2^31 pixels."""
        cells = np.flatnonzero(counts)
        self._cells.frombytes(cells.astype(np.uint16).tobytes())
        self._counts.frombytes(counts.ravel()[cells].astype(np.int32).tobytes())
        self._ends.append(len(self._cells))

    def extend(self, other: ImageCounts) -> None:
        """All pictures of `other` more."""
        self._ends.extend(end + len(self._cells) for end in other._ends[1:])
        self._cells.extend(other._cells)
        self._counts.extend(other._counts)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._shape)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, wanted: slice) -> Counts:
        start, stop, step = wanted.indices(len(self))
        dense = np.zeros((max(0, stop - start), self._shape[0] * self._shape[1]), np.int64)
        for row, image in enumerate(range(start, max(start, stop))):
            first, end = self._ends[image], self._ends[image + 1]
            dense[row, self._cells[first:end]] = self._counts[first:end]
        return dense.reshape(-1, *self._shape)[::step]

    def __iter__(self) -> Iterator[Counts]:
        return (self[image : image + 1][0] for image in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.int64)


class ConfusionMatrix:
    """Confusion counts of a data set, one picture at a time; the counts of each picture stay apart for `bootstrap_miou`."""

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"number of classes {num_classes}: expected 1 to {IGNORE}")
        self.num_classes = num_classes
        self.counts: Counts = np.zeros((num_classes, num_classes + 1), np.int64)  # row: truth, column K: no prediction
        self.per_image = ImageCounts(num_classes)  # in the order they came

    @classmethod
    def together(cls, parts: Sequence[ConfusionMatrix]) -> ConfusionMatrix:
        """The counts of several matrices, one after the other."""
        whole = cls(parts[0].num_classes)
        for part in parts:
            whole.counts += part.counts
            whole.per_image.extend(part.per_image)
        return whole

    def update(self, prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count one picture, (H,W) uint8 each. Raises: ValueError: as `confusion`."""
        counts = confusion(prediction, truth, self.num_classes)
        self.counts += counts
        self.per_image.add(counts)

    @property
    def images(self) -> int:
        """Number of pictures counted."""
        return len(self.per_image)

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU of each class, (K,) 0-1; NaN for a class in neither truth nor prediction."""
        return iou_of(self.counts)

    @property
    def miou(self) -> float:
        """Mean IoU in percent over the classes present in truth or prediction; NaN when no pixel was counted."""
        return float(miou_of(self.counts))

    @property
    def chance(self) -> float:
        """Mean IoU in percent of labels drawn by lot, over the classes in the truth; NaN when no pixel was counted.

        A class of share p is hit in p / K of all pixels; truth and lots together cover p + 1 / K - p / K of them.
        """
        rows = self.counts.sum(1)
        if not rows.sum():
            return float("nan")
        share, by_lot = rows / rows.sum(), 1 / self.num_classes
        iou = share * by_lot / (share + by_lot - share * by_lot)
        return float(100 * iou[rows > 0].mean())

    @property
    def constant(self) -> int | None:
        """The one class that every prediction is, though the truth has several; None where they vary."""
        found = np.flatnonzero(self.counts[:, : self.num_classes].sum(0))
        return int(found[0]) if len(found) == 1 and (self.counts.sum(1) > 0).sum() > 1 else None

    @property
    def pixel_accuracy(self) -> float:
        """Share of counted pixels with the right class, 0-1; NaN when no pixel was counted."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts)) / total if total else float("nan")


# ---------------------------------------------------------------------------------------------------------------------
# Agreement of two label maps of the same picture


def boundary_band(mask: NDArray[np.uint8], width: int = 3) -> NDArray[np.bool_]:
    """(H,W) labels -> pixels within `width` pixels (chessboard distance) of a place where the label changes.

    A change is between two neighbours left-right or up-down; both of them have distance 1. Changes from or to 255
    count: VOC draws its "void" along the object borders. Ours, in the spirit of the trimap evaluation of arXiv 1412.7062.
    """
    if width < 1:
        raise ValueError(f"band width {width} pixels: expected at least 1")
    edge = np.zeros(mask.shape, bool)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    square = np.ones((2 * width - 1, 2 * width - 1), np.uint8)
    return cv2.dilate(edge.view(np.uint8), square).view(bool)


def agreement_counts(
    a: NDArray[np.uint8], b: NDArray[np.uint8], where: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """(pixels with the same label, pixels looked at), over all pixels or those of `where`."""
    if a.shape != b.shape:
        raise ValueError(f"label maps of one picture must have one shape, got {a.shape} and {b.shape}")
    same = a == b
    if where is None:
        return int(np.count_nonzero(same)), same.size
    return int(np.count_nonzero(same & where)), int(np.count_nonzero(where))


# ---------------------------------------------------------------------------------------------------------------------
# Intervals over images


def bootstrap_miou(per_image: Counts | ImageCounts, *, samples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """mIoU (percent) of `samples` resampled data sets: (I,K,K+1) counts -> (B,)."""
    return miou_of(resampled(per_image, samples=samples, seed=seed))


def resampled(per_image: Counts | ImageCounts, *, samples: int = 1000, seed: int = 0) -> Counts:
    """Counts of `samples` data sets drawn from the pictures with replacement: (I,K,K+1) -> (B,K,K+1). One seed draws the same
    pictures for two networks, so that the difference of two results is a paired one. Memory does not grow with I."""
    images = len(per_image)
    if not images:
        raise ValueError("no pictures to draw from")
    generator, even = np.random.default_rng(seed), np.full(images, 1 / images)
    result = np.zeros((samples, *per_image.shape[1:]), np.int64)
    step = max(1, DRAWN // images)
    for first in range(0, samples, step):  # the generator draws one sample after the other, so blocks change nothing
        some = result[first : first + step]
        some += _counts_of(generator.multinomial(images, even, size=len(some)), per_image)
    return result


def _counts_of(drawn: NDArray[np.int64], per_image: Counts | ImageCounts) -> Counts:
    """How often each picture was drawn, (B,I), and its counts -> (B,K,K+1)."""
    total = np.zeros((len(drawn), *per_image.shape[1:]), np.int64)
    for start in range(0, len(per_image), DENSE):
        part = per_image[start : start + DENSE]
        # As float64 the product runs in BLAS; counts stay exact below 2^53 pixels.
        flat = drawn[:, start : start + DENSE].astype(np.float64) @ part.reshape(len(part), -1).astype(np.float64)
        total += flat.astype(np.int64).reshape(total.shape)
    return total


def interval(values: NDArray[np.float64], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval (Efron 1979) that holds `level` of `values`; NaN entries are left out."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def miou_drop_interval(
    reference: Counts | ImageCounts,
    engine: Counts | ImageCounts,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval over images of mIoU(reference) - mIoU(engine), percent points; both (I,K,K+1), the same pictures."""
    if reference.shape != engine.shape:
        raise ValueError(f"counts of the same pictures must have one shape, got {reference.shape} and {engine.shape}")
    drops = bootstrap_miou(reference, samples=samples, seed=seed) - bootstrap_miou(engine, samples=samples, seed=seed)
    return interval(drops, level=level)


def per_class(iou: NDArray[np.float64], names: Sequence[str]) -> dict[str, float | None]:
    """IoU 0-1 -> percent by class name; None for a class that is in neither truth nor prediction."""
    return {name: None if np.isnan(value) else 100.0 * float(value) for name, value in zip(names, iou, strict=True)}


class Percentiles(Struct, frozen=True):
    """Of single times, in milliseconds."""

    p50: float
    p95: float
    p99: float


def percentiles(times_ms: Sequence[float] | NDArray[np.floating]) -> Percentiles:
    """Linear interpolation between order statistics (NumPy's default)."""
    p50, p95, p99 = (float(v) for v in np.percentile(times_ms, [50, 95, 99]))
    return Percentiles(p50=p50, p95=p95, p99=p99)
