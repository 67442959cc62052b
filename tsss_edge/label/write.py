"""A run + a set -> pixel annotations of its weak images, as masks in VOC layout.

From an L-Net and its classifier: Lw. From a P-Net: a second, better round. Nothing is trained here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tsss_edge.artifacts import IGNORE, Checkpoint, Preprocess, Struct
from tsss_edge.data.ids import check_list_name, place
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.disk import settle_all
from tsss_edge.drawing.sheet import tile, write_sheet
from tsss_edge.errors import ArtifactError
from tsss_edge.files import read_json, write_bytes, write_json
from tsss_edge.label.annotate import Annotator, LabelConfig, Relabeller
from tsss_edge.label.edges import choose_edges
from tsss_edge.label.foundation import FeatureNet, Feeding, TextMaps
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.models import pick_device
from tsss_edge.ranks import gathered, held_for_all, join, meet, this_process
from tsss_edge.scoring import Mask, Views, object_truth
from tsss_edge.segment import SHEET

MANIFEST = "manifest.json"  # of a folder of labels: how they were made
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
    source: Path | None = None,
    config: LabelConfig | None = None,
    teachers: Teachers | None = None,
    device: str = "auto",
) -> LabelReport:
    """Annotate the weak images of a split: out/SegmentationClass/*.png, manifest.json, contact_sheet.png, lists.

    Under torchrun each process annotates its part of the pictures; the masks are those of one process, bit for bit.

    Args:    run: of `train lnet` or `train all`, whose L-Net and classifier label; or of a P-Net, which labels alone.
             strong: categories with masks (default: those the run was trained with).
             source: a set with masks of other categories; its images, else the strong ones, say how the labels are fitted
                 to edges (see edges.py).
             teachers: files of large networks that see in L-Net's or the classifier's place.
    Raises:  DataError: unusable data. ArtifactError: runs that do not belong together, no classifier, `out` is `data`, or
             teachers beside a P-Net, which labels alone.
    """
    if out.resolve() == data.resolve():
        raise ArtifactError(f"{out}: labels would overwrite the masks of --data; choose another --out")
    first, config = find_labeller(run), config or LabelConfig()
    join(pick_device(device).type)
    dataset = VocDataset.open(data)
    _require_same_classes(first, dataset)
    supervision = Supervision(dataset, tuple(first.meta.strong if strong is None else strong))
    labeller, sha256 = _labeller(first, config, teachers or Teachers(), device)
    views = Views(dataset, supervision.weak_ids(split), first.meta.preprocess)
    config = config if config.edges else _with_edges(config, labeller, supervision, source, views.preprocess)
    with held_for_all(out, f"{out}: this folder of labels"):
        return _label_all(labeller, sha256, views, supervision, config, out, split)


def _label_all(
    labeller: Annotator | Relabeller,
    sha256: dict[str, str],
    views: Views,
    supervision: Supervision,
    config: LabelConfig,
    out: Path,
    split: str,
) -> LabelReport:
    dataset, world = supervision.dataset, this_process()
    quality, start = LabelQuality(len(dataset.classes)), time.perf_counter()
    (out / MANIFEST).unlink(missing_ok=True)  # a folder with a manifest is complete, and from here on this one is not
    meet()
    for image_id, mask in labeller.labels(views, supervision, config, world):
        write_mask(label_path(out, image_id), mask)
        quality.update(mask, dataset, image_id)
    quality = LabelQuality.together(gathered(quality))
    seconds = time.perf_counter() - start
    report = LabelReport(
        images=len(views.ids),
        split=split,
        seconds=round(seconds, 2),
        images_per_s=round(len(views.ids) / seconds, 1),
        strong=tuple(supervision.strong),
        sha256=sha256,
        settings=config,
        **quality.scores(),
    )
    settle_all()  # of this process's masks
    meet()
    if world.writes:
        _write_folder(out, dataset, views.ids, split, report)
    meet()
    return report


class Teachers(Struct, frozen=True):
    """Files of large networks (label/foundation.py). `maps` and `text` go together."""

    features: Path | None = None
    maps: Path | None = None
    text: Path | None = None
    feeding: Feeding = Feeding()

    def __post_init__(self) -> None:
        if (self.maps is None) != (self.text is None):
            raise ValueError("class maps of a large network need both: its ONNX file and the rows of its texts")


def _labeller(
    first: Checkpoint, config: LabelConfig, teachers: Teachers, device: str
) -> tuple[Annotator | Relabeller, dict[str, str]]:
    """Who labels, and the hash of every file that has a say."""
    if first.meta.stage == "pnet":
        if teachers != Teachers():
            raise ArtifactError(f"{first.path}: is a P-Net, which labels alone; give an L-Net's run beside --features")
        return Relabeller(first, config=config, device=device), {first.meta.stage: first.sha256}
    features = FeatureNet(teachers.features, teachers.feeding) if teachers.features else None
    maps = None
    if teachers.maps and teachers.text:
        maps = TextMaps(FeatureNet(teachers.maps, teachers.feeding), teachers.text, first.meta.classes)
    sorter = require_classifier(first) if maps is None else None
    hashes: dict[str, str] = {network.meta.stage: network.sha256 for network in (first, sorter) if network is not None}
    hashes |= {"features": features.sha256} if features else {}
    hashes |= {"maps": maps.net.sha256, "text": maps.sha256} if maps else {}
    return Annotator(first, sorter, config=config, features=features, maps=maps, device=device), hashes


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


def label_path(labels: Path, image_id: str) -> Path:
    """Where the labels of a picture stand in a folder of labels."""
    return place(labels / "SegmentationClass", image_id, ".png")


def settings_of(run: Path) -> LabelConfig:
    """How the labels of a `train all` run were made; the default where it has none."""
    made = report_of(run / "labels")
    return made.settings if made else LabelConfig()


def report_of(labels: Path) -> LabelReport | None:
    """What a folder of labels says of itself; None of one that others filled. Raises: ArtifactError: a damaged manifest."""
    manifest = labels / MANIFEST
    return read_json(manifest, LabelReport) if manifest.is_file() else None


def require_current(out: Path, run: Path, config: LabelConfig | None) -> None:
    """Raise ArtifactError when the finished labels in `out` came of other networks, or settings, than they would come of now."""
    made, first, config = read_json(out / MANIFEST, LabelReport), find_labeller(run), config or LabelConfig()
    networks = [first] if first.meta.stage == "pnet" else [first, require_classifier(first)]
    wanted = config if config.edges else msgspec.structs.replace(config, edges=made.settings.edges)
    if made.settings != wanted or made.sha256 != {network.meta.stage: network.sha256 for network in networks}:
        raise ArtifactError(
            f"{out}: holds labels of other networks or settings than are asked for now; delete it and what was trained on it, "
            "or choose another --out"
        )


def find_labeller(run: Path, stages: Sequence[str] = ("lnet", "pnet")) -> Checkpoint:
    """The L-Net of a `train lnet` run or, in its sub-folder, of a `train all` run; else the P-Net of the run.

    Raises: ArtifactError: there is none, or its stage is not one of `stages`.
    """
    inner = run / "lnet"
    checkpoint = Checkpoint.load(inner if inner.is_dir() else run)
    if checkpoint.meta.stage not in stages:
        expected = " or a ".join({"lnet": "L-Net", "pnet": "P-Net"}[stage] for stage in stages)
        raise ArtifactError(f"{checkpoint.path}: is a {checkpoint.meta.stage} checkpoint; expected an {expected}'s")
    return checkpoint


def find_classifier(lnet: Checkpoint) -> Checkpoint | None:
    """The classifier that was trained from an L-Net: in its run, or beside it in a `train all` run."""
    run = lnet.path.parent
    for folder in (run / "classifier", run.parent / "classifier"):
        if (folder / "best.pt").is_file():
            return Checkpoint.load(folder)
    return None


def require_classifier(lnet: Checkpoint) -> Checkpoint:
    """As `find_classifier`. Raises: ArtifactError: there is none, with the command that trains one."""
    found = find_classifier(lnet)
    if found is None:
        raise ArtifactError(
            f"{lnet.path.parent}: this L-Net has no classifier; train one with `tsss-edge train lnet --resume --out "
            f"{lnet.path.parent}` and the options of that run"
        )
    return found


def _require_same_classes(checkpoint: Checkpoint, dataset: VocDataset) -> None:
    if checkpoint.meta.classes != dataset.classes:
        raise ArtifactError(f"{checkpoint.path}: has other classes than {dataset.root}; use its own set")


# -- What is written


class LabelQuality:
    """Unsure pixels, and agreement with true masks where the set has them (for the report alone, never for a loss)."""

    def __init__(self, num_classes: int) -> None:
        self._classes, self._objects = ConfusionMatrix(num_classes), ConfusionMatrix(2)
        self._unsure = self._pixels = 0

    @classmethod
    def together(cls, parts: Sequence[LabelQuality]) -> LabelQuality:
        """That of the pictures of all processes."""
        whole = parts[0]
        whole._classes = ConfusionMatrix.together([part._classes for part in parts])
        whole._objects = ConfusionMatrix.together([part._objects for part in parts])
        whole._unsure, whole._pixels = sum(part._unsure for part in parts), sum(part._pixels for part in parts)
        return whole

    def update(self, mask: Mask, dataset: VocDataset, image_id: str) -> None:
        """Count one picture."""
        self._unsure += int((mask == IGNORE).sum())
        self._pixels += mask.size
        if dataset.mask_path(image_id).is_file():
            truth = np.where(mask == IGNORE, IGNORE, dataset.mask(image_id)).astype(np.uint8)
            self._classes.update(mask, truth)
            self._objects.update(object_truth(mask), object_truth(truth))

    def scores(self) -> dict[str, Any]:
        """`unsure`, `miou` and `object_iou` of a `LabelReport`."""
        measured = bool(self._classes.counts.any())
        return {
            "unsure": round(self._unsure / max(1, self._pixels), 4),
            "miou": self._classes.miou if measured else None,
            "object_iou": float(100 * self._objects.iou[1]) if measured else None,
        }


def _write_folder(out: Path, dataset: VocDataset, ids: Sequence[str], split: str, report: LabelReport) -> None:
    write_bytes(
        out / "ImageSets/Segmentation" / f"{check_list_name(split, str(out))}.txt",
        "".join(f"{i}\n" for i in ids).encode(),
    )
    write_bytes(out / "classes.txt", "".join(f"{name}\n" for name in dataset.classes.names).encode())
    if first := [tile(i, dataset.image(i), read_mask(label_path(out, i))) for i in ids[:SHEET]]:
        write_sheet(out / "contact_sheet.png", first, dataset.classes)
    write_json(out / MANIFEST, report)  # last
