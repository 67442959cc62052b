"""True masks of strong images + transferred labels of weak images -> P-Net: all categories, and objectness beside them.

With nothing weak this is the supervised baseline (supervised.py). Our reading of the paper (Xiao et al., arXiv 1711.06828): S,
started from L-Net, learns by cross-entropy from true masks and Lw. D tells predictions on strong images from those on weak ones,
and S learns to make the second look like the first. Ours: S starts from the classifier, or from the draft that labelled again. D
judges structure, not category (models/discriminator.py), cell by cell. D is off unless asked for; it works alone for the first
tenth of training and gains weight over another tenth. Its target for "strong" is 0.9 (arXiv 1606.03498). The objectness head learns
from the same pixels, so an object of no known category stays visible. What each part gives: docs/results/transfer.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tsss_edge.artifacts import IGNORE, Checkpoint, Struct
from tsss_edge.config import TrainConfig
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.supervision import MaskOf, Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.label.write import find_classifier, find_labeller, label_path, report_of
from tsss_edge.models import SegNet, load_classifier, network_input
from tsss_edge.scoring import Views
from tsss_edge.train.board import ClassValidation
from tsss_edge.train.duel import Duel
from tsss_edge.train.judge import HEARD_FROM, HEARD_FULL, QualityJudge
from tsss_edge.train.loader import Batch, LabelsOf, Samples
from tsss_edge.train.loop import Moment, Stage, train
from tsss_edge.train.losses import category_losses, cell_shares, cut_and_mix, object_loss, ramp, refine, upsample_to
from tsss_edge.train.runfolder import Stateful
from tsss_edge.train.start import (
    augmentation,
    class_weights,
    fresh_net,
    masked_val,
    require_background,
    take_over,
    training_split,
)
from tsss_edge.train.teachers import ANSWERS_WEIGHT, TeacherNets, answers_loss

OBJECT_WEIGHT = 0.5  # of the objectness loss beside the class loss
ADVERSARIAL_WEIGHT = 0.01
D_ALONE, D_FULL = 0.1, 0.2  # share of training until S listens to D at all, and fully


class Switches(Struct, frozen=True):
    """Parts of the training. `adversarial`: the discriminator, where there are strong and weak images; it never helped
    (docs/results/transfer.md). `mean_teacher`, `cutmix`: `refine` and `cut_and_mix` in train/losses.py."""

    adversarial: bool = False
    judge: bool = (
        False  # D that judges quality weighs the pixels of Lw (train/judge.py); beside the other D or without it
    )
    mean_teacher: bool = False
    cutmix: bool = True


PLAIN = Switches(cutmix=False)  # cross-entropy alone


def train_pnet(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    lnet: Path,
    labels: Path,
    strong: Sequence[str],
    switches: Switches | None = None,
    resume: bool = False,
) -> Checkpoint:
    """Train P-Net on all categories of `data`.

    Args:    lnet: L-Net's run, where P-Net's weights start, or that of an earlier P-Net. labels: folder that
             `write_labels` filled.
    Metrics: mIoU in percent and pixel accuracy on pictures of "val" that have a mask. The newest weights are kept: no mask of
             a weak category may choose them.
    Raises:  DataError: unusable data, or a weak image without label. ArtifactError: another architecture or run, or one
             that has seen masks of categories that are weak here.
    """
    dataset = VocDataset.open(data)
    require_background(dataset, "P-Net")
    supervision = Supervision(dataset, tuple(strong))
    net = starting_net(config, dataset, lnet)
    require_same_strong(supervision, lnet, labels)
    weak = frozenset(supervision.weak_ids("train"))
    stage = class_stage(
        config,
        dataset,
        net,
        strong=supervision.strong,
        mask_of=visible_masks(supervision, labels, weak),
        switches=switches or Switches(),
        labels_of=supervision.image_labels,
        weak=weak,
        measured=Views(dataset, masked_val(dataset), config.preprocess),
    )
    return train(stage, config, out, resume=resume)


def class_stage(
    config: TrainConfig,
    dataset: VocDataset,
    net: nn.Module,
    *,
    strong: tuple[str, ...],
    mask_of: MaskOf,
    switches: Switches,
    labels_of: LabelsOf | None = None,
    weak: frozenset[str] = frozenset(),
    ids: Sequence[str] = (),
    measured: Views | None = None,
) -> Stage:
    """The stage of a network that tells categories apart, from any starting weights.

    Args: mask_of: what the loss may see of a picture. weak: pictures whose mask is Lw. labels_of: their image-level labels.
          ids: of an epoch, where they are not all of "train" once (see `Samples`).
          measured: pictures of validation, where they are not all of "val".
    """
    ids = ids or training_split(dataset)
    augment = augmentation(config)
    both = 0 < len(weak) < len(ids)
    duel = Duel(config) if switches.adversarial and both else None
    judge = QualityJudge(config) if switches.judge and both else None
    beside: dict[str, Stateful] = {}
    for name, part in (("discriminator", duel), ("judge", judge)):
        if part is not None:
            beside |= {name: part.net, f"{name}_optimizer": part.optimizer}
    weights = class_weights(dataset, ids, mask_of, config.balance)
    validation = ClassValidation(measured or Views(dataset, dataset.ids("val"), config.preprocess))
    return Stage(
        name="pnet",
        net=net,
        samples=Samples(
            dataset,
            ids,
            mask_of,
            augment,
            batch=config.batch,
            seed=config.seed,
            labels_of=labels_of,
            weak=weak,
            views=config.views,
        ),
        step=ClassStep(
            net,
            config,
            weights,
            duel,
            switches,
            objectness=dataset.classes.background,
            judge=judge,
            teachers=TeacherNets.of(config, dataset.classes),
        ),
        validate=validation,
        shows=validation,
        strong=strong,
        options={**msgspec.structs.asdict(switches), "adversarial": duel is not None, "judge": judge is not None},
        beside=beside,
    )


def starting_net(config: TrainConfig, dataset: VocDataset, run: Path) -> SegNet:
    """P-Net before its first step: the weights of L-Net and its classifier, or of an earlier P-Net.

    Raises: ArtifactError: another architecture, or a P-Net of other classes.
    """
    start = find_labeller(run)
    net = take_over(fresh_net(config, num_classes=len(dataset.classes)), start, config.arch)
    if start.meta.stage == "pnet":
        if start.meta.classes != dataset.classes:
            raise ArtifactError(f"{start.path}: has other classes than {dataset.root}; start from a P-Net of this set")
        net.load_state_dict(start.state())
        return net
    classifier = find_classifier(start)
    if classifier is not None and classifier.meta.classes == dataset.classes:
        net.load_state_dict(load_classifier(classifier).net.state_dict())
    return net


def strong_of(run: Path, labels: Path) -> tuple[str, ...]:
    """Categories whose masks the labels were made with; where the folder does not say, those that the starting network has seen."""
    made = report_of(labels)
    return made.strong if made else find_labeller(run).meta.strong


def require_same_strong(supervision: Supervision, run: Path, labels: Path) -> None:
    """Raise ArtifactError when starting weights or labels come of masks of categories that are weak here."""
    start, made = find_labeller(run), report_of(labels)
    seen = {str(start.path): start.meta.strong}
    if made:
        seen[str(labels)] = made.strong
    for name, strong in seen.items():
        if unknown := [category for category in strong if category not in supervision.strong]:
            raise ArtifactError(
                f"{name}: has seen masks of {', '.join(unknown)}, which would be weak here; give --strong {','.join(strong)}"
            )


def visible_masks(supervision: Supervision, labels: Path, labelled: frozenset[str]) -> MaskOf:
    """What a loss may see: of pictures in `labelled` what the folder `labels` holds (Lw), of the others their true masks.

    Raises: DataError: a picture has no Lw, or one of another size or with other categories than its image-level label (with
            `add_above` the labels may have more).
    """
    made = report_of(labels)
    added = supervision.dataset.classes.objects if made and made.settings.add_above is not None else ()
    for image_id in sorted(labelled):
        if not label_path(labels, image_id).is_file():
            raise DataError(f"{labels}: no label for weak image {image_id}; run `tsss-edge label` on this set again")

    def mask_of(image_id: str) -> NDArray[np.uint8]:
        if image_id not in labelled:
            return supervision.pixel_mask(image_id)
        path = label_path(labels, image_id)
        mask, size = read_mask(path), supervision.dataset.image_hw(image_id)
        allowed = {0, IGNORE, *supervision.image_labels(image_id), *added}
        if mask.shape != size or not set(np.unique(mask).tolist()) <= allowed:
            raise DataError(f"{path}: size or categories are not those of image {image_id}; label this set again")
        return mask

    return mask_of


class ClassStep:
    """Cross-entropy and, where there is a background, objectness on what may be seen of every image; and the duel with D."""

    def __init__(
        self,
        net: nn.Module,
        config: TrainConfig,
        weights: Tensor | None,
        duel: Duel | None,
        switches: Switches,
        *,
        objectness: bool,
        judge: QualityJudge | None = None,
        teachers: TeacherNets | None = None,
    ) -> None:
        self._net, self._config, self._weights, self._duel = net, config, weights, duel
        self._teachers = teachers
        self._switches, self._objectness, self._judge = switches, objectness, judge

    def __call__(self, batch: Batch, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        x = network_input(batch.images, self._config.preprocess.scale)
        shares = cell_shares(batch.masks, batch.labels.shape[1], self._config.loss_stride)
        if self._switches.mean_teacher and moment.average is not None:
            shares = refine(shares, x, batch, moment.average, moment.done)
        judged = self._judged(x, shares, batch, moment) if self._judge is not None else None
        if judged is not None:
            shares, lost = judged
        weak = weak_cells(batch.weak, x)
        if self._switches.cutmix:
            x, shares, weak = cut_and_mix(self._config.seed, moment.step, x, shares, weak)
        logits, objectness = self._net(x)
        weights = self._weights.to(shares.device) if self._weights is not None else None
        loss, parts = category_losses(logits, shares, weights, self._config.jaccard)
        if self._objectness:
            parts["object"] = object_loss(objectness, shares)
            loss = loss + OBJECT_WEIGHT * parts["object"]
        if self._teachers is not None:
            parts["answers"] = answers_loss(logits, self._teachers.answers(x))
            loss = loss + ANSWERS_WEIGHT * parts["answers"]
        if judged is not None:
            parts["judge"] = lost
        if self._duel is not None:
            image, probabilities = F.avg_pool2d(x, 8), logits.float().softmax(dim=1)
            parts["d"] = self._duel.learn(image, probabilities, weak)
            say = ramp(moment.done, D_ALONE, D_FULL)
            if say > 0:
                parts["fool"] = self._duel.fool(image, probabilities, weak)
                loss = loss + say * ADVERSARIAL_WEIGHT * parts["fool"]
        return loss, parts

    def _judged(self, x: Tensor, shares: Tensor, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor]:
        """The judge learns from strong pictures; the shares of weak ones, weighed by what it thinks of them, and its loss."""
        assert self._judge is not None
        cells, strong = cell_shares(batch.masks, shares.shape[1], 8), ~batch.weak
        image = F.avg_pool2d(x, 8)
        generator = torch.Generator().manual_seed(self._config.seed * 1_000_003 + moment.step)
        lost = self._judge.learn(image[strong], cells[strong], generator)
        say = ramp(moment.done, HEARD_FROM, HEARD_FULL)
        if say == 0 or not bool(batch.weak.any()):
            return shares, lost
        trust = upsample_to(self._judge.trust(image[batch.weak], cells[batch.weak]), shares)
        weighed = shares.clone()
        weighed[batch.weak] *= 1 - say * (1 - trust)
        return weighed, lost


def weak_cells(weak: Tensor, x: Tensor) -> Tensor:
    """(N,) bool and the pictures (N,3,H,W) -> (N,1,H/8,W/8), 1 in the cells of weak pictures."""
    cells = (x.shape[-2] // 8, x.shape[-1] // 8)
    return weak.to(x.dtype)[:, None, None, None].repeat(1, 1, *cells)
