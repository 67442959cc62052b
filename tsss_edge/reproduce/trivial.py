"""What costs no method: numbers that every row of a benchmark must be read beside.

"Everything is object", a logistic regression on low-level features that learns from the same masks as L-Net, and L-Net's
foreground filled with one category.
"""
# Letters: H, W picture, F features.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tsss_edge.artifacts import IGNORE, Struct
from tsss_edge.data.supervision import MaskOf
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.scoring import Mask, Views, object_truth

SIDE = 112  # pixels of the longer side on which features are made
SAMPLES = 200  # pixels of a training picture
FEATURES = 22
ITERATIONS = 100

Floats = NDArray[np.float32]


class LowLevel(Struct, frozen=True):
    """A logistic regression on `low_level_features`, after they were brought to mean 0 and deviation 1."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def foreground(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H,W,3) uint8 RGB -> (H,W) uint8, 1 where it calls a pixel object."""
        features = (low_level_features(picture) - np.array(self.mean)) / np.array(self.deviation)
        logit = features @ np.array(self.weights) + self.bias
        wide = cv2.resize(logit.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        found: NDArray[np.uint8] = np.asarray(wide > 0, np.uint8)
        return found


def low_level_features(picture: NDArray[np.uint8]) -> Floats:
    """(H,W,3) uint8 RGB -> (h,w,F): colour, blurred colour, contrast, edge energy, local variance, position."""
    ratio = SIDE / max(picture.shape[:2])
    size = (max(8, round(picture.shape[1] * ratio)), max(8, round(picture.shape[0] * ratio)))
    color = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    grey = color.mean(axis=2)
    blurs = [cv2.GaussianBlur(color, (0, 0), sigma) for sigma in (2, 6, 18)]
    edges = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j].astype(np.float32)
    single = [
        *(np.linalg.norm(color - blur, axis=2) for blur in blurs),
        *(np.linalg.norm(blur - blurs[-1], axis=2) for blur in blurs[:-1]),
        *(cv2.GaussianBlur(edges, (0, 0), sigma) for sigma in (1, 3, 9)),
        *(cv2.GaussianBlur((grey - b.mean(axis=2)) ** 2, (0, 0), 3) for b in blurs[:2]),
        color.max(axis=2) - color.min(axis=2),
        *(x, y, x * x, y * y, np.hypot(x, y)),
    ]
    features: Floats = np.dstack([color, blurs[1], *single]).astype(np.float32)
    return features


def fit_low_level(dataset: VocDataset, ids: Sequence[str], mask_of: MaskOf, *, seed: int = 0) -> LowLevel:
    """Learn object against background from what `mask_of` shows of the pictures; both sides weigh the same."""
    if not ids:
        raise DataError(
            f"{dataset.root}: no picture with masks to learn objects from; give the fold strong categories, or a source set"
        )
    rng = np.random.default_rng(seed)
    rows, targets = zip(*(_sampled(dataset.image(i), mask_of(i), rng) for i in ids), strict=True)
    x, y = torch.from_numpy(np.concatenate(rows)).float(), torch.from_numpy(np.concatenate(targets)).float()
    mean, deviation = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, layer = (x - mean) / deviation, nn.Linear(x.shape[1], 1)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    weight = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(layer(x)[:, 0], y, weight)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights = tuple(layer.weight.detach()[0].tolist())
    return LowLevel(
        mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()), weights=weights, bias=float(layer.bias.detach())
    )


def _sampled(
    picture: NDArray[np.uint8], mask: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Floats, NDArray[np.uint8]]:
    features = low_level_features(picture)
    small = cv2.resize(object_truth(mask), features.shape[1::-1], interpolation=cv2.INTER_NEAREST).ravel()
    known = np.flatnonzero(small != IGNORE)
    chosen = rng.choice(known, min(SAMPLES, len(known)), replace=False)
    return features.reshape(-1, FEATURES)[chosen], small[chosen].astype(np.uint8)


def foreground_iou(views: Views, foreground: Callable[[Mask], Mask]) -> float:
    """Object IoU in percent of a function of the picture; NaN when there is no object."""
    matrix = ConfusionMatrix(2)
    for image_id in views.ids:
        matrix.update(foreground(views.dataset.image(image_id)), object_truth(views.mask(image_id)))
    return float(100 * matrix.iou[1])


def everything(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every pixel is object."""
    return np.ones(picture.shape[:2], np.uint8)


def most_frequent(dataset: VocDataset, labels_of: Callable[[str], frozenset[int]]) -> list[int]:
    """Object categories by how many training labels name them, most frequent first."""
    counts = {c: 0 for c in dataset.classes.objects}
    for image_id in dataset.ids("train"):
        for label in labels_of(image_id):
            counts[label] += 1
    return sorted(counts, key=lambda c: (-counts[c], c))


def filled(
    foregrounds: Iterator[tuple[str, Mask]],
    order: Sequence[int],
    named: Callable[[str], frozenset[int]] | None,
) -> Iterator[tuple[str, Mask]]:
    """(id, foreground 0/1) -> (id, labels): the foreground filled with the most frequent category or, where `named` tells a
    picture's categories, with the most frequent of these."""
    for image_id, mask in foregrounds:
        own = named(image_id) if named is not None else frozenset(order)
        category = next((c for c in order if c in own), 0)
        yield image_id, np.where(mask > 0, category, 0).astype(np.uint8)
