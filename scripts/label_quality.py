"""What a run's L-Net and classifier would label on another set, against its masks, for several values of `--peak-floor`.

    python scripts/label_quality.py runs/stage/seed-0/A coco128_voc --split trainval --peak-floors 0,0.3,0.4,0.5

Rules of labelling are chosen by it on pictures that no claim rests on. A value of 0 means M as it is. Pictures that show strong
categories alone are left out. 255 counts as missed, so that leaving much unsure does not pay.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from tsss_edge.artifacts import IGNORE
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.annotate import Annotator, transferred
from tsss_edge.label.write import find_labeller, require_classifier, settings_of
from tsss_edge.scoring import Views


def main() -> None:
    """Print a line for each value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with lnet, classifier and labels")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--peak-floors", default="0,0.4")
    given = parser.parse_args()
    torch.set_num_threads(1)
    floors = [float(text) or None for text in given.peak_floors.split(",")]
    counted(given.run, VocDataset.open(given.data), given.split, floors)


def counted(run: Path, dataset: VocDataset, split: str, floors: Sequence[float | None]) -> None:
    """Label every weak picture with each floor, and print IoU by class."""
    lnet, settings = find_labeller(run, ("lnet",)), settings_of(run)
    supervision = Supervision(dataset, lnet.meta.strong)
    views = Views(dataset, supervision.weak_ids(split), lnet.meta.preprocess)
    size = len(dataset.classes)
    counts = {
        floor: np.zeros((size, size + 1), np.int64) for floor in floors
    }  # truth, label; the last column is unsure
    for image_id, evidence in Annotator(lnet, require_classifier(lnet), config=settings).evidence(views):
        truth, picture = dataset.mask(image_id), dataset.image(image_id)
        for floor, matrix in counts.items():
            config = msgspec.structs.replace(settings, peak_floor=floor)
            lw = transferred(evidence, picture, views.preprocess, supervision.image_labels(image_id), config)
            pairs = truth[truth != IGNORE].astype(int) * (size + 1) + np.minimum(lw[truth != IGNORE], size)
            matrix += np.bincount(pairs, minlength=matrix.size).reshape(matrix.shape)
    weak = [i for i in dataset.classes.objects if dataset.classes.names[i] not in lnet.meta.strong]
    for floor, matrix in counts.items():
        print(f"peak floor {floor}: {line(matrix, weak, dataset.classes.names)}")


def line(counts: np.ndarray, weak: Sequence[int], names: Sequence[str]) -> str:
    """IoU in percent of the background and of weak categories that occur, 255 as missed."""
    hit = np.diag(counts[:, :-1])
    iou = 100 * hit / np.maximum(1, counts.sum(1) + counts[:, :-1].sum(0) - hit)
    there = [i for i in weak if counts[i].any()]
    parts = ", ".join(f"{names[i]} {iou[i]:.1f}" for i in there)
    return f"background {iou[0]:.1f}, mean of weak {np.mean(iou[there]):.2f} ({parts})"


if __name__ == "__main__":
    main()
