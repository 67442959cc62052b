"""A part of the training split that never calibrates + a graph -> what the graph is worth beside its float original."""
# Letters: H height, W width.

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Placement, Preprocess, Struct
from tsss_edge.calib.sets import balanced
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.metrics import ConfusionMatrix, miou_drop_interval
from tsss_edge.onnxgraph.sessions import Compiler, Network
from tsss_edge.segment import labels_at

HELD_BACK = 128  # pictures; a network labels them in a second or two
MOST_SHARE = 5  # at most one in five pictures of the split is held back, so that enough are left to calibrate on
LEVEL = 0.68  # of the interval whose upper end is `drop_high`: one standard error for a normal distribution


class Score(Struct, frozen=True):
    """A graph on the held-back pictures.

    miou: against the masks, percent. drop: mIoU of the float graph - `miou`, points; drop_high: upper end of its 68%
    bootstrap interval over pictures.
    change: 100 - mIoU against the float graph's own labels, points. It counts every pixel that flips, for better or
    worse, and so ranks errors that are too small for `drop`, in which flips cancel: measured on edge-s, the order of
    layers by `change` on training pictures is that on validation pictures, the order by `drop` is chance.
    """

    miou: float
    drop: float
    drop_high: float
    change: float


@dataclass(frozen=True)
class Sample:
    """A held-back picture as the network gets it, (1,H,W,3) RGB; its mask, (H,W) at its own size; their relation."""

    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    placement: Placement

    def labels(self, network: Network) -> NDArray[np.uint8]:
        """What a network says, at the mask's size."""
        return labels_at(network(self.picture), (self.mask.shape[0], self.mask.shape[1]), self.placement)


def held_back_ids(dataset: VocDataset, split: str, *, seed: int, without: Collection[str] = ()) -> tuple[str, ...]:
    """Pictures with masks to choose by: class-balanced, one in five of `split` at most, none of `without`.

    Raises: DataError: no such picture.
    """
    ids = dataset.ids(split)
    free = [i for i in ids if i not in without and dataset.mask_path(i).is_file()]
    size = min(HELD_BACK, max(1, len(ids) // MOST_SHARE), len(free))
    if not size:
        raise DataError(
            f"{dataset.root}: no picture with a mask is left in split {split!r} to choose methods and layers by; "
            "name one --method and leave --search out, or calibrate on fewer pictures"
        )
    return balanced(dataset, free, size, seed)


def load_samples(dataset: VocDataset, ids: Sequence[str], spec: Preprocess) -> list[Sample]:
    """Decode and preprocess. Raises: DataError: a picture or mask is damaged."""
    from tsss_edge.kernels.preprocess import preprocess

    samples = []
    for image_id in ids:
        mask = dataset.mask(image_id)
        picture = preprocess(dataset.image(image_id), spec, bgr=False)[None]
        samples.append(Sample(picture, mask, spec.place((mask.shape[0], mask.shape[1]))))
    return samples


class Judge:
    """Scores INT8 graphs of one float graph on the same pictures."""

    def __init__(self, floating: Any, samples: Sequence[Sample], num_classes: int, compiler: Compiler) -> None:
        """Args:   floating: onnx.ModelProto, FP32.
        Raises: DataError: no pixel of the samples is labelled.
        """
        self.samples, self.compiler = tuple(samples), compiler
        network = compiler(floating, "fp32")
        self._float_labels = [sample.labels(network) for sample in self.samples]
        self._num_classes = num_classes
        self._float = self._matrix(self._float_labels, [s.mask for s in self.samples])
        self.miou = self._float.miou
        if not np.isfinite(self.miou):
            raise DataError("the held-back pictures have no labelled pixel (every mask is 255); nothing to choose by")

    def score(self, network: Network) -> Score:
        """Run a network on all pictures."""
        labels = [sample.labels(network) for sample in self.samples]
        mine = self._matrix(labels, [s.mask for s in self.samples])
        alike = self._matrix(labels, self._float_labels).miou
        _, high = miou_drop_interval(self._float.per_image, mine.per_image, level=LEVEL)
        return Score(miou=mine.miou, drop=self.miou - mine.miou, drop_high=high, change=100.0 - alike)

    def _matrix(self, labels: Sequence[NDArray[np.uint8]], truth: Sequence[NDArray[np.uint8]]) -> ConfusionMatrix:
        matrix = ConfusionMatrix(self._num_classes)
        for one, its_truth in zip(labels, truth, strict=True):
            matrix.update(one, its_truth)
        return matrix
