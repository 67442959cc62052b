"""Anything that segments + a labelled split -> mIoU, pixel accuracy and the IoU of each class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.backends import Backend, open_backend
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.machine import track
from tsss_edge.metrics import ConfusionMatrix, per_class
from tsss_edge.segment import segment_image


class EvalReport(Struct, frozen=True):
    """mIoU and IoU in percent, pixel accuracy 0-1. A class in neither truth nor prediction has no IoU (None)."""

    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    images: int

    def summary(self) -> str:
        """For a terminal."""
        width = max(len(name) for name in self.per_class)
        rows = (f"  {name:<{width}} {_percent(iou)}" for name, iou in self.per_class.items())
        head = f"mIoU {self.miou:.2f}, pixel accuracy {self.pixel_accuracy:.4f}, {self.images} pictures"
        return "\n".join([head, *rows])


def _percent(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f}"


def evaluate(
    model: Path | Backend,
    data: Path,
    split: str = "val",
    *,
    threads: int | None = None,
    trust: bool = False,
    device: str | None = None,
) -> EvalReport:
    """Measure a checkpoint, ONNX file, engine or open back end on a split, at the masks' own resolution.

    Raises: DataError: the set has other classes, or a picture or mask is missing or damaged.
            ArtifactError, UnavailableError: as `open_backend`.
    """
    dataset = VocDataset.open(data)
    ids = dataset.ids(split)
    opened = open_backend(model, device=device, threads=threads, trust=trust) if isinstance(model, Path) else None
    with opened or nullcontext(model) as backend:
        assert not isinstance(backend, Path)
        require_same_classes(backend.classes, dataset)
        matrix = count(backend, dataset, ids)
    return EvalReport(
        miou=require_labelled(matrix, dataset, split).miou,
        pixel_accuracy=matrix.pixel_accuracy,
        per_class=per_class(matrix.iou, dataset.classes.names),
        images=matrix.images,
    )


def count(backend: Backend, dataset: VocDataset, ids: Sequence[str]) -> ConfusionMatrix:
    """Confusion counts of a network on some pictures of a set."""
    matrix = ConfusionMatrix(len(dataset.classes))
    for image_id in track(ids, "evaluate"):
        matrix.update(segment_image(backend, dataset.image(image_id)), dataset.mask(image_id))
    return matrix


def require_same_classes(classes: Classes, dataset: VocDataset) -> None:
    """Raise DataError when a network was trained for other classes than a set has."""
    if classes != dataset.classes:
        raise DataError(
            f"{dataset.root}: classes {_short(dataset.classes)}, but the network was trained for {_short(classes)}; "
            "evaluate on a set with the same classes.txt"
        )


def _short(classes: Classes) -> str:
    return f"{len(classes)} ({', '.join(classes.names[:3])}, ...)"


def require_labelled(matrix: ConfusionMatrix, dataset: VocDataset, split: str) -> ConfusionMatrix:
    """Raise DataError when a split has no labelled pixel at all, so that no score exists."""
    if not matrix.counts.any():
        raise DataError(f"{dataset.root}: split {split} has no labelled pixel (every mask is 255); nothing to measure")
    return matrix
