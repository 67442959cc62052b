"""A trained network + the validation pictures -> its scores on strong and on weak categories, kept beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.files import read_json, write_json
from tsss_edge.metrics import ConfusionMatrix, per_class
from tsss_edge.models import load_model
from tsss_edge.train.loop import pick_device
from tsss_edge.train.validate import Views, object_truth


class Score(Struct, frozen=True):
    """IoU in percent. "Strong" and "weak" are the categories of the 50% protocol, background left out of both."""

    miou: float
    miou_strong: float
    miou_weak: float
    object_iou: float  # of the objectness head
    per_class: dict[str, float | None]
    seconds: float  # of training, this stage alone, validation included
    checkpoint_sha256: str


def scored(checkpoint: Checkpoint, views: Views, strong: Sequence[str], *, flip: bool = False) -> Score:
    """Measure the network on `views`, or read what was measured before. `flip` averages with the mirrored picture."""
    path = checkpoint.path.parent / ("score-flip.json" if flip else "score.json")
    if path.is_file() and (kept := read_json(path, Score)).checkpoint_sha256 == checkpoint.sha256:
        return kept
    score = _measure(checkpoint, views, strong, flip)
    write_json(path, score)
    return score


def _measure(checkpoint: Checkpoint, views: Views, strong: Sequence[str], flip: bool) -> Score:
    classes = views.dataset.classes
    matrix, objects = ConfusionMatrix(len(classes)), ConfusionMatrix(2)
    net = load_model(checkpoint).to(pick_device(str(checkpoint.meta.training.get("device", "auto"))))
    for image_id, heads in views.predict(net, flip=flip):
        assert heads.logits is not None
        assert heads.objectness is not None
        truth = views.mask(image_id)
        matrix.update(views.labels(heads.logits, image_id), truth)
        two = heads.objectness.repeat(2, 1, 1) * heads.objectness.new_tensor([0.0, 1.0])[:, None, None]
        objects.update(views.labels(two, image_id), object_truth(truth))
    ids = set(classes.ids(tuple(strong)))
    return Score(
        miou=float(matrix.miou),
        miou_strong=_mean(matrix, [i for i in classes.objects if i in ids]),
        miou_weak=_mean(matrix, [i for i in classes.objects if i not in ids]),
        object_iou=float(100 * objects.iou[1]),
        per_class=per_class(matrix.iou, classes.names),
        seconds=training_seconds(checkpoint.path.parent),
        checkpoint_sha256=checkpoint.sha256,
    )


def _mean(matrix: ConfusionMatrix, ids: Sequence[int]) -> float:
    return float(100 * np.nanmean(matrix.iou[list(ids)]))


def training_seconds(run: Path) -> float:
    """Sum over the epochs of a run's log."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return round(sum(float(json.loads(line)["seconds"]) for line in lines), 1)
