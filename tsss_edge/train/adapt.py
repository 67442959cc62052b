"""A trained run + pictures whose image-level labels name one more category -> a run that segments that one too.

The promise of the paper's abstract: a new category needs image-level labels only. How is ours. The old network explains a picture
as far as it can. Old categories that the label names keep their pixels. Any other object must be the new category. The class head
gets one more row, fitted alone first (train/new_row.py). P-Net then trains further on these labels and on true masks of strong
categories; pictures of the new category are repeated.
"""
# Letters: N batch, K class (of the old network), h = H/8, w = W/8.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Checkpoint, Struct
from tsss_edge.config import TrainConfig
from tsss_edge.data.joined import join_sets
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import write_json
from tsss_edge.frozen import keep_features
from tsss_edge.label.annotate import training_of
from tsss_edge.label.edges import to_frame
from tsss_edge.label.write import label_path
from tsss_edge.metrics import ConfusionMatrix, Counts, interval, iou_of, resampled
from tsss_edge.models import Heads, SegNet, load_model, pick_device
from tsss_edge.scoring import SplitCounts, Views, count, net_answers
from tsss_edge.train.loop import train
from tsss_edge.train.new_row import fit_new_row, widened
from tsss_edge.train.pnet import PLAIN, class_stage, visible_masks
from tsss_edge.train.runfolder import has_begun
from tsss_edge.train.start import masked_val, require_background

SURE = 0.6  # probability from which a pixel gets a label; the others are left out (255)
EPOCHS, RATE = 0.25, 0.5  # of the run's epochs and learning rate: most of the old weights must stay
SHARE = 0.25  # of an epoch that shows the new category, by repeats


class Change(Struct, frozen=True):
    """IoU of one class in percent, before and after; None where it is in neither truth nor prediction."""

    before: float | None
    after: float | None

    def text(self) -> str:
        """`12.34 -> 56.78`."""
        return " -> ".join("-" if v is None else f"{v:.2f}" for v in (self.before, self.after))


class AdaptReport(Struct, frozen=True):
    """IoU in percent on "val". Old categories (and the background) are measured where the truth is not the new one.

    Intervals hold 95%, by bootstrap over the pictures; that of a change is paired.
    """

    new_class: str
    images_with_new_class: int
    miou_old_before: float
    miou_old_after: float
    iou_new: float | None  # None: the split has no pixel of it
    miou: float  # of all classes, after
    checkpoint: str
    images: int = 0  # that were measured on
    old_change_interval: tuple[float, float] | None = None  # of miou_old_after - miou_old_before
    iou_new_interval: tuple[float, float] | None = None
    per_class: dict[str, Change] = msgspec.field(default_factory=dict)
    parent: str = ""  # SHA-256 of the checkpoint that was adapted

    @property
    def lost(self) -> float:
        """mIoU points that the old categories lost; below 0 they gained."""
        return self.miou_old_before - self.miou_old_after

    def summary(self) -> str:
        """For a terminal."""
        new = "-" if self.iou_new is None else f"{self.iou_new:.2f}"
        old = f"{self.miou_old_before:.2f} -> {self.miou_old_after:.2f}"
        low, high = self.iou_new_interval or (float("nan"), float("nan"))
        found = f"{self.new_class} IoU {new} (95% {low:.2f} to {high:.2f})"
        low, high = self.old_change_interval or (float("nan"), float("nan"))
        kept = f"old categories mIoU {old} (change {-self.lost:+.2f}, 95% {low:+.2f} to {high:+.2f})"
        width = max(map(len, self.per_class), default=0)
        rows = (f"  {name:<{width}} {change.text()}" for name, change in self.per_class.items())
        return "\n".join([f"{self.checkpoint}: {found}, {kept}, all {self.miou:.2f}; {self.images} pictures", *rows])


def adapt(
    run: Path,
    data: Path,
    out: Path,
    *,
    new_class: str,
    collected: Path | None = None,
    eval_data: Path | None = None,
    epochs: int | None = None,
    resume: bool = False,
) -> AdaptReport:
    """Add `new_class` to the run `run` and write the run `out`, its labels in out/labels and its report in adapt.json.

    `data`: classes.txt is the old one with `new_class` as its last line. It should show old categories too, or the network
    forgets them. Their true masks are used where they were strong, the old network's answer elsewhere.
    `collected`: frames of `stream --collect` that `review` labelled; then `data` is the old set, and both are joined in out/data.
    `eval_data`: set whose "val" is measured on, with the new category's masks; default: that of `data`. Only its pictures that
    have a mask are.
    Raises: ArtifactError: `run` has no network with class head and objectness head, or `out` holds a run already.
            DataError: unusable data, no background, no training picture shows the new category, or none of "val" has a mask.
    """
    old = Checkpoint.load(run)
    if old.meta.stage not in ("pnet", "supervised"):
        raise ArtifactError(f"{old.path}: is a {old.meta.stage} checkpoint; expected one that tells categories apart")
    begun = has_begun(out, resume)
    if collected is not None:
        data = join_sets(data, collected, out / "data", new_class=new_class).root
    dataset = VocDataset.open(data)
    require_background(dataset, "adapt")
    new_id = _require_one_more(old, dataset, new_class)
    measured = VocDataset.open(eval_data) if eval_data is not None else dataset
    _require_one_more(old, measured, new_class)
    val = masked_val(measured)
    supervision = Supervision(dataset, tuple(old.meta.strong))
    shows_new = [i for i in dataset.ids("train") if new_id in supervision.image_labels(i)]
    if not shows_new:
        raise DataError(f"{data}: no training picture names {new_class!r} in its image-level label")
    config = shortened(training_of(old), epochs, again=bool(old.meta.parent))
    net = load_model(old)
    keep_features(net, config)
    unlabelled = frozenset(supervision.weak_ids("train"))
    _write_labels(
        net, Views(dataset, sorted(unlabelled), config.preprocess), supervision, out / "labels", config.device
    )
    views = Views(measured, val, config.preprocess)
    wide = widened(net, config, len(dataset.classes))
    stage = class_stage(
        config,
        dataset,
        wide,
        strong=supervision.strong,
        mask_of=visible_masks(supervision, out / "labels", unlabelled),
        switches=PLAIN,  # a mean teacher does not know the new category at first and would talk it out of its labels
        labels_of=supervision.image_labels,
        weak=unlabelled,
        ids=repeated(dataset.ids("train"), shows_new),
        measured=views,
    )
    if not begun:
        fit_new_row(wide, stage.samples, config)
    train(replace(stage, parent=old.sha256), config, out, resume=resume)
    report = _report(old, Checkpoint.load(out), views, new_class, len(shows_new))
    write_json(out / "adapt.json", report)
    return report


def shortened(config: TrainConfig, epochs: int | None, *, again: bool = False) -> TrainConfig:
    """The run's settings with fewer epochs (`epochs`, else a quarter) and a lower learning rate; `again`: they have both already."""
    share, rate = (1.0, 1.0) if again else (EPOCHS, RATE)
    chosen = epochs or max(1, round(share * config.epochs))
    return msgspec.structs.replace(
        config,
        epochs=chosen,
        lr=rate * config.lr,
        warmup_epochs=min(config.warmup_epochs, 0.25 * chosen),
        teachers=(),  # they do not know the new category
    )


def repeated(ids: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """`ids`, and those of `chosen` so many times more that they make about `SHARE` of the list."""
    times = round(SHARE / (1 - SHARE) * (len(ids) - len(chosen)) / len(chosen))
    return (*ids, *(tuple(chosen) * max(0, times - 1)))


def explain(heads: Heads, labels: frozenset[int], new_id: int) -> NDArray[np.float32]:
    """What the old network sees in a picture, in the terms of its image-level label.

    Args:    heads: logits (K,h,w) and objectness (1,h,w) of one picture. labels: ids of its categories.
    Returns: (1+len(labels),h,w) probabilities that sum to 1: background, then the labels in ascending order.
    """
    assert heads.logits is not None
    assert heads.objectness is not None
    p = heads.logits.softmax(dim=0)
    named = sorted(labels - {new_id})
    parts = [p[:1], p[named]]
    if new_id in labels:
        unnamed = sorted(set(range(1, len(p))) - labels)
        unknown = p[:1] * heads.objectness.sigmoid()  # an object, but none of the old categories
        parts = [p[:1] - unknown, p[named], p[unnamed].sum(dim=0, keepdim=True) + unknown]
    share = torch.cat(parts).clamp(min=0)
    result: NDArray[np.float32] = (share / share.sum(dim=0).clamp(min=1e-6)).numpy()
    return result


def _require_one_more(old: Checkpoint, dataset: VocDataset, new_class: str) -> int:
    expected = (*old.meta.classes.names, new_class)
    if dataset.classes.names != expected:
        raise DataError(
            f"{dataset.root}: its classes are not those of {old.path} with {new_class!r} as the last; "
            "write such a classes.txt"
        )
    return len(expected) - 1


def _write_labels(net: SegNet, views: Views, supervision: Supervision, out: Path, device: str) -> None:
    """out/labels/SegmentationClass/ID.png of every picture of `views`; known pixels stay as they are."""
    new_id = len(supervision.dataset.classes) - 1
    for image_id, heads in views.predict(net.to(pick_device(device)), flip=True):
        labels = supervision.image_labels(image_id)
        ids = np.array([0, *sorted(labels)], np.uint8)
        known = supervision.pixel_mask(image_id)
        share = to_frame(explain(heads, labels, new_id), views.preprocess, known.shape)
        found = np.where(share.max(axis=0) > SURE, ids[share.argmax(axis=0)], np.uint8(IGNORE))
        write_mask(label_path(out, image_id), np.where(known != IGNORE, known, found))


def _report(old: Checkpoint, new: Checkpoint, views: Views, new_class: str, pictures: int) -> AdaptReport:
    before, after = (_counted(checkpoint, views) for checkpoint in (old, new))
    drawn_before, drawn_after = resampled(before.per_image), resampled(after.per_image)
    iou_new = _percent(after.iou[-1])
    return AdaptReport(
        new_class=new_class,
        images_with_new_class=pictures,
        miou_old_before=float(miou_of_old(before.counts)),
        miou_old_after=float(miou_of_old(after.counts)),
        iou_new=iou_new,
        miou=after.miou,
        checkpoint=str(new.path),
        images=after.images,
        old_change_interval=interval(miou_of_old(drawn_after) - miou_of_old(drawn_before)),
        iou_new_interval=None if iou_new is None else interval(100 * iou_of(drawn_after)[:, -1]),
        per_class={
            name: Change(before=_percent(a), after=_percent(b))
            for name, a, b in zip(views.dataset.classes.names, before.iou, after.iou, strict=True)
        },
        parent=old.sha256,
    )


def _counted(checkpoint: Checkpoint, views: Views) -> ConfusionMatrix:
    net = load_model(checkpoint)
    keep_features(net, training_of(checkpoint))
    return count(net_answers(net, views), views.mask, SplitCounts(len(views.dataset.classes))).classes


def _percent(iou: float) -> float | None:
    return None if np.isnan(iou) else round(100 * float(iou), 4)


def miou_of_old(counts: Counts) -> NDArray[np.float64]:
    """mIoU in percent over all classes but the last, which is the new one, where the truth is not the new one:
    (...,K,K+1) -> (...)."""
    without = counts.copy()
    without[..., -1, :] = 0
    iou = iou_of(without)[..., :-1]
    present = ~np.isnan(iou)
    result: NDArray[np.float64] = 100 * np.where(present, iou, 0.0).sum(-1) / present.sum(-1)
    return result
