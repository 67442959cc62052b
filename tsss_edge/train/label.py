"""L-Net's foreground + class maps inside it -> pixel annotations Lw for weak images, as masks in VOC layout.

Per picture: M = probability of object (L-Net), A_c = class map of each category that the image-level label names,
normalised and masked by M, spread by self-diffusion (diffusion.py); the largest A_c wins where M is high, background
where M is low, 255 between and where two categories are about equal. Known pixels of strong categories stay as they are.
"""
# Letters: N batch, C channel, K categories of one picture, h = H/8, w = W/8.

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsss_edge.artifacts import IGNORE, Checkpoint, Placement, Struct, write_bytes, write_json
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.models import SegNet, load_model
from tsss_edge.models.classifier import Classifier, load_classifier
from tsss_edge.train.contact import Pair, contact_sheet
from tsss_edge.train.diffusion import DiffusionConfig, Floats, affinity, diffuse
from tsss_edge.train.loader import network_input
from tsss_edge.train.loop import pick_device
from tsss_edge.train.validate import BATCH, Views

STRIDE = 8
SHEET = 24  # pictures on the contact sheet


class LabelConfig(Struct, frozen=True):
    """When a pixel is sure. Chosen on images of strong categories (see docs/results/transfer.md)."""

    background_below: float = 0.4  # M
    object_above: float = 0.6  # M
    margin: float = 0.1  # of the best category over the second, as a share of the best
    temperature: float = 1.0  # of the class maps
    diffusion: DiffusionConfig = DiffusionConfig()


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
    lnet_sha256: str
    classifier_sha256: str
    settings: LabelConfig

    def summary(self) -> str:
        """For a terminal."""
        quality = (
            "" if self.miou is None else f", mIoU {self.miou:.2f}, object IoU {self.object_iou:.2f} against true masks"
        )
        return f"{self.images} masks, {self.images_per_s:.0f} images/s, {100 * self.unsure:.1f}% unsure{quality}"


class _Evidence(Struct, frozen=True):
    """What the networks say about one picture, all on the stride-8 grid."""

    objectness: Floats  # (h,w), 0-1
    maps: Floats  # (K_all,h,w), logits
    features: Floats  # (C,h,w)
    colors: Floats  # (3,h,w), 0-1


def write_labels(
    lnet_run: Path,
    data: Path,
    out: Path,
    *,
    split: str = "train",
    strong: Sequence[str] | None = None,
    classifier: Path | None = None,
    config: LabelConfig | None = None,
    device: str = "auto",
) -> LabelReport:
    """Annotate the weak images of a split: out/SegmentationClass/*.png, manifest.json, contact_sheet.png, lists.

    Args:    lnet_run: run folder of `train lnet` or `train all`.
             strong: categories with masks (default: those L-Net was trained with).
             classifier: its run; default: `classifier` in or beside `lnet_run`, trained there if there is none.
    Raises:  DataError: unusable data. ArtifactError: runs that do not belong together.
    """
    lnet, config = find_lnet(lnet_run), config or LabelConfig()
    dataset = VocDataset.open(data)
    _require_same_classes(lnet, dataset)
    supervision = Supervision(dataset, tuple(lnet.meta.strong if strong is None else strong))
    sorter = Checkpoint.load(classifier) if classifier else _find_classifier(lnet, data, supervision)
    nets = load_model(lnet).to(pick_device(device)), load_classifier(sorter).to(pick_device(device))
    views = Views(dataset, supervision.weak_ids(split), lnet.meta.preprocess)
    pictures: list[Pair] = []
    tally, start = _Tally(len(dataset.classes)), time.perf_counter()
    for image_id, evidence in _evidence(*nets, views):
        mask = annotate(evidence, views, image_id, supervision, config)
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
        lnet_sha256=lnet.sha256,
        classifier_sha256=sorter.sha256,
        settings=config,
        unsure=tally.unsure,
        miou=tally.miou,
        object_iou=tally.object_iou,
    )
    _write_folder(out, dataset, views.ids, split, pictures, report)
    return report


def annotate(
    evidence: _Evidence, views: Views, image_id: str, supervision: Supervision, config: LabelConfig
) -> NDArray[np.uint8]:
    """Lw of one picture: (H,W) uint8 at the picture's own size, holding only 0, 255 and its image-level categories."""
    known = supervision.pixel_mask(image_id)
    categories = np.array(sorted(supervision.image_labels(image_id)), np.int64)
    placement = views.preprocess.place((known.shape[0], known.shape[1]))
    foreground = to_frame(evidence.objectness[None], placement, known.shape)[0]
    lw = np.full(known.shape, IGNORE, np.uint8)
    lw[foreground < config.background_below] = 0
    if len(categories):
        spread = spread_maps(evidence, categories, config)
        best, sure = _winner(to_frame(spread, placement, known.shape), config.margin)
        inside = (foreground > config.object_above) & sure
        lw[inside] = categories.astype(np.uint8)[best[inside]]
    return np.where(known != IGNORE, known, lw)


def spread_maps(evidence: _Evidence, categories: NDArray[np.int64], config: LabelConfig) -> Floats:
    """Diffused activation of each category: (K,h,w), >= 0.

    Seeds are `exp((a - max a) / temperature) * M`: each category peaks at 1 where M holds, for the label says it is there.
    """
    _, height, width = evidence.maps.shape
    maps = evidence.maps[categories] / config.temperature
    peak = np.where(evidence.objectness > config.object_above, maps, -np.inf).max(axis=(1, 2), keepdims=True)
    peak = np.where(np.isfinite(peak), peak, maps.max(axis=(1, 2), keepdims=True))
    seeds: Floats = np.exp(np.minimum(maps - peak, 0.0)) * evidence.objectness
    if len(categories) == 1:
        return seeds  # nothing to decide
    transition = affinity(evidence.features, evidence.colors, config.diffusion)
    spread = diffuse(transition, seeds.reshape(len(categories), -1).T, config.diffusion.alpha)
    return spread.T.reshape(-1, height, width)


def _winner(spread: Floats, margin: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(K,H,W) -> index of the largest, and whether it leads the second by `margin` of itself."""
    best = spread.argmax(axis=0)
    if len(spread) == 1:
        return best, np.ones(best.shape, bool)
    second, first = np.partition(spread, -2, axis=0)[-2:]
    return best, second <= (1 - margin) * first


def to_frame(maps: Floats, placement: Placement, frame_hw: tuple[int, ...]) -> Floats:
    """Grid maps (K,h,w) over the network input -> (K,H,W) over the picture; 0.5 where the network did not look."""
    left, top, columns, rows = placement.target
    x, y, width, height = placement.source
    result = np.full((len(maps), frame_hw[0], frame_hw[1]), 0.5, np.float32)
    for target, grid in zip(result, maps, strict=True):
        wide = cv2.resize(np.ascontiguousarray(grid), (grid.shape[1] * STRIDE, grid.shape[0] * STRIDE))
        target[y : y + height, x : x + width] = cv2.resize(
            wide[top : top + rows, left : left + columns], (width, height)
        )
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Networks


@torch.inference_mode()
def _evidence(lnet: SegNet, classifier: Classifier, views: Views) -> Iterator[tuple[str, _Evidence]]:
    """Each picture of `views` through both networks; objectness and maps averaged with the mirrored picture's."""
    device = next(lnet.parameters()).device
    for start in range(0, len(views.ids), BATCH):
        ids = views.ids[start : start + BATCH]
        x = network_input(
            torch.from_numpy(np.stack([views.picture(i) for i in ids])).to(device), views.preprocess.scale
        )
        features, objectness = _foreground(lnet, x)
        maps = (classifier(x).maps + classifier(x.flip(-1)).maps.flip(-1)) / 2
        colors = torch.nn.functional.avg_pool2d(x, STRIDE) / views.preprocess.scale
        for row, image_id in enumerate(ids):
            parts = (t[row].float().cpu().numpy() for t in (objectness[:, 0], maps, features, colors))
            yield image_id, _Evidence(**dict(zip(("objectness", "maps", "features", "colors"), parts, strict=True)))


def _foreground(lnet: SegNet, x: Tensor) -> tuple[Tensor, Tensor]:
    assert lnet.object_head is not None
    features, mirrored = lnet.features(x), lnet.features(x.flip(-1))
    logit = (lnet.object_head(features) + lnet.object_head(mirrored).flip(-1)) / 2
    return features, logit.sigmoid()


def find_lnet(run: Path) -> Checkpoint:
    """The L-Net of a `train lnet` run or, in its sub-folder, of a `train all` run. Raises: ArtifactError: there is none."""
    inner = run / "lnet"
    checkpoint = Checkpoint.load(inner if inner.is_dir() else run)
    if checkpoint.meta.stage != "lnet":
        raise ArtifactError(f"{checkpoint.path}: is a {checkpoint.meta.stage} checkpoint; expected an L-Net's")
    return checkpoint


def _find_classifier(lnet: Checkpoint, data: Path, supervision: Supervision) -> Checkpoint:
    """`classifier` inside the L-Net's run or beside it; trained inside it, with the L-Net's settings, if there is none."""
    run = lnet.path.parent
    for folder in (run / "classifier", run.parent / "classifier"):
        if (folder / "best.pt").is_file():
            return Checkpoint.load(folder)
    import msgspec

    from tsss_edge.train.classifier import train_classifier

    settings = msgspec.convert(lnet.meta.training, TrainConfig)
    return train_classifier(
        settings, data, run / "classifier", lnet=lnet.path, strong=tuple(supervision.strong), resume=True
    )


def _require_same_classes(lnet: Checkpoint, dataset: VocDataset) -> None:
    if lnet.meta.classes != dataset.classes:
        raise ArtifactError(
            f"{lnet.path}: was trained for other classes than {dataset.root} has; use the set it was made for"
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
        self._objects.update(*(np.where(m == IGNORE, IGNORE, m > 0).astype(np.uint8) for m in (mask, truth)))

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
    write_json(out / "manifest.json", report)  # last: a folder with a manifest is complete
