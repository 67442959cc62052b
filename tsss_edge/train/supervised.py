"""Masks of all categories -> a network: P-Net's training with nothing weak. The baseline of every ratio, and the way for fully
labelled sets; trained networks may teach beside the masks, and on pictures without (teachers.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.photographs import Photographs
from tsss_edge.data.supervision import MaskOf
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.scoring import Views
from tsss_edge.train.loop import Stage, train
from tsss_edge.train.pnet import Switches, class_stage
from tsss_edge.train.start import fresh_net, load_encoder, masked_val, require_masks, start_from, training_split


def train_supervised(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    unlabelled: Sequence[Path] = (),
    cutmix: bool = False,
    resume: bool = False,
) -> Checkpoint:
    """Train on the masks of all categories of `data`'s split "train"; "val" chooses best.pt by mIoU.

    A set without a background has no "object or not": its objectness head stays untrained and is no part of the loss.
    Args:   unlabelled: sets whose pictures an epoch sees too, with the teachers' answers in place of masks; where they are more,
            those of `data` come several times an epoch, so that about half of what is seen has masks.
    Raises: DataError: unusable data set, picture or mask. ArtifactError: unknown architecture, `out` is another run, or pictures
            without labels and no teacher.
    """
    if unlabelled and not config.teachers:
        raise ArtifactError("pictures without labels have nothing to say without a teacher; give --teacher too")
    dataset = VocDataset.open(data)
    net = fresh_net(config, num_classes=len(dataset.classes))
    load_encoder(net, config)
    start_from(net, config)
    stage = supervised_stage(config, dataset, net, unlabelled=unlabelled, cutmix=cutmix)
    return train(stage, config, out, resume=resume)


def supervised_stage(
    config: TrainConfig, dataset: VocDataset, net: nn.Module, *, unlabelled: Sequence[Path] = (), cutmix: bool = False
) -> Stage:
    """P-Net's training of `net`, which gives `Heads`, with nothing weak."""
    names = tuple(dataset.classes.names[i] for i in dataset.classes.objects)
    switches = Switches(cutmix=cutmix)
    require_masks(dataset, training_split(dataset))
    seen, mask_of, ids = beside_photographs(dataset, unlabelled) if unlabelled else (dataset, dataset.mask, ())
    measured = Views(dataset, masked_val(dataset), config.preprocess)
    stage = class_stage(config, seen, net, strong=names, mask_of=mask_of, switches=switches, ids=ids, measured=measured)
    return replace(stage, name="supervised", key="miou")


def beside_photographs(dataset: VocDataset, unlabelled: Sequence[Path]) -> tuple[VocDataset, MaskOf, tuple[str, ...]]:
    """The training pictures of `dataset` and those of other sets as one set; what may be seen of a mask, and the ids of an epoch:
    every picture of the other sets, and beside them those with masks, over and over where they are fewer."""
    both = Photographs.of([dataset.root, *unlabelled])
    labelled = tuple(f"0/{image_id}" for image_id in training_split(dataset))
    others = tuple(image_id for image_id in both.ids("train") if not image_id.startswith("0/"))

    def mask_of(image_id: str) -> NDArray[np.uint8]:
        return both.mask(image_id) if image_id.startswith("0/") else both.nothing(image_id)

    rounds = max(1, round(len(others) / len(labelled)))
    return both, mask_of, (*labelled * rounds, *others)
