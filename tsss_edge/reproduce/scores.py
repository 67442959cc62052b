"""Trained networks and their labels -> scores on the validation pictures, kept beside each network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.files import read_json, write_json
from tsss_edge.label.annotate import Annotator, Evidence, LabelConfig, transferred
from tsss_edge.label.edges import object_mask
from tsss_edge.label.write import find_labeller, require_classifier, settings_of
from tsss_edge.metrics import ConfusionMatrix, per_class
from tsss_edge.models import load_model, pick_device
from tsss_edge.scoring import SplitCounts, Views, count, net_answers, object_truth
from tsss_edge.train.runfolder import training_seconds

EVERYWHERE = LabelConfig(background_below=-1.0, object_above=-1.0, margin=0.0)  # a category for every pixel


class RowScore(Struct, frozen=True):
    """IoU in percent. "Strong" and "weak" are the categories of the 50% protocol, background left out of both."""

    miou: float
    miou_strong: float
    miou_weak: float
    object_iou: float  # of the objectness head
    per_class: dict[str, float | None]
    seconds: float  # of training, this stage alone, validation included
    checkpoint_sha256: str
    strong: tuple[str, ...] = ()
    val_sha256: str = ""  # of what it was measured on; "" in older files, which are measured again

    @property
    def key(self) -> tuple[object, ...]:
        """What must be the same, or it is another score."""
        return self.checkpoint_sha256, self.strong, self.val_sha256


class Score(Protocol):
    """A score that says what it is of."""

    @property
    def key(self) -> tuple[object, ...]: ...


S = TypeVar("S", bound=Score)


def kept_or(path: Path, kind: type[S], key: tuple[object, ...], measure: Callable[[], S]) -> S:
    """The score in a file where it is of the same things, else what `measure` gives, and the file is written.

    Raises: ArtifactError: the file is damaged.
    """
    if path.is_file() and (kept := read_json(path, kind)).key == key:
        return kept
    score = measure()
    write_json(path, score)
    return score


def scored(checkpoint: Checkpoint, views: Views, strong: Sequence[str], *, flip: bool = False) -> RowScore:
    """Measure the network on `views`, all of "val", or read what was measured before. `flip` averages with the mirrored picture."""
    path = checkpoint.path.parent / ("score-flip.json" if flip else "score.json")
    val_sha256 = views.dataset.split_hash("val")
    key = checkpoint.sha256, tuple(strong), val_sha256
    return kept_or(path, RowScore, key, lambda: measured(checkpoint, views, strong, flip, val_sha256))


def measured(checkpoint: Checkpoint, views: Views, strong: Sequence[str], flip: bool, val_sha256: str) -> RowScore:
    classes = views.dataset.classes
    net = load_model(checkpoint).to(pick_device(str(checkpoint.meta.training.get("device", "auto"))))
    counts = SplitCounts(len(classes), ("classes", "objects"))
    iou = count(net_answers(net, views, flip=flip), views.mask, counts).classes.iou
    ids = set(classes.ids(tuple(strong)))
    return RowScore(
        miou=counts.classes.miou,
        miou_strong=float(100 * np.nanmean(iou[[i for i in classes.objects if i in ids]])),
        miou_weak=float(100 * np.nanmean(iou[[i for i in classes.objects if i not in ids]])),
        object_iou=counts.object_iou,
        per_class=per_class(iou, classes.names),
        seconds=training_seconds(checkpoint.path.parent),
        checkpoint_sha256=checkpoint.sha256,
        strong=tuple(strong),
        val_sha256=val_sha256,
    )


# -- Where the labels Lw lose: true masks, replaced step by step by what the method finds. The numbers read true masks and
# reach no loss.


class Ladder(Struct, frozen=True):
    """mIoU in percent of the pictures' labels, 255 counted as wrong; `object_iou` is that of the foreground, at M = 0.5."""

    images: int
    object_iou: float
    maps_in_true_foreground: float  # categories by the class maps alone
    diffusion_in_true_foreground: float  # and spread
    lw: float  # and L-Net's foreground in place of the true one


def ladder(run: Path, data: Path, *, limit: int = 300, device: str = "auto") -> Ladder:
    """Measure the labels of the first `limit` weak validation images that have true masks. `run`: of `train all`.

    Raises: DataError: no such image. ArtifactError: no L-Net or no classifier in `run`.
    """
    lnet, dataset = find_labeller(run, ("lnet",)), VocDataset.open(data)
    weak = dataset.masked(Supervision(dataset, lnet.meta.strong).weak_ids("val"))
    if not weak:
        raise DataError(f"{data}: split val has no weak image with a mask")
    annotator = Annotator(lnet, require_classifier(lnet), device=device)
    rungs = Rungs(Views(dataset, weak[:limit], lnet.meta.preprocess), settings_of(run))
    for image_id, evidence in annotator.evidence(rungs.views):
        rungs.add(image_id, evidence)
    return rungs.result()


class Rungs:
    """Confusion counts of every rung."""

    def __init__(self, views: Views, config: LabelConfig) -> None:
        self.views, self._edges = views, config.edges
        replace = msgspec.structs.replace
        self._configs = {
            "maps_in_true_foreground": replace(EVERYWHERE, diffusion=None, edges=config.edges),
            "diffusion_in_true_foreground": replace(EVERYWHERE, diffusion=config.diffusion, edges=config.edges),
            "lw": config,
        }
        self._matrices = {name: ConfusionMatrix(len(views.dataset.classes)) for name in self._configs}
        self._objects = ConfusionMatrix(2)

    def add(self, image_id: str, evidence: Evidence) -> None:
        """Count one picture."""
        truth, labels = self.views.mask(image_id), self.views.dataset.image_labels(image_id)
        picture, preprocess = self.views.dataset.image(image_id), self.views.preprocess
        for name, config in self._configs.items():
            found = transferred(evidence, picture, preprocess, labels, config)
            self._matrices[name].update(found if name == "lw" else np.where(truth == 0, np.uint8(0), found), truth)
        seen = object_mask(evidence.objectness[None], picture, preprocess, self._edges)
        self._objects.update(seen, object_truth(truth))

    def result(self) -> Ladder:
        """Scores of the pictures so far."""
        scores = {name: round(matrix.miou, 2) for name, matrix in self._matrices.items()}
        images = self._objects.images
        return Ladder(images=images, object_iou=round(float(100 * self._objects.iou[1]), 2), **scores)
