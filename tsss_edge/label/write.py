"""A run + a set -> pixel annotations of its weak images, as masks in VOC layout.

From an L-Net and its classifier: Lw (annotate.py). From a P-Net: a second, better round (relabel.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Checkpoint, Preprocess, Struct
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError
from tsss_edge.files import read_json, write_bytes, write_json
from tsss_edge.label.annotate import Annotator, LabelConfig
from tsss_edge.label.contact import Pair, contact_sheet
from tsss_edge.label.edges import choose_edges
from tsss_edge.label.relabel import Relabeller
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.train.classifier import train_classifier
from tsss_edge.train.validate import Views, object_truth

MANIFEST = "manifest.json"  # of a folder of labels: how they were made
SHEET = 24  # pictures on the contact sheet
CHOICE = 100  # pictures that choose the filter


class LabelReport(Struct, frozen=True):
    """What was written. `miou` (percent, over the sure pixels of `images`) and `object_iou` only where true masks exist."""

    images: int
    split: str
    seconds: float
    images_per_s: float
    unsure: float  # share of pixels left at 255, 0-1
    miou: float | None
    object_iou: float | None
    strong: tuple[str, ...]
    sha256: dict[str, str]  # of the networks that labelled, by stage
    settings: LabelConfig

    def summary(self) -> str:
        """For a terminal."""
        quality = (
            "" if self.miou is None else f", mIoU {self.miou:.2f}, object IoU {self.object_iou:.2f} against true masks"
        )
        return f"{self.images} masks, {self.images_per_s:.0f} images/s, {100 * self.unsure:.1f}% unsure{quality}"


def write_labels(
    run: Path,
    data: Path,
    out: Path,
    *,
    split: str = "train",
    strong: Sequence[str] | None = None,
    classifier: Path | None = None,
    source: Path | None = None,
    config: LabelConfig | None = None,
    device: str = "auto",
) -> LabelReport:
    """Annotate the weak images of a split: out/SegmentationClass/*.png, manifest.json, contact_sheet.png, lists.

    Args:    run: of `train lnet` or `train all`, whose L-Net and classifier label; or of a P-Net, which labels alone.
             strong: categories with masks (default: those the run was trained with).
             source: a set with masks of other categories; its images, else the strong ones, say how the labels are fitted
                 to edges (see edges.py).
             classifier: its run; default: `classifier` in or beside L-Net's, trained there if there is none.
    Raises:  DataError: unusable data. ArtifactError: runs that do not belong together, or `out` is `data`.
    """
    if out.resolve() == data.resolve():
        raise ArtifactError(f"{out}: labels would overwrite the masks of --data; choose another --out")
    first, config = find_labeller(run), config or LabelConfig()
    dataset = VocDataset.open(data)
    _require_same_classes(first, dataset)
    supervision = Supervision(dataset, tuple(first.meta.strong if strong is None else strong))
    labeller, networks = _labeller(first, data, supervision, classifier, device, config)
    views = Views(dataset, supervision.weak_ids(split), first.meta.preprocess)
    config = config if config.edges else _with_edges(config, labeller, supervision, source, views.preprocess)
    pictures: list[Pair] = []
    tally, start = _Tally(len(dataset.classes)), time.perf_counter()
    (out / MANIFEST).unlink(missing_ok=True)  # a folder with a manifest is complete, and from here on this one is not
    for image_id, mask in labeller.labels(views, supervision, config):
        write_mask(out / "SegmentationClass" / f"{image_id}.png", mask)
        tally.update(mask, dataset, image_id)
        if len(pictures) < SHEET:
            pictures.append((dataset.image(image_id), mask))
    seconds = time.perf_counter() - start
    report = LabelReport(
        images=len(views.ids),
        split=split,
        seconds=round(seconds, 2),
        images_per_s=round(len(views.ids) / seconds, 1),
        strong=tuple(supervision.strong),
        sha256={network.meta.stage: network.sha256 for network in networks},
        settings=config,
        unsure=tally.unsure,
        miou=tally.miou,
        object_iou=tally.object_iou,
    )
    _write_folder(out, dataset, views.ids, split, pictures, report)
    return report


def _labeller(
    first: Checkpoint,
    data: Path,
    supervision: Supervision,
    classifier: Path | None,
    device: str,
    config: LabelConfig,
) -> tuple[Annotator | Relabeller, tuple[Checkpoint, ...]]:
    """Who labels, and the checkpoints it is made of."""
    if first.meta.stage == "pnet":
        return Relabeller(first, device=device, scales=config.scales, flip=config.flip), (first,)
    found = Checkpoint.load(classifier) if classifier else find_classifier(first)
    sorter = found or _new_classifier(first, data, supervision)
    labeller = Annotator(first, sorter, device=device, scales=config.scales, flip=config.flip)
    return labeller, (first, sorter)


def _with_edges(
    config: LabelConfig,
    labeller: Annotator | Relabeller,
    supervision: Supervision,
    source: Path | None,
    preprocess: Preprocess,
) -> LabelConfig:
    """The settings with a filter chosen on strong images, or on those of the source set."""
    if source is not None:
        other = VocDataset.open(source)
        edges = choose_edges(labeller, Views(other, other.ids("train")[:CHOICE], preprocess), other.mask)
    else:
        known = Views(supervision.dataset, supervision.strong_ids("train")[:CHOICE], preprocess)
        edges = choose_edges(labeller, known, supervision.pixel_mask)
    return msgspec.structs.replace(config, edges=edges)


def settings_of(run: Path) -> LabelConfig:
    """How the labels of a `train all` run were made; the default where it has none."""
    manifest = run / "labels" / MANIFEST
    return read_json(manifest, LabelReport).settings if manifest.is_file() else LabelConfig()


def find_labeller(run: Path) -> Checkpoint:
    """The L-Net of a `train lnet` run or, in its sub-folder, of a `train all` run; else the P-Net of the run.

    Raises: ArtifactError: there is neither.
    """
    inner = run / "lnet"
    checkpoint = Checkpoint.load(inner if inner.is_dir() else run)
    if checkpoint.meta.stage not in ("lnet", "pnet"):
        raise ArtifactError(
            f"{checkpoint.path}: is a {checkpoint.meta.stage} checkpoint; expected an L-Net's or P-Net's"
        )
    return checkpoint


def find_lnet(run: Path) -> Checkpoint:
    """As `find_labeller`, but an L-Net. Raises: ArtifactError: there is none."""
    checkpoint = find_labeller(run)
    if checkpoint.meta.stage != "lnet":
        raise ArtifactError(f"{checkpoint.path}: is a {checkpoint.meta.stage} checkpoint; expected an L-Net's")
    return checkpoint


def find_classifier(lnet: Checkpoint) -> Checkpoint | None:
    """The classifier that was trained from an L-Net: in its run, or beside it in a `train all` run."""
    run = lnet.path.parent
    for folder in (run / "classifier", run.parent / "classifier"):
        if (folder / "best.pt").is_file():
            return Checkpoint.load(folder)
    return None


def _new_classifier(lnet: Checkpoint, data: Path, supervision: Supervision) -> Checkpoint:
    """Train one inside the L-Net's run, with the L-Net's settings."""
    settings = msgspec.convert(lnet.meta.training, TrainConfig)
    out = lnet.path.parent / "classifier"
    return train_classifier(settings, data, out, lnet=lnet.path, strong=supervision.strong, resume=True)


def _require_same_classes(checkpoint: Checkpoint, dataset: VocDataset) -> None:
    if checkpoint.meta.classes != dataset.classes:
        raise ArtifactError(
            f"{checkpoint.path}: was trained for other classes than {dataset.root} has; use the set it was made for"
        )


# ---------------------------------------------------------------------------------------------------------------------
# What is written


class _Tally:
    """Unsure pixels, and agreement with true masks where the set has them (for the report alone, never for a loss)."""

    def __init__(self, num_classes: int) -> None:
        self._classes, self._objects = ConfusionMatrix(num_classes), ConfusionMatrix(2)
        self._unsure = self._pixels = 0

    def update(self, mask: NDArray[np.uint8], dataset: VocDataset, image_id: str) -> None:
        self._unsure += int((mask == IGNORE).sum())
        self._pixels += mask.size
        if not dataset.mask_path(image_id).is_file():
            return
        truth = np.where(mask == IGNORE, IGNORE, dataset.mask(image_id)).astype(np.uint8)
        self._classes.update(mask, truth)
        self._objects.update(object_truth(mask), object_truth(truth))

    @property
    def unsure(self) -> float:
        return round(self._unsure / max(1, self._pixels), 4)

    @property
    def miou(self) -> float | None:
        return float(self._classes.miou) if self._classes.counts.any() else None

    @property
    def object_iou(self) -> float | None:
        return float(100 * self._objects.iou[1]) if self._objects.counts.any() else None


def _write_folder(
    out: Path,
    dataset: VocDataset,
    ids: Sequence[str],
    split: str,
    pictures: list[Pair],
    report: LabelReport,
) -> None:
    write_bytes(out / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{i}\n" for i in ids).encode())
    write_bytes(out / "classes.txt", "".join(f"{name}\n" for name in dataset.classes.names).encode())
    if pictures:
        contact_sheet(out / "contact_sheet.png", pictures, dataset.classes.palette)
    write_json(out / MANIFEST, report)  # last
