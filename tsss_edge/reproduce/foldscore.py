"""Networks of a benchmark + the validation pictures -> their scores, kept beside the networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.frozen import keep_features
from tsss_edge.label.annotate import Annotator, training_of
from tsss_edge.label.edges import object_mask
from tsss_edge.label.write import find_labeller, require_classifier, settings_of
from tsss_edge.metrics import ConfusionMatrix, per_class
from tsss_edge.models import SegNet, load_model, pick_device
from tsss_edge.reproduce.scores import kept_or
from tsss_edge.scoring import Mask, Views, net_answers, object_iou, object_truth
from tsss_edge.train.runfolder import training_seconds

NET_SCORE, OBJECT_SCORE, FITTED_SCORE = "headline.json", "object-score.json", "fitted-score.json"  # beside a network

Halves = tuple[float | None, float | None]  # on pictures of strong categories alone, and on the others


class NetScore(Struct, frozen=True):
    """IoU in percent. `headline`: mean over the background and the benchmark's categories; `miou`: over all classes."""

    headline: float
    miou: float
    per_class: dict[str, float | None]
    seconds: float  # of training, this network alone
    checkpoint_sha256: str
    names: tuple[str, ...] = ()  # of the headline mean
    val_sha256: str = ""  # of what it was measured on; "" in older files, which are measured again

    @property
    def key(self) -> tuple[object, ...]:
        """What must be the same, or it is another score."""
        return self.checkpoint_sha256, self.names, self.val_sha256


class ObjectScore(Struct, frozen=True):
    """Object IoU in percent on validation pictures of strong categories alone, and on the others. None: no such picture."""

    strong: float | None
    weak: float | None
    seconds: float
    checkpoint_sha256: str
    above: float = 0.5  # M over which a pixel is an object
    parted_by: tuple[str, ...] = ()  # categories that part strong pictures from weak ones
    val_sha256: str = ""  # as in `NetScore`

    @property
    def key(self) -> tuple[object, ...]:
        """What must be the same, or it is another score."""
        return self.checkpoint_sha256, self.above, self.parted_by, self.val_sha256


def ready(checkpoint: Checkpoint) -> SegNet:
    """The network of a checkpoint on this machine's device; its frozen stages remember what they said in training."""
    net = load_model(checkpoint).to(pick_device("auto"))
    keep_features(net, training_of(checkpoint))
    return net


def net_score(checkpoint: Checkpoint, data: Path, names: Sequence[str]) -> NetScore:
    """Measure a network with a class head, or read what was measured before."""
    dataset = VocDataset.open(data)
    val_sha256 = dataset.split_hash("val")

    def measure() -> NetScore:
        views = Views(dataset, dataset.ids("val"), checkpoint.meta.preprocess)
        found = ((answer.id, answer.labels) for answer in net_answers(ready(checkpoint), views))
        headline, miou, classes = label_scores(found, dataset, names)
        return NetScore(
            headline=headline,
            miou=miou,
            per_class=classes,
            seconds=training_seconds(checkpoint.path.parent),
            checkpoint_sha256=checkpoint.sha256,
            names=tuple(names),
            val_sha256=val_sha256,
        )

    key = checkpoint.sha256, tuple(names), val_sha256
    return kept_or(checkpoint.path.parent / NET_SCORE, NetScore, key, measure)


def label_scores(
    found: Iterable[tuple[str, Mask]], dataset: VocDataset, names: Sequence[str]
) -> tuple[float, float, dict[str, float | None]]:
    """(headline mean, mean over all classes, IoU by class), in percent, of (id, labels) pairs."""
    matrix = ConfusionMatrix(len(dataset.classes))
    for image_id, labels in found:
        matrix.update(labels, dataset.mask(image_id))
    counted = [0, *dataset.classes.ids(tuple(names))]
    return float(100 * np.nanmean(matrix.iou[counted])), matrix.miou, per_class(matrix.iou, dataset.classes.names)


def object_score(checkpoint: Checkpoint, data: Path, strong: Sequence[str]) -> ObjectScore:
    """Measure an L-Net, or read what was measured before. `strong` parts the validation pictures, not what L-Net saw."""
    dataset = VocDataset.open(data)
    parts = Supervision(dataset, tuple(strong))

    def measure() -> Halves:
        net = ready(checkpoint)
        return on_both(parts, lambda ids: object_iou(net, Views(dataset, ids, checkpoint.meta.preprocess)))

    return _once(OBJECT_SCORE, checkpoint, parts, 0.5, measure)


def fitted_score(run: Path, data: Path, strong: Sequence[str], above: float) -> ObjectScore:
    """As `object_score`, of the foreground as the labels of a fold's folder `run` were made: at their scales, fitted to the picture's
    edges, and an object where it is over `above` (0-1)."""
    checkpoint, dataset, settings = find_labeller(run, ("lnet",)), VocDataset.open(data), settings_of(run)
    parts = Supervision(dataset, tuple(strong))

    def measure() -> Halves:
        annotator = Annotator(checkpoint, require_classifier(checkpoint), config=settings)

        def iou(ids: Sequence[str]) -> float:
            matrix, views = ConfusionMatrix(2), Views(dataset, ids, checkpoint.meta.preprocess)
            for image_id, foreground in annotator.foreground(views):
                picture, truth = dataset.image(image_id), object_truth(views.mask(image_id))
                matrix.update(object_mask(foreground, picture, views.preprocess, settings.edges, above), truth)
            return float(100 * matrix.iou[1])

        return on_both(parts, iou)

    return _once(FITTED_SCORE, checkpoint, parts, above, measure)


def _once(
    name: str, checkpoint: Checkpoint, parts: Supervision, above: float, measure: Callable[[], Halves]
) -> ObjectScore:
    """What the file `name` beside the network says of the same weights, pictures, parts and threshold, else what is measured and
    written there."""
    wanted = ObjectScore(
        strong=None,
        weak=None,
        seconds=training_seconds(checkpoint.path.parent),
        checkpoint_sha256=checkpoint.sha256,
        above=above,
        parted_by=parts.strong,
        val_sha256=parts.dataset.split_hash("val"),
    )

    def score() -> ObjectScore:
        strong, weak = measure()
        return msgspec.structs.replace(wanted, strong=strong, weak=weak)

    return kept_or(checkpoint.path.parent / name, ObjectScore, wanted.key, score)


def on_both(supervision: Supervision, iou: Callable[[Sequence[str]], float]) -> Halves:
    """`iou` of the validation pictures of strong categories alone, and of the others; None where there is none."""
    groups = (supervision.strong_ids("val"), supervision.weak_ids("val"))
    values = [iou(ids) if ids else math.nan for ids in groups]
    strong, weak = (None if math.isnan(value) else value for value in values)
    return strong, weak
