"""Where the labels Lw lose: true masks, replaced step by step by what the method finds.

For the report, and for the choice of `LabelConfig` on images of strong categories: the numbers read true masks and
reach no loss.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from tsss_edge.artifacts import Preprocess, Struct
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.label.annotate import Annotator, Evidence, LabelConfig, sharpened, transferred
from tsss_edge.label.write import find_classifier, find_lnet, settings_of
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.train.validate import Views, object_truth

EVERYWHERE = LabelConfig(background_below=-1.0, object_above=-1.0, margin=0.0)  # a category for every pixel


class Ladder(Struct, frozen=True):
    """mIoU in percent of the pictures' labels, 255 counted as wrong; `object_iou` is that of the foreground, at M = 0.5."""

    images: int
    object_iou: float
    maps_in_true_foreground: float  # categories by the class maps alone
    diffusion_in_true_foreground: float  # and spread
    lw: float  # and L-Net's foreground in place of the true one


def ladder(
    run: Path,
    data: Path,
    *,
    split: str = "val",
    strong_images: bool = False,
    limit: int = 300,
    config: LabelConfig | None = None,
    device: str = "auto",
) -> Ladder:
    """Measure the first `limit` weak images of a split that have true masks (or, to choose settings, strong images).

    Args:    run: run folder of `train all`.
    Raises:  DataError: no such image. ArtifactError: no L-Net or no classifier in `run`.
    """
    lnet, config = find_lnet(run), config or settings_of(run)
    classifier = find_classifier(lnet)
    if classifier is None:
        raise ArtifactError(f"{run}: no classifier beside its L-Net; run `tsss-edge label` first")
    views = _views(
        Supervision(VocDataset.open(data), lnet.meta.strong), split, strong_images, limit, lnet.meta.preprocess
    )
    count = _Count(views, config)
    for image_id, evidence in Annotator(lnet, classifier, device=device).evidence(views):
        count.add(image_id, evidence)
    return count.result()


def _views(supervision: Supervision, split: str, strong_images: bool, limit: int, preprocess: Preprocess) -> Views:
    dataset = supervision.dataset
    listed = supervision.strong_ids(split) if strong_images else supervision.weak_ids(split)
    ids = [i for i in listed if dataset.mask_path(i).is_file()][:limit]
    if not ids:
        raise DataError(
            f"{dataset.root}: split {split} has no {'strong' if strong_images else 'weak'} image with a mask"
        )
    return Views(dataset, ids, preprocess)


class _Count:
    """Confusion counts of every rung."""

    def __init__(self, views: Views, config: LabelConfig) -> None:
        self._views, self._edges = views, config.edges
        self._rungs = {
            "maps_in_true_foreground": msgspec.structs.replace(EVERYWHERE, diffusion=None, edges=config.edges),
            "diffusion_in_true_foreground": msgspec.structs.replace(
                EVERYWHERE, diffusion=config.diffusion, edges=config.edges
            ),
            "lw": config,
        }
        self._matrices = {name: ConfusionMatrix(len(views.dataset.classes)) for name in self._rungs}
        self._objects = ConfusionMatrix(2)

    def add(self, image_id: str, evidence: Evidence) -> None:
        truth, labels = self._views.mask(image_id), self._views.dataset.image_labels(image_id)
        picture, preprocess = self._views.dataset.image(image_id), self._views.preprocess
        for name, config in self._rungs.items():
            found = transferred(evidence, picture, preprocess, labels, config)
            self._matrices[name].update(found if name == "lw" else np.where(truth == 0, np.uint8(0), found), truth)
        seen = sharpened(evidence.objectness[None], picture, preprocess, self._edges)[0] > 0.5
        self._objects.update(seen.astype(np.uint8), object_truth(truth))

    def result(self) -> Ladder:
        scores = {name: round(float(matrix.miou), 2) for name, matrix in self._matrices.items()}
        return Ladder(images=len(self._views.ids), object_iou=round(float(100 * self._objects.iou[1]), 2), **scores)
