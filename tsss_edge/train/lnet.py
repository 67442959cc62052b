"""Masks of strong categories -> L-Net: what is an object, whatever its category (Xiao et al., arXiv 1711.06828).

The paper's: the class is removed from the masks of strong categories, so that the network fires on objects of
categories it never saw. Ours: it is the objectness head of the edge networks, trained with binary cross-entropy on
strong images, in which the colour channels change places at random, at times for each category by itself: what an
object is hangs neither on its hue nor on how its tones go with those around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tsss_edge.artifacts import IGNORE, Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.augment import TrainAugment
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.models import SegNet
from tsss_edge.train.common import fresh_net, load_encoder, require_background, training_split
from tsss_edge.train.loader import Augment, Batch, Samples, network_input
from tsss_edge.train.loop import Moment, Stage, train
from tsss_edge.train.losses import cell_shares, object_loss
from tsss_edge.train.validate import Views, object_iou

COLOR = 0.5  # jitter, stronger than where categories must be told apart by colour too
RECOLORED = 0.5  # probability that the objects of a view get colours of their own
CONTRAST, SHIFT = (
    0.4,
    40.0,
)  # of a recoloured category: largest change of log contrast; of each channel's mean, in 1/255


def train_lnet(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    strong: Sequence[str],
    source: Path | None = None,
    resume: bool = False,
) -> Checkpoint:
    """Train L-Net on the strong images of `data`, or on all masks of another set, `source` (the 0% protocol).

    Metrics: foreground IoU in percent on validation images of strong categories (`object_iou_strong`) and, for the
    report alone, on those of weak categories (`object_iou_weak`, where they have masks). The newest weights are kept.
    Raises: DataError: unusable data, no background, or no strong image to learn from.
            ArtifactError: unknown architecture, `out` is another run.
    """
    dataset = VocDataset.open(data)
    require_background(dataset, "L-Net")
    supervision = Supervision(dataset, tuple(strong))
    net = fresh_net(config, num_classes=0)
    load_encoder(net, config)
    stage = Stage(
        name="lnet",
        net=net,
        samples=_samples(config, dataset, supervision, source),
        step=LNetStep(net, config),
        validate=_Validation(config, dataset, supervision),
        strong=tuple(strong),
        classes=dataset.classes,
    )
    return train(stage, config, out, resume=resume)


def _samples(config: TrainConfig, dataset: VocDataset, supervision: Supervision, source: Path | None) -> Samples:
    augment = AnyHue(TrainAugment(config.size_hw, config.preprocess, config.scale_range, color=COLOR))
    if source is not None:
        other = VocDataset.open(source)
        require_background(other, "L-Net")
        return Samples(other, training_split(other), other.mask, augment, batch=config.batch, seed=config.seed)
    ids = supervision.strong_ids("train")
    if len(ids) < 2:
        raise DataError(
            f"{dataset.root}: {len(ids)} training images hold strong categories only; "
            "name more strong categories, or give the masks of another set with --source"
        )
    return Samples(dataset, ids, supervision.pixel_mask, augment, batch=config.batch, seed=config.seed)


class AnyHue:
    """An augmentation, after which red, green and blue of the picture change places (six ways, equally likely).

    In half of the views each category then gets an order of channels, a contrast and a tone of its own, so that no
    harmony of the strong categories with their surroundings tells an object.
    """

    def __init__(self, augment: Augment, *, recolored: float = RECOLORED) -> None:
        self._augment, self._recolored = augment, recolored

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        view, labels = self._augment(image, mask, rng)
        view = np.ascontiguousarray(view[..., rng.permutation(3)])
        if rng.random() < self._recolored:
            for category in np.unique(labels[(labels != 0) & (labels != IGNORE)]):
                where = labels == category
                view[where] = recolor(view[where], rng)
        return view, labels


def recolor(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(P,3) uint8 pixels of one category -> the same texture in other colours."""
    moved = pixels[:, rng.permutation(3)].astype(np.float32)
    mean = moved.mean(axis=0)
    gain, shift = np.exp(rng.uniform(-CONTRAST, CONTRAST)), rng.uniform(-SHIFT, SHIFT, 3)
    colored: NDArray[np.uint8] = np.clip((moved - mean) * gain + mean + shift, 0, 255).astype(np.uint8)
    return colored


class LNetStep:
    """Objectness on the pixels that supervision allows."""

    def __init__(self, net: SegNet, config: TrainConfig) -> None:
        self._net, self._config = net, config

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        _, objectness = self._net(network_input(batch.images, self._config.preprocess.scale))
        binary = batch.masks.where((batch.masks == 0) | (batch.masks == 255), 1)
        return object_loss(objectness, cell_shares(binary, 2, self._config.loss_stride)), {}


class _Validation:
    """Foreground IoU on strong and on weak validation images apart."""

    def __init__(self, config: TrainConfig, dataset: VocDataset, supervision: Supervision) -> None:
        weak = [i for i in supervision.weak_ids("val") if dataset.mask_path(i).is_file()]
        self._strong = Views(dataset, supervision.strong_ids("val"), config.preprocess)
        self._weak = Views(dataset, weak, config.preprocess)

    def __call__(self, net: nn.Module) -> dict[str, float]:
        views = {"object_iou_strong": self._strong, "object_iou_weak": self._weak}
        return {name: object_iou(net, v) if v.ids else math.nan for name, v in views.items()}
