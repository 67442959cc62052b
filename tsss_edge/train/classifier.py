"""Image-level labels -> a multi-label classifier whose class maps say where each named category is.

Our reading of the paper: a class activation map for each category of the label. Ours: maps have stride 8, are pooled inside L-Net's
foreground (models/segnet.py), and learn from pixels of strong categories too. The objectness head goes on learning, from strong
pixels and elsewhere from a frozen L-Net, so that P-Net can start from the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.frozen import keep_features
from tsss_edge.models import load_model, network_input, pick_device
from tsss_edge.models.segnet import Classifier
from tsss_edge.ranks import gathered, this_process
from tsss_edge.scoring import Views
from tsss_edge.train.loader import Batch, LabelsOf, Samples
from tsss_edge.train.loop import Moment, Stage, train
from tsss_edge.train.losses import cell_shares, class_loss, object_loss
from tsss_edge.train.start import augmentation, fresh_net, require_background, take_over, training_split

IMAGE_WEIGHT, PIXEL_WEIGHT, PARTIAL_WEIGHT, FAIR_WEIGHT, OBJECT_WEIGHT = 0.3, 1.0, 1.0, 0.5, 0.5  # of the losses (ours)
SURELY_OBJECT = 0.5  # L-Net's probability from which a cell must show one of the picture's categories


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
    teacher = load_model(start).to(pick_device(config.device)).requires_grad_(False)
    keep_features(teacher, config)
    classifier = Classifier(net)
    views = Views(dataset, dataset.ids("val"), config.preprocess)
    samples = Samples(
        dataset,
        training_split(dataset),
        supervision.pixel_mask,
        augmentation(config),
        batch=config.batch,
        seed=config.seed + 1,  # other crops than L-Net saw
        labels_of=supervision.image_labels,
        weak=frozenset(supervision.weak_ids("train")),
        views=config.views,
    )
    stage = Stage(
        name="classifier",
        net=classifier,
        samples=samples,
        step=ClassifierStep(classifier, teacher, config),
        validate=lambda averaged: label_accuracy(averaged, views, supervision.image_labels),
        strong=tuple(supervision.strong),
    )
    return train(stage, config, out, resume=resume)


class ClassifierStep:
    """Image-level binary cross-entropy on every category, and on strong pixels cross-entropy; see the weights above."""

    def __init__(self, classifier: Classifier, lnet: nn.Module, config: TrainConfig) -> None:
        self._classifier, self._lnet, self._config = classifier, lnet, config

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        x = network_input(batch.images, self._config.preprocess.scale)
        maps, scores, objectness = self._classifier(x)
        maps = maps.float()
        shares = cell_shares(batch.masks, maps.shape[1], stride=8)
        foreground = self._foreground(x)
        unknown = (1 - shares.sum(dim=1, keepdim=True)) * (foreground > SURELY_OBJECT)
        hidden = hidden_categories(batch.labels, shares)
        image_level = F.binary_cross_entropy_with_logits(scores[:, 1:], batch.labels[:, 1:])
        parts = {
            "image": image_level * (scores.shape[1] - 1) ** 0.5,  # a sum drowns the pixels, a mean the categories
            "pixels": class_loss(maps[:, 1:], shares[:, 1:]),
            "partial": partial_label_loss(maps, unknown, hidden),
            "fair": fair_share_loss(maps, unknown, hidden),
            "object": object_loss(objectness, object_targets(shares, foreground)),
        }
        weights = (IMAGE_WEIGHT, PIXEL_WEIGHT, PARTIAL_WEIGHT, FAIR_WEIGHT, OBJECT_WEIGHT)
        return torch.stack([w * part for w, part in zip(weights, parts.values(), strict=True)]).sum(), parts

    @torch.no_grad()
    def _foreground(self, x: Tensor) -> Tensor:
        """M of L-Net: (N,1,h,w), 0-1."""
        logits: Tensor = self._lnet(x).objectness
        return logits.float().sigmoid()


def object_targets(shares: Tensor, foreground: Tensor) -> Tensor:
    """(N,2,h,w), background and object: known pixels as they are, unknown ones as L-Net sees them.

    Args: shares: (N,K,h,w). foreground: (N,1,h,w), 0-1.
    """
    background = shares[:, :1]
    thing = shares[:, 1:].sum(dim=1, keepdim=True)
    unknown = 1 - background - thing
    return torch.cat([background + unknown * (1 - foreground), thing + unknown * foreground], dim=1)


def hidden_categories(labels: Tensor, shares: Tensor) -> Tensor:
    """(N,K), 0 or 1: categories of the picture that unknown pixels may show.

    A category with known pixels in a picture is known everywhere in it, so what is unknown there is another one.
    """
    hidden = labels * (shares.amax(dim=(2, 3)) == 0)
    return torch.where(hidden.sum(dim=1, keepdim=True) > 0, hidden, labels)


def fair_share_loss(maps: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of equal shares against the shares that a picture's categories have of its foreground (ours).

    Without it, one category that swallows all others satisfies partial labels too. The loss is steep near share 0 and flat
    elsewhere: it says "every named category is somewhere", but hardly how large it is.
    """
    inside = labels[:, 1:].sum(dim=1)
    several = (inside > 1) & (weight.sum(dim=(1, 2, 3)) > 0)
    if not bool(several.any()):
        return maps.new_zeros(())
    absent = (labels[several, 1:] == 0)[:, :, None, None]
    p = maps[several, 1:].masked_fill(absent, -1e4).softmax(dim=1)
    w = weight[several]
    share = (p * w).sum(dim=(2, 3)) / w.sum(dim=(2, 3))
    target = labels[several, 1:] / inside[several, None]
    return -(target * share.clamp(min=1e-4).log()).sum(dim=1).mean()


def partial_label_loss(maps: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """-log of the probability that a cell shows *one of the picture's* categories, a mean over `weight` (ours).

    So a picture with one category is as good as a mask of its foreground. In a picture with several, what other pictures taught
    decides, as in learning from partial labels (Cour et al., JMLR 12, 2011).
    Args: maps: (N,K,h,w), column 0 unused. weight: (N,1,h,w), 0-1. labels: (N,K), 0 or 1.
    """
    log_p = F.log_softmax(maps[:, 1:], dim=1)
    absent = (labels[:, 1:] == 0)[:, :, None, None]
    inside = torch.logsumexp(log_p.masked_fill(absent, -1e4), dim=1, keepdim=True).clamp(min=-50.0)
    return -(weight * inside).sum() / weight.sum().clamp(min=1.0)


@torch.inference_mode()
def label_accuracy(net: nn.Module, views: Views, labels_of: LabelsOf) -> dict[str, float]:
    """Share of (image, category) pairs that a classifier tells right, 0-1; by all processes together."""
    right = total = 0
    for ids, x in views.batches(next(net.parameters()).device, this_process()):
        for image_id, scores in zip(ids, net(x).scores[:, 1:], strict=True):
            truth = torch.zeros_like(scores)
            truth[[i - 1 for i in labels_of(image_id)]] = 1
            right += int(((scores > 0) == (truth > 0)).sum())
            total += len(truth)
    right, total = (sum(counts) for counts in zip(*gathered((right, total)), strict=True))
    return {"label_accuracy": right / total}
