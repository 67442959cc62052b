"""L-Net's foreground + class maps inside it -> pixel annotation Lw of one picture.

M = probability of object (L-Net), A_c = class map of each category that the image-level label names, normalised and
masked by M, spread by self-diffusion (diffusion.py); the largest A_c wins where M is high, background where M is low,
255 between and where two categories are about equal. Known pixels of strong categories stay as they are. The networks look
at two scales, as such and mirrored, for M is finer and surer that way, and M and the A_c are fitted to the edges of the
picture (guided.py; both measured: docs/results/transfer.md).
"""
# Letters: N batch, C channel, K categories of one picture, H, W network input, h, w grid of the largest scale.

from __future__ import annotations

from collections.abc import Iterator

import cv2
import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tsss_edge.artifacts import IGNORE, Checkpoint, Preprocess, Struct
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.label.diffusion import DiffusionConfig, Floats, affinity, diffuse
from tsss_edge.label.guided import guided
from tsss_edge.models import load_model
from tsss_edge.models.classifier import load_classifier
from tsss_edge.train.loop import pick_device
from tsss_edge.train.memory import keep_features
from tsss_edge.train.validate import Views

STRIDE = 8
SCALES = (1.0, 1.5)  # of the network input, each rounded to what the networks take; the last is the largest
MULTIPLE = 32  # pixels

Mask = NDArray[np.uint8]


class EdgeFit(Struct, frozen=True):
    """How maps are fitted to the picture's edges (guided.py)."""

    radius: float  # of the picture's shorter side; 0 leaves them as the networks see them
    eps: float = 1e-4


class LabelConfig(Struct, frozen=True):
    """When a pixel is sure. Chosen on images of strong categories (see docs/results/transfer.md)."""

    background_below: float = 0.3  # M; what lies between is left to P-Net's mean teacher
    object_above: float = 0.6  # M
    margin: float = 0.1  # of the best category over the second, as a share of the best
    temperature: float = 1.0  # of the class maps
    sure_above: float = 0.7  # probability, where a P-Net labels (relabel.py)
    edges: EdgeFit | None = None  # None: chosen on images with masks (edges.py)
    diffusion: DiffusionConfig | None = DiffusionConfig()  # None: the class maps as they are
    scales: tuple[float, ...] = SCALES  # of the network input
    flip: bool = True  # look at the mirrored picture as well


class Evidence(Struct, frozen=True):
    """What the networks say about one picture, all on one grid."""

    objectness: Floats  # (h,w), 0-1
    maps: Floats  # (K_all,h,w), logits
    features: Floats  # (C,h,w)
    colors: Floats  # (3,h,w), 0-1


class Annotator:
    """The L-Net and the classifier of a run. `scales`, `flip`: how they look, see LabelConfig.

    Raises: ArtifactError: a checkpoint of another stage, or damaged.
    """

    def __init__(
        self,
        lnet: Checkpoint,
        classifier: Checkpoint,
        *,
        device: str = "auto",
        scales: tuple[float, ...] = SCALES,
        flip: bool = True,
    ) -> None:
        self._device, self._scales, self._flip = pick_device(device), scales, flip
        self._lnet = load_model(lnet).to(self._device)
        self._classifier = load_classifier(classifier).to(self._device)
        for net, checkpoint in ((self._lnet, lnet), (self._classifier, classifier)):
            keep_features(net, msgspec.convert(checkpoint.meta.training, TrainConfig))

    def foreground(self, views: Views) -> Iterator[tuple[str, Floats]]:
        """(id, M) of each picture: (1,h,w), 0-1."""
        for image_id, evidence in self.evidence(views):
            yield image_id, evidence.objectness[None]

    def labels(self, views: Views, supervision: Supervision, config: LabelConfig) -> Iterator[tuple[str, Mask]]:
        """(id, Lw) of each picture of `views`, in order."""
        for image_id, evidence in self.evidence(views):
            yield image_id, annotate(evidence, views, image_id, supervision, config)

    def evidence(self, views: Views) -> Iterator[tuple[str, Evidence]]:
        """(id, evidence) of each picture; objectness and maps are means over scales and mirrored pictures."""
        for ids, x in views.batches(self._device):
            parts = [t.float().cpu().numpy() for t in self._see(x)]
            parts[3] /= views.preprocess.scale
            for row, image_id in enumerate(ids):
                objectness, maps, features, colors = (part[row] for part in parts)
                yield image_id, Evidence(objectness=objectness[0], maps=maps, features=features, colors=colors)

    @torch.inference_mode()
    def _see(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N,3,H,W) -> objectness (N,1,h,w), class maps (N,K_all,h,w), L-Net's features, mean colours."""
        looks = [self._look(x, scale) for scale in self._scales]
        features = looks[-1][2]
        grid = (features.shape[-2], features.shape[-1])
        logit, maps = (torch.stack([resized(look[k], grid) for look in looks]).mean(dim=0) for k in (0, 1))
        return logit.sigmoid(), maps, features, F.adaptive_avg_pool2d(x, grid)

    def _look(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness logit, class maps and features at one scale, on that scale's stride-8 grid."""
        x = scaled(x, scale)
        both = torch.cat([x, x.flip(-1)]) if self._flip else x
        features = self._lnet.features(both)
        assert self._lnet.object_head is not None
        logit, maps = self._lnet.object_head(features), self._classifier(both).maps
        if self._flip:
            logit, maps = unflipped(logit), unflipped(maps)
        return logit, maps, features[: len(x)]


def scaled(x: Tensor, scale: float) -> Tensor:
    """(N,3,H,W) network input -> about `scale` times as large, in sizes that the networks take."""
    size = [max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in x.shape[-2:]]
    return resized(x, (size[0], size[1]))


def resized(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(N,C,h,w) -> (N,C,*size_hw), bilinear with half-pixel centres."""
    if (maps.shape[-2], maps.shape[-1]) == size_hw:
        return maps
    return F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)


def unflipped(pair: Tensor) -> Tensor:
    """(2N,C,h,w), the second half of mirrored pictures -> (N,C,h,w), their mean."""
    straight, mirrored = pair.chunk(2)
    return (straight + mirrored.flip(-1)) / 2


def annotate(evidence: Evidence, views: Views, image_id: str, supervision: Supervision, config: LabelConfig) -> Mask:
    """Lw of one picture: (H,W) uint8 at the picture's own size, holding only 0, 255 and its image-level categories."""
    known = supervision.pixel_mask(image_id)
    picture = views.dataset.image(image_id)
    lw = transferred(evidence, picture, views.preprocess, supervision.image_labels(image_id), config)
    return np.where(known != IGNORE, known, lw)


def transferred(
    evidence: Evidence, picture: NDArray[np.uint8], preprocess: Preprocess, labels: frozenset[int], config: LabelConfig
) -> Mask:
    """Lw of a picture (H,W,3) RGB of which no pixel is known: (H,W) uint8. `labels`: its image-level categories."""
    foreground = sharpened(evidence.objectness[None], picture, preprocess, config.edges)[0]
    lw = np.full(foreground.shape, IGNORE, np.uint8)
    lw[foreground < config.background_below] = 0
    if labels:
        categories = np.array(sorted(labels), np.int64)
        spread = spread_maps(evidence, categories, config)
        edges = config.edges if len(categories) > 1 else None  # with one category there is no border between two
        best, sure = winner(sharpened(spread, picture, preprocess, edges), config.margin)
        inside = (foreground > config.object_above) & sure
        lw[inside] = categories.astype(np.uint8)[best[inside]]
    return lw


def sharpened(maps: Floats, picture: NDArray[np.uint8], preprocess: Preprocess, edges: EdgeFit | None) -> Floats:
    """Maps (K,h,w) over the whole network input -> (K,H,W) over the picture (H,W,3), their borders on its edges."""
    wide = to_frame(maps, preprocess, picture.shape[:2])
    if edges is not None and edges.radius > 0:
        x, y, width, height = preprocess.place((picture.shape[0], picture.shape[1])).source
        rows, columns = slice(y, y + height), slice(x, x + width)  # what the networks saw; the rest stays undecided
        radius = max(1, round(edges.radius * min(height, width)))
        wide[:, rows, columns] = guided(wide[:, rows, columns], picture[rows, columns], radius, edges.eps)
    return wide


def spread_maps(evidence: Evidence, categories: NDArray[np.int64], config: LabelConfig) -> Floats:
    """Diffused activation of each category: (K,h,w), >= 0.

    Seeds are `exp((a - max a) / temperature) * M`: each category peaks at 1 where M holds, for the label says it is there.
    """
    _, height, width = evidence.maps.shape
    maps = evidence.maps[categories] / config.temperature
    peak = np.where(evidence.objectness > config.object_above, maps, -np.inf).max(axis=(1, 2), keepdims=True)
    peak = np.where(np.isfinite(peak), peak, maps.max(axis=(1, 2), keepdims=True))
    seeds: Floats = np.exp(np.minimum(maps - peak, 0.0)) * evidence.objectness
    if len(categories) == 1 or config.diffusion is None:
        return seeds  # with one category there is nothing to decide
    transition = affinity(evidence.features, evidence.colors, config.diffusion)
    spread = diffuse(transition, seeds.reshape(len(categories), -1).T, config.diffusion.alpha)
    return spread.T.reshape(-1, height, width)


def winner(spread: Floats, margin: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(K,H,W) -> index of the largest, and whether it leads the second by `margin` of itself."""
    best = spread.argmax(axis=0)
    if len(spread) == 1:
        return best, np.ones(best.shape, bool)
    second, first = np.partition(spread, -2, axis=0)[-2:]
    return best, second <= (1 - margin) * first


def to_frame(maps: Floats, preprocess: Preprocess, frame_hw: tuple[int, ...]) -> Floats:
    """Maps (K,h,w) over the whole network input -> (K,H,W) over the picture; 0.5 where the network did not look."""
    placement = preprocess.place((frame_hw[0], frame_hw[1]))
    left, top, columns, rows = placement.target
    x, y, width, height = placement.source
    result = np.full((len(maps), frame_hw[0], frame_hw[1]), 0.5, np.float32)
    for target, grid in zip(result, maps, strict=True):
        wide = cv2.resize(np.ascontiguousarray(grid), preprocess.size_hw[::-1])
        target[y : y + height, x : x + width] = cv2.resize(
            wide[top : top + rows, left : left + columns], (width, height)
        )
    return result
