"""What a run's networks would label on another set, against its masks, for several values of `--peak-floor` and others.

    python scripts/label_quality.py runs/stage/seed-0/A coco128_voc --split trainval --peak-floors 0,0.3,0.4,0.5
    python scripts/label_quality.py runs/stage/seed-0/A coco128_voc --split trainval --draft --sure-above 0.5,0.7
    python scripts/label_quality.py runs/quick/seed-0/A coco128_voc --split trainval --peak-floors 0.4 --add-above 0,0.9

Rules of labelling are chosen by it on pictures that no claim rests on: L-Net's and the classifier's or, with `--draft`, those of
the run's P-Net. 0 means none of it. Pictures that show strong categories alone are left out. In IoU 255 counts as missed,
so that leaving much unsure does not pay.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import torch

from tsss_edge.artifacts import Checkpoint
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.annotate import Annotator, LabelConfig, Relabeller, annotate, relabelled
from tsss_edge.label.write import find_labeller, require_classifier, settings_of
from tsss_edge.metrics import confusion, iou_of
from tsss_edge.scoring import Mask, Views


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with lnet, classifier and labels; with --draft, pnet too")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--peak-floors", type=numbers, default="0,0.4")
    parser.add_argument("--add-above", type=numbers, default="0", help="of the classifier")
    parser.add_argument("--draft", action="store_true", help="label by the run's P-Net")
    parser.add_argument("--sure-above", type=numbers, default="0.7", help="with --draft")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dataset, settings = VocDataset.open(given.data), settings_of(given.run)
    names = ("peak_floor", "sure_above") if given.draft else ("peak_floor", "add_above")
    choices = [given.peak_floors, [share or 0.0 for share in given.sure_above] if given.draft else given.add_above]
    changes = [dict(zip(names, values, strict=True)) for values in product(*choices)]
    configs = [msgspec.structs.replace(settings, **change) for change in changes]
    lines = counted(given.run, dataset, given.split, configs, draft=given.draft)
    for change, found in zip(changes, lines, strict=True):
        print(f"{', '.join(f'{name} {value}' for name, value in change.items())}: {found}")


def numbers(text: str) -> list[float | None]:
    """`0,0.4` -> [None, 0.4]."""
    return [float(part) or None for part in text.split(",")]


def counted(run: Path, dataset: VocDataset, split: str, configs: Sequence[LabelConfig], *, draft: bool) -> list[str]:
    """Label every weak picture by each of the settings, and say how well. The networks look once, as the first asks."""
    lnet = find_labeller(run, ("lnet",))
    supervision = Supervision(dataset, lnet.meta.strong)
    views = Views(dataset, supervision.weak_ids(split), lnet.meta.preprocess)
    size = len(dataset.classes)
    counts = np.zeros((len(configs), size, size + 1), np.int64)  # truth, label; the last column is unsure
    for image_id, labelled in labels(run, lnet, views, supervision, configs, draft=draft):
        truth = dataset.mask(image_id)
        counts += np.stack([confusion(lw, truth, size) for lw in labelled])
    weak = [i for i in dataset.classes.objects if dataset.classes.names[i] not in lnet.meta.strong]
    return [line(each, weak, dataset.classes.names) for each in counts]


def labels(
    run: Path, lnet: Checkpoint, views: Views, supervision: Supervision, configs: Sequence[LabelConfig], *, draft: bool
) -> Iterator[tuple[str, list[Mask]]]:
    """(id, labels by each of the settings) of each picture."""
    if draft:
        for image_id, logits in Relabeller(Checkpoint.load(run / "pnet"), config=configs[0]).logits(views):
            yield image_id, [relabelled(logits, views, image_id, supervision, config) for config in configs]
        return
    for image_id, seen in Annotator(lnet, require_classifier(lnet), config=configs[0]).evidence(views):
        yield image_id, [annotate(seen, views, image_id, supervision, config) for config in configs]


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
