"""Masks of strong categories -> L-Net: what is an object, whatever its category (Xiao et al., arXiv 1711.06828).

Our reading of the paper: masks lose their class, so the network fires on objects of categories it never saw. Ours: L-Net is the
objectness head of the edge networks, and colour channels change places at random, because an object is an object in any hue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.models import SegNet, network_input
from tsss_edge.scoring import Views, object_iou
from tsss_edge.train.loader import Augment, Batch, Samples
from tsss_edge.train.loop import Moment, Stage, train
from tsss_edge.train.losses import cell_shares, object_loss
from tsss_edge.train.start import (
    augmentation,
    fresh_net,
    load_encoder,
    require_background,
    require_unseen,
    start_from,
    training_split,
)

COLOR = 0.5  # jitter; stronger than in the other stages, which tell categories apart by colour too


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
            ArtifactError: unknown architecture, `out` is another run, or training would start from weights that have seen
            masks of weak categories.
    """
    dataset = VocDataset.open(data)
    require_background(dataset, "L-Net")
    supervision = Supervision(dataset, tuple(strong))
    require_unseen(config, dataset, strong)
    net = fresh_net(config, num_classes=0)
    load_encoder(net, config)
    start_from(net, config)
    stage = Stage(
        name="lnet",
        net=net,
        samples=_samples(config, dataset, supervision, source),
        step=LNetStep(net, config),
        validate=_validation(config, supervision),
        strong=tuple(strong),
        classes=dataset.classes,
    )
    return train(stage, config, out, resume=resume)


def _samples(config: TrainConfig, dataset: VocDataset, supervision: Supervision, source: Path | None) -> Samples:
    stronger = msgspec.structs.replace(config, color=max(COLOR, config.color))
    # With kept views those of the other stages.
    augment: Augment = augmentation(config) if config.views else AnyHue(augmentation(stronger))
    if source is not None:
        other = VocDataset.open(source)
        require_background(other, "L-Net")
        return Samples(
            other, training_split(other), other.mask, augment, batch=config.batch, seed=config.seed, views=config.views
        )
    ids = supervision.strong_ids("train")
    if len(ids) < 2:
        raise DataError(
            f"{dataset.root}: {len(ids)} training images hold strong categories only; "
            "name more strong categories, or give the masks of another set with --source"
        )
    return Samples(
        dataset, ids, supervision.pixel_mask, augment, batch=config.batch, seed=config.seed, views=config.views
    )


class AnyHue:
    """An augmentation, after which red, green and blue of the picture change places (six ways, equally likely)."""

    def __init__(self, augment: Augment) -> None:
        self._augment = augment

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        view, labels = self._augment(image, mask, rng)
        return np.ascontiguousarray(view[..., rng.permutation(3)]), labels


class LNetStep:
    """Objectness on the pixels that supervision allows."""

    def __init__(self, net: SegNet, config: TrainConfig) -> None:
        self._net, self._config = net, config

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        _, objectness = self._net(network_input(batch.images, self._config.preprocess.scale))
        binary = batch.masks.where((batch.masks == 0) | (batch.masks == 255), 1)
        return object_loss(objectness, cell_shares(binary, 2, self._config.loss_stride)), {}


def _validation(config: TrainConfig, supervision: Supervision) -> Callable[[nn.Module], dict[str, float]]:
    """Foreground IoU on strong and on weak validation images apart."""
    dataset = supervision.dataset
    weak = dataset.masked(supervision.weak_ids("val"))
    ids = {"object_iou_strong": supervision.strong_ids("val"), "object_iou_weak": weak}
    views = {name: Views(dataset, listed, config.preprocess) for name, listed in ids.items()}
    return lambda net: {name: object_iou(net, v) if v.ids else math.nan for name, v in views.items()}
