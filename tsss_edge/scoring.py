"""Anything that segments + a labelled split -> confusion counts, and from them mIoU, pixel accuracy and class IoU.

`counted` is the one loop that predicts and counts. It serves validation in training, `adapt`, `reproduce`, `eval` and parity.
A PyTorch network sees the pictures in batches, through `Views`. A back end sees them one by one, as in deployment.
"""
# Letters: N batch, K class, H height, W width, h = H/8, w = W/8.

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, Placement, Preprocess, Struct
from tsss_edge.backends import Backend, Outputs, open_backend
from tsss_edge.data.picture_cache import PICTURES
from tsss_edge.data.supervision import MaskOf
from tsss_edge.data.voc import VocDataset
from tsss_edge.drawing.sheet import Tile, tile, write_sheet
from tsss_edge.errors import DataError
from tsss_edge.kernels.preprocess import preprocess as to_input
from tsss_edge.kernels.upsample_argmax import upsample_argmax
from tsss_edge.machine import track
from tsss_edge.metrics import ConfusionMatrix, confusion, miou_of, per_class
from tsss_edge.ranks import ALONE, World, of_all_processes, this_process
from tsss_edge.segment import SHEET, labels_at, run_network

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tsss_edge.models import Heads

BATCH = 16

Mask = NDArray[np.uint8]


class EvalReport(Struct, frozen=True):
    """mIoU and IoU in percent, pixel accuracy 0-1. A class in neither truth nor prediction has no IoU (None)."""

    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    images: int

    def summary(self) -> str:
        """For a terminal."""
        width = max(len(name) for name in self.per_class)
        rows = (
            f"  {name:<{width}} {'     -' if iou is None else f'{iou:6.2f}'}" for name, iou in self.per_class.items()
        )
        head = f"mIoU {self.miou:.2f}, pixel accuracy {self.pixel_accuracy:.4f}, {self.images} pictures"
        return "\n".join([head, *rows])


def evaluate(
    model: Path | Backend,
    data: Path,
    split: str = "val",
    *,
    threads: int | None = None,
    trust: bool = False,
    device: str | None = None,
    sheet: Path | None = None,
) -> EvalReport:
    """Measure a checkpoint, ONNX file, engine or open back end on a split, at the masks' own resolution.

    Args:    sheet: a PNG or JPEG with the worst pictures, their labels and their truth, worst first.
    Raises: DataError: the set has other classes, or a picture or mask is missing or damaged.
            ArtifactError, UnavailableError: as `open_backend`.
    """
    dataset = VocDataset.open(data)
    ids = dataset.ids(split)
    opened = open_backend(model, device=device, threads=threads, trust=trust) if isinstance(model, Path) else None
    with opened or nullcontext(model) as backend:
        assert not isinstance(backend, Path)
        require_same_classes(backend.classes, dataset)
        answers = backend_answers(backend, pictures(dataset, ids, "evaluate"))
        matrix = count_with_sheet(answers, dataset, sheet).classes
    return EvalReport(
        miou=require_labelled(matrix, dataset, split).miou,
        pixel_accuracy=matrix.pixel_accuracy,
        per_class=per_class(matrix.iou, dataset.classes.names),
        images=matrix.images,
    )


def count_with_sheet(answers: Iterable[Answer], dataset: VocDataset, sheet: Path | None) -> SplitCounts:
    """`count` on a set's masks; the worst pictures go to `sheet`."""
    counts, worst = SplitCounts(len(dataset.classes)), Worst()
    for truth, (answer,) in counted([(answers, counts)], dataset.mask):
        if sheet is not None:
            worst.add(answer, truth, dataset)
    if sheet is not None and worst.tiles:
        write_sheet(sheet, worst.tiles, dataset.classes)
    return counts


class Worst:
    """The `SHEET` pictures of the lowest mIoU, as tiles."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, Tile]] = []

    def add(self, answer: Answer, truth: Mask, dataset: VocDataset) -> None:
        """Keep a picture while it is among the worst. One without a labelled pixel is not."""
        miou = float(miou_of(confusion(answer.labels, truth, len(dataset.classes))))
        if np.isnan(miou) or (len(self._kept) == SHEET and miou >= self._kept[-1][0]):
            return
        text = f"{answer.id}  mIoU {miou:.1f}"
        self._kept.append((miou, tile(text, dataset.image(answer.id), answer.labels, truth)))
        self._kept.sort(key=lambda pair: pair[0])
        del self._kept[SHEET:]

    @property
    def tiles(self) -> list[Tile]:
        """Worst first."""
        return [kept for _, kept in self._kept]


def require_same_classes(classes: Classes, dataset: VocDataset) -> None:
    """Raise DataError when a network was trained for other classes than a set has."""
    if classes != dataset.classes:
        theirs, ours = (f"{len(c)} ({', '.join(c.names[:3])}, ...)" for c in (dataset.classes, classes))
        raise DataError(
            f"{dataset.root}: classes {theirs}, but the network was trained for {ours}; "
            "evaluate on a set with the same classes.txt"
        )


def require_labelled(matrix: ConfusionMatrix, dataset: VocDataset, split: str) -> ConfusionMatrix:
    """Raise DataError when a split has no labelled pixel at all, so that no score exists."""
    if not matrix.counts.any():
        raise DataError(f"{dataset.root}: split {split} has no labelled pixel (every mask is 255); nothing to measure")
    return matrix


# ---------------------------------------------------------------------------------------------------------------------
# Predict


@dataclass(frozen=True)
class Answer:
    """What a network says of one picture. `outputs` may be the back end's own memory until its next picture."""

    id: str
    outputs: Outputs  # of a batch of one
    frame_hw: tuple[int, int]
    placement: Placement

    @cached_property
    def labels(self) -> Mask:
        """(H,W) class ids at the picture's size. Raises: ArtifactError: the network has no class output."""
        return labels_at(self.outputs, self.frame_hw, self.placement)

    @property
    def objects(self) -> Mask:
        """(H,W) at the picture's size, 1 where objectness is above 0."""
        objectness = self.outputs["objectness"][0]
        return upsample_argmax(np.concatenate([np.zeros_like(objectness), objectness]), self.frame_hw, self.placement)

    @property
    def cells(self) -> Mask | None:
        """(h,w), 1 where objectness is above 0; None where the network has no objectness output."""
        return (self.outputs["objectness"][0, 0] > 0).astype(np.uint8) if "objectness" in self.outputs else None

    @property
    def finite(self) -> bool:
        """Whether no output holds NaN or infinity."""
        return all(bool(np.isfinite(array).all()) for array in self.outputs.values() if array.dtype.kind == "f")


def pictures(dataset: VocDataset, ids: Sequence[str], what: str) -> Iterator[tuple[str, Mask]]:
    """(id, (H,W,3) uint8 RGB) of pictures of a set, in order, with a progress bar."""
    return ((image_id, dataset.image(image_id)) for image_id in track(ids, what))


def backend_answers(backend: Backend, shown: Iterable[tuple[str, Mask]]) -> Iterator[Answer]:
    """What a back end says of each picture, (id, (H,W,3) uint8 RGB), in order."""
    for image_id, image in shown:
        frame_hw = (image.shape[0], image.shape[1])
        yield Answer(image_id, run_network(backend, image), frame_hw, backend.preprocess.place(frame_hw))


def net_answers(net: nn.Module, views: Views, *, flip: bool = False, world: World = ALONE) -> Iterator[Answer]:
    """What a PyTorch network that gives `Heads` says of each picture, in order. `flip`, `world`: as `Views.predict`."""
    for image_id, heads in views.predict(net, flip=flip, world=world):
        outputs = {name: head.numpy()[None] for name, head in heads._asdict().items() if head is not None}
        height, width = views.mask(image_id).shape
        yield Answer(image_id, outputs, (height, width), views.preprocess.place((height, width)))


class Views:
    """Pictures of a set as network input, and their masks, kept in memory while they fit."""

    def __init__(self, dataset: VocDataset, ids: Sequence[str], preprocess: Preprocess) -> None:
        self.dataset, self.ids, self.preprocess = dataset, tuple(ids), preprocess
        self._pictures, self._masks = PICTURES.shelf(), PICTURES.shelf()

    def picture(self, image_id: str) -> NDArray[np.uint8]:
        """(H,W,3) uint8 RGB at network input size."""
        return self._pictures.get(
            image_id, lambda: (to_input(self.dataset.image(image_id), self.preprocess, bgr=False),)
        )[0]

    def mask(self, image_id: str) -> Mask:
        """(H,W) uint8 at the mask's own size."""
        return self._masks.get(image_id, lambda: (self.dataset.mask(image_id),))[0]

    def batches(self, device: torch.device, world: World = ALONE) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """(ids, their network input (N,3,H,W) float32 on `device`), in order; of a world of several, this process's batches."""
        import torch

        from tsss_edge.models import network_input

        for start in range(world.rank * BATCH, len(self.ids), world.size * BATCH):
            ids = self.ids[start : start + BATCH]
            batch = torch.from_numpy(np.stack([self.picture(i) for i in ids])).to(device)
            yield ids, network_input(batch, self.preprocess.scale)

    def predict(self, net: nn.Module, *, flip: bool = False, world: World = ALONE) -> Iterator[tuple[str, Heads]]:
        """(id, heads of that picture without the batch dimension, float32 on the CPU), in order.

        `flip` averages with the mirrored picture. `world`: as `batches`.
        """
        from tsss_edge.models import Heads

        device = next(net.parameters()).device
        for ids, x in self.batches(device, world):
            heads = _heads(net, x)
            if flip:
                mirrored = _heads(net, x.flip(-1))
                heads = [
                    None if a is None or b is None else (a + b.flip(-1)) / 2
                    for a, b in zip(heads, mirrored, strict=True)
                ]
            for row, image_id in enumerate(ids):
                yield image_id, Heads(*(head[row] if head is not None else None for head in heads))


def _heads(net: nn.Module, x: Tensor) -> list[Tensor | None]:
    import torch

    with torch.inference_mode():
        return [head.float().cpu() if head is not None else None for head in net(x)]


# ---------------------------------------------------------------------------------------------------------------------
# Count


class SplitCounts:
    """Confusion counts of one network. `classes`: of its labels. `objects`: of its objectness against "any class but 0"."""

    def __init__(self, num_classes: int, heads: Collection[str] = ("classes",)) -> None:
        """Args: heads: which of "classes" and "objects" are counted."""
        self.classes, self.objects = ConfusionMatrix(num_classes), ConfusionMatrix(2)
        self._heads = heads

    def add(self, answer: Answer, truth: Mask) -> None:
        """Count one picture."""
        if "classes" in self._heads:
            self.classes.update(answer.labels, truth)
        if "objects" in self._heads:
            self.objects.update(answer.objects, object_truth(truth))

    @property
    def object_iou(self) -> float:
        """IoU of "object" in percent; NaN when there is none."""
        return float(100 * self.objects.iou[1])


def object_truth(mask: Mask) -> Mask:
    """A mask of categories as a class-agnostic one: 1 object, 0 background, 255 stays."""
    return np.where(mask == IGNORE, IGNORE, mask > 0).astype(np.uint8)


def counted(
    networks: Sequence[tuple[Iterable[Answer], SplitCounts]], mask_of: MaskOf
) -> Iterator[tuple[Mask, tuple[Answer, ...]]]:
    """Let networks answer the same pictures side by side and count each; yield (truth (H,W), their answers) of each picture."""
    for answers in zip(*(stream for stream, _ in networks), strict=True):
        truth = mask_of(answers[0].id)
        for answer, (_, counts) in zip(answers, networks, strict=True):
            counts.add(answer, truth)
        yield truth, answers


def count(answers: Iterable[Answer], mask_of: MaskOf, counts: SplitCounts) -> SplitCounts:
    """`counted` to the end, for one network."""
    for _ in counted([(answers, counts)], mask_of):
        pass
    return counts


def class_matrix(net: nn.Module, views: Views) -> ConfusionMatrix:
    """What the class head says of pictures, counted against their masks; by all processes together."""
    answers = net_answers(net, views, world=this_process())
    return of_all_processes(count(answers, views.mask, SplitCounts(len(views.dataset.classes))).classes)


def object_iou(net: nn.Module, views: Views) -> float:
    """IoU in percent of objectness above 0 against "any object class" in the masks; NaN when there is no object. By all
    processes together."""
    answers = net_answers(net, views, world=this_process())
    matrix = of_all_processes(count(answers, views.mask, SplitCounts(2, ("objects",))).objects)
    return float(100 * matrix.iou[1])
