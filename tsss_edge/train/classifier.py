"""Image-level labels -> a multi-label classifier whose class maps say where each named category is.

The paper's: one class activation map for each category of the image-level label. Ours: the maps come from stride 8,
are pooled inside L-Net's foreground (models/classifier.py), and learn from the pixels of strong categories as well, so
that the classifier also knows what weak categories are told apart from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.augment import TrainAugment
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.models.classifier import Classifier
from tsss_edge.train.common import fresh_net, require_background, take_over, training_split
from tsss_edge.train.loader import Batch, Samples, network_input
from tsss_edge.train.loop import Moment, Stage, train
from tsss_edge.train.losses import cell_shares, class_loss
from tsss_edge.train.validate import Views

PIXEL_WEIGHT = 1.0  # of the strong pixels' loss beside the image-level loss (ours)


def train_classifier(
    config: TrainConfig, data: Path, out: Path, *, lnet: Path, strong: Sequence[str] | None = None, resume: bool = False
) -> Checkpoint:
    """Train the classifier on the image-level labels of all training images, starting from L-Net.

    Args:    strong: categories whose pixels may be used as well (default: those L-Net was trained with).
    Metrics: `label_accuracy`, 0-1, of (image, category) pairs on the validation split.
    Raises:  DataError: unusable data. ArtifactError: `lnet` is of another architecture, `out` is another run.
    """
    dataset = VocDataset.open(data)
    require_background(dataset, "the classifier")
    start = Checkpoint.load(lnet)
    supervision = Supervision(dataset, tuple(start.meta.strong if strong is None else strong))
    net = take_over(fresh_net(config, num_classes=len(dataset.classes)), start, config.arch)
    assert net.object_head is not None
    net.object_head.requires_grad_(False)
    classifier = Classifier(net)
    samples = Samples(
        dataset,
        training_split(dataset),
        supervision.pixel_mask,
        TrainAugment(config.size_hw, config.preprocess, config.scale_range),
        batch=config.batch,
        seed=config.seed + 1,  # other crops than L-Net saw
        labels_of=supervision.image_labels,
        weak=frozenset(supervision.weak_ids("train")),
    )
    stage = Stage(
        name="classifier",
        net=classifier,
        samples=samples,
        step=ClassifierStep(classifier, config),
        validate=_Validation(config, dataset, supervision),
        strong=tuple(supervision.strong),
    )
    return train(stage, config, out, resume=resume)


class ClassifierStep:
    """Image-level binary cross-entropy on every category, and cross-entropy on strong object pixels."""

    def __init__(self, classifier: Classifier, config: TrainConfig) -> None:
        self._classifier, self._config = classifier, config

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        maps, scores = self._classifier(network_input(batch.images, self._config.preprocess.scale))
        image_level = F.binary_cross_entropy_with_logits(scores[:, 1:], batch.labels[:, 1:])
        image_level = image_level * (scores.shape[1] - 1) ** 0.5  # a sum would drown the pixels, a mean the categories
        shares = cell_shares(batch.masks, maps.shape[1], stride=8)
        pixels = class_loss(maps[:, 1:], shares[:, 1:])
        return image_level + PIXEL_WEIGHT * pixels, {"image": image_level, "pixels": pixels}


class _Validation:
    def __init__(self, config: TrainConfig, dataset: VocDataset, supervision: Supervision) -> None:
        self._views = Views(dataset, dataset.ids("val"), config.preprocess)
        self._labels_of = supervision.image_labels

    @torch.inference_mode()
    def __call__(self, net: nn.Module) -> dict[str, float]:
        right = total = 0
        device = next(net.parameters()).device
        for image_id in self._views.ids:
            picture = torch.from_numpy(self._views.picture(image_id))[None].to(device)
            scores = net(network_input(picture, self._views.preprocess.scale)).scores[0, 1:]
            truth = torch.zeros_like(scores)
            truth[[i - 1 for i in self._labels_of(image_id)]] = 1
            right += int(((scores > 0) == (truth > 0)).sum())
            total += len(truth)
        return {"label_accuracy": right / total}
