"""What a run's networks would label on another set, against its masks, for several values of `--peak-floor`.

    python scripts/label_quality.py runs/stage/seed-0/A coco128_voc --split trainval --peak-floors 0,0.3,0.4,0.5
    python scripts/label_quality.py runs/stage/seed-0/A coco128_voc --split trainval --draft --sure-above 0.5,0.7

Rules of labelling are chosen by it on pictures that no claim rests on: L-Net's and the classifier's or, with `--draft`, those of
the run's P-Net. A floor of 0 means as it is. Pictures that show strong categories alone are left out. In IoU 255 counts as missed,
so that leaving much unsure does not pay.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from tsss_edge.artifacts import Checkpoint
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.annotate import Annotator, LabelConfig, Relabeller
from tsss_edge.label.write import find_labeller, require_classifier, settings_of
from tsss_edge.metrics import confusion, iou_of
from tsss_edge.scoring import Views


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with lnet, classifier and labels; with --draft, pnet too")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--peak-floors", default="0,0.4")
    parser.add_argument("--draft", action="store_true", help="label by the run's P-Net")
    parser.add_argument("--sure-above", default="0.7", help="with --draft")
    given = parser.parse_args()
    torch.set_num_threads(1)
    floors = [float(text) or None for text in given.peak_floors.split(",")]
    dataset, settings = VocDataset.open(given.data), settings_of(given.run)
    sure = [float(text) for text in given.sure_above.split(",")] if given.draft else [settings.sure_above]
    for floor in floors:
        for share in sure:
            config = msgspec.structs.replace(settings, peak_floor=floor, sure_above=share)
            told = f"peak floor {floor}, sure above {share}" if given.draft else f"peak floor {floor}"
            print(f"{told}: {counted(given.run, dataset, given.split, config, draft=given.draft)}")


def counted(run: Path, dataset: VocDataset, split: str, config: LabelConfig, *, draft: bool) -> str:
    """Label every weak picture, and say how well."""
    lnet = find_labeller(run, ("lnet",))
    supervision = Supervision(dataset, lnet.meta.strong)
    views = Views(dataset, supervision.weak_ids(split), lnet.meta.preprocess)
    size = len(dataset.classes)
    counts = np.zeros((size, size + 1), np.int64)  # truth, label; the last column is unsure
    for image_id, lw in labels(run, lnet, views, supervision, config, draft=draft):
        counts += confusion(lw, dataset.mask(image_id), size)
    weak = [i for i in dataset.classes.objects if dataset.classes.names[i] not in lnet.meta.strong]
    return line(counts, weak, dataset.classes.names)


def labels(
    run: Path, lnet: Checkpoint, views: Views, supervision: Supervision, config: LabelConfig, *, draft: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, labels) of each picture."""
    if draft:
        return Relabeller(Checkpoint.load(run / "pnet"), config=config).labels(views, supervision, config)
    return Annotator(lnet, require_classifier(lnet), config=config).labels(views, supervision, config)


def line(counts: np.ndarray, weak: Sequence[int], names: Sequence[str]) -> str:
    """IoU in percent of the background and of weak categories that occur, 255 as missed; how much is labelled, and rightly."""
    hit, sure = np.diag(counts[:, :-1]), counts[:, :-1].sum()
    iou = 100 * iou_of(counts)
    there = [i for i in weak if counts[i].any()]
    parts = ", ".join(f"{names[i]} {iou[i]:.1f}" for i in there)
    pixels = f"{100 * sure / counts.sum():.1f}% labelled, {100 * hit.sum() / max(1, sure):.1f}% of them rightly"
    return f"background {iou[0]:.1f}, mean of weak {np.mean(iou[there]):.2f} ({parts}); {pixels}"


if __name__ == "__main__":
    main()
