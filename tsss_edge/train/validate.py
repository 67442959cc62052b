"""A network and a labelled split -> scores at the masks' own resolution, with the preprocessing of deployment."""
# Letters: N batch, K class, H height, W width.

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tsss_edge.artifacts import IGNORE, Preprocess
from tsss_edge.data.voc import VocDataset
from tsss_edge.kernels.preprocess import preprocess as to_input
from tsss_edge.kernels.upsample_argmax import upsample_argmax
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.models import Heads
from tsss_edge.train.loader import CACHE_BYTES, network_input

BATCH = 16


class Views:
    """Pictures of a set as network input, kept in memory while they fit."""

    def __init__(self, dataset: VocDataset, ids: Sequence[str], preprocess: Preprocess) -> None:
        self.dataset, self.ids, self.preprocess = dataset, tuple(ids), preprocess
        self._cache: dict[str, NDArray[np.uint8]] = {}
        self._masks: dict[str, NDArray[np.uint8]] = {}

    def picture(self, image_id: str) -> NDArray[np.uint8]:
        """(h,w,3) uint8 RGB at network input size."""
        if image_id not in self._cache:
            view = to_input(self.dataset.image(image_id), self.preprocess, bgr=False)
            if len(self._cache) * view.nbytes >= CACHE_BYTES:
                return view
            self._cache[image_id] = view
        return self._cache[image_id]

    def mask(self, image_id: str) -> NDArray[np.uint8]:
        """(H,W) uint8 at the mask's own size."""
        if image_id not in self._masks:
            self._masks[image_id] = self.dataset.mask(image_id)
        return self._masks[image_id]

    def batches(self, device: torch.device) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """(ids, their network input (N,3,H,W) float32 on `device`), in order."""
        for start in range(0, len(self.ids), BATCH):
            ids = self.ids[start : start + BATCH]
            pictures = torch.from_numpy(np.stack([self.picture(i) for i in ids])).to(device)
            yield ids, network_input(pictures, self.preprocess.scale)

    def predict(self, net: nn.Module, *, flip: bool = False) -> Iterator[tuple[str, Heads]]:
        """(id, heads of that picture without the batch dimension, float32 on the CPU), in order.

        `flip` averages with the mirrored picture.
        """
        device = next(net.parameters()).device
        for ids, x in self.batches(device):
            logits, objectness = _heads(net, x)
            if flip:
                mirrored = _heads(net, x.flip(-1))
                logits, objectness = (_mean_flipped(a, b) for a, b in zip((logits, objectness), mirrored, strict=True))
            for row, image_id in enumerate(ids):
                yield image_id, Heads(*(t[row] if t is not None else None for t in (logits, objectness)))

    def labels(self, logits: Tensor, image_id: str) -> NDArray[np.uint8]:
        """(K,H/8,W/8) logits of a picture -> (H,W) uint8 at its mask's size."""
        size = self.mask(image_id).shape
        return upsample_argmax(logits.numpy(), (size[0], size[1]), self.preprocess.place((size[0], size[1])))


@torch.inference_mode()
def _heads(net: nn.Module, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    heads: Heads = net(x)
    return tuple(t.float().cpu() if t is not None else None for t in heads)  # type: ignore[return-value]


def _mean_flipped(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return (a + b.flip(-1)) / 2 if a is not None and b is not None else None


def object_truth(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask of categories as a class-agnostic one: 1 object, 0 background, 255 stays."""
    return np.where(mask == IGNORE, IGNORE, mask > 0).astype(np.uint8)


def class_scores(net: nn.Module, views: Views) -> dict[str, float]:
    """mIoU in percent and pixel accuracy 0-1 of the class head."""
    matrix = ConfusionMatrix(len(views.dataset.classes))
    for image_id, heads in views.predict(net):
        assert heads.logits is not None
        matrix.update(views.labels(heads.logits, image_id), views.mask(image_id))
    return {"miou": float(matrix.miou), "pixel_accuracy": float(matrix.pixel_accuracy)}


def object_iou(net: nn.Module, views: Views) -> float:
    """IoU in percent of objectness above 0 against "any object class" in the masks; NaN when there is no object."""
    matrix = ConfusionMatrix(2)
    for image_id, heads in views.predict(net):
        assert heads.objectness is not None
        two = torch.cat([torch.zeros_like(heads.objectness), heads.objectness])
        matrix.update(views.labels(two, image_id), object_truth(views.mask(image_id)))
    return float(100 * matrix.iou[1])
