"""All masks -> a network with class head and objectness head: the baseline of the method, and the way for full labels."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.augment import TrainAugment
from tsss_edge.data.voc import VocDataset
from tsss_edge.train.common import class_weights, fresh_net, load_encoder, start_from, training_split
from tsss_edge.train.cutmix import cut_and_mix
from tsss_edge.train.loader import Batch, Samples, network_input
from tsss_edge.train.loop import Moment, Stage, train
from tsss_edge.train.losses import category_losses, cell_shares, object_loss
from tsss_edge.train.validate import Views, class_scores

OBJECT_WEIGHT = 0.5  # of the objectness loss beside the class loss (ours)


def train_supervised(
    config: TrainConfig, data: Path, out: Path, *, cutmix: bool = False, resume: bool = False
) -> Checkpoint:
    """Train on the masks of all categories of `data`'s split "train"; "val" chooses best.pt by mIoU.

    `cutmix` pastes rectangles of other pictures in (train/cutmix.py).
    A set without a background has no "object or not": its objectness head stays untrained and is no part of the loss.
    Raises: DataError: unusable data set, picture or mask. ArtifactError: unknown architecture, `out` is another run.
    """
    dataset = VocDataset.open(data)
    net = fresh_net(config, num_classes=len(dataset.classes))
    load_encoder(net, config)
    start_from(net, config)
    return train(supervised_stage(config, dataset, net, cutmix=cutmix), config, out, resume=resume)


def supervised_stage(config: TrainConfig, dataset: VocDataset, net: nn.Module, *, cutmix: bool = False) -> Stage:
    """The stage that trains `net`, which gives `Heads`, on the masks of all categories."""
    augment = TrainAugment(config.view_hw, config.preprocess, config.scale_range)
    ids = training_split(dataset)
    samples = Samples(dataset, ids, dataset.mask, augment, batch=config.batch, seed=config.seed, views=config.views)
    weights = class_weights(dataset, ids, dataset.mask, config.balance)
    views = Views(dataset, dataset.ids("val"), config.preprocess)
    return Stage(
        name="supervised",
        net=net,
        samples=samples,
        step=SupervisedStep(net, config, weights, objectness=dataset.classes.background, cutmix=cutmix),
        validate=lambda averaged: class_scores(averaged, views),
        key="miou",
        strong=tuple(dataset.classes.names[i] for i in dataset.classes.objects),
        options={"cutmix": True} if cutmix else {},
    )


class SupervisedStep:
    """Cross-entropy on every labelled pixel and, where there is a background, objectness beside it."""

    def __init__(
        self, net: nn.Module, config: TrainConfig, weights: Tensor | None, *, objectness: bool, cutmix: bool = False
    ) -> None:
        self._net, self._config, self._weights = net, config, weights
        self._objectness, self._cutmix = objectness, cutmix

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        x = network_input(batch.images, self._config.preprocess.scale)
        shares = cell_shares(batch.masks, batch.labels.shape[1], self._config.loss_stride)
        if self._cutmix:
            x, shares = cut_and_mix(self._config.seed, moment.step, x, shares)
        logits, objectness = self._net(x)
        weights = self._weights.to(shares.device) if self._weights is not None else None
        loss, parts = category_losses(logits, shares, weights, self._config.jaccard)
        if self._objectness:
            parts["object"] = object_loss(objectness, shares)
            loss = loss + OBJECT_WEIGHT * parts["object"]
        return loss, parts
