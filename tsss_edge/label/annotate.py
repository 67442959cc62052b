"""L-Net's foreground + class maps inside it -> pixel annotation Lw of one picture; or a P-Net's answer in its place.

M = probability of object (L-Net). A_c = class map of a category that the image-level label names, masked by M and spread by
self-diffusion (diffusion.py). Where M is high the largest A_c wins, where M is low the background; 255 between, and where two
categories are about equal. Known pixels stay, and no other pixel takes a category of theirs. The networks look at two scales,
plain and mirrored, and M and the A_c are fitted to the picture's edges (edges.py; both measured: docs/results/transfer.md).
"""
# Letters: N batch, C channel, K categories of one picture, H, W network input, h, w grid of the largest scale.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tsss_edge.artifacts import IGNORE, Checkpoint, Preprocess, Struct
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.frozen import keep_features
from tsss_edge.label.diffusion import DiffusionConfig, Floats, affinity, diffuse
from tsss_edge.label.edges import EdgeFit, forget_unseen, sharpened
from tsss_edge.label.foundation import FeatureNet, TextMaps, resized_map
from tsss_edge.label.named import lifted, lifted_shares, mean_peaks, overlooked
from tsss_edge.models import load_classifier, load_model, pick_device
from tsss_edge.ranks import ALONE, World
from tsss_edge.scoring import Mask, Views

SCALES = (1.0, 1.5)
MULTIPLE = 32  # pixels


class LabelConfig(Struct, frozen=True):
    """When a pixel is sure. Chosen on images of strong categories (see docs/results/transfer.md)."""

    background_below: float = 0.3  # M; what lies between is left to P-Net's mean teacher
    object_above: float = 0.6  # M
    peak_floor: float | None = None  # least M, or share, that a category is measured by, see `lifted`; None: as it is
    add_above: float | None = None  # probability from which a category is there though no label says so; None: never
    margin: float = 0.1  # of the best category over the second, as a share of the best
    temperature: float = 1.0  # of the class maps
    sure_above: float = 0.7  # probability, where a P-Net labels
    edges: EdgeFit | None = None  # None: chosen on images with masks
    diffusion: DiffusionConfig | None = DiffusionConfig()  # None: the class maps as they are
    scales: tuple[float, ...] = (
        SCALES  # of the network input, each rounded to what the networks take; the last is the largest
    )
    flip: bool = True  # look at the mirrored picture as well
    affinity: Literal["decoder", "encoder"] = "decoder"  # whose features of L-Net self-diffusion follows; see `seen_by`


class Evidence(Struct, frozen=True):
    """What the networks say about one picture, all on one grid."""

    objectness: Floats  # (h,w), 0-1
    maps: Floats  # (K_all,h,w), logits
    features: Floats  # (C,h,w)
    colors: Floats  # (3,h,w), 0-1


class Annotator:
    """The L-Net and the classifier of a run; `config` says at which scales they look.

    Args:   features: in place of L-Net's in the affinity. maps: in place of the classifier's, which is then not needed.
    Raises: ArtifactError: a checkpoint of another stage, or damaged.
    """

    def __init__(
        self,
        lnet: Checkpoint,
        classifier: Checkpoint | None = None,
        *,
        config: LabelConfig | None = None,
        features: FeatureNet | None = None,
        maps: TextMaps | None = None,
        device: str = "auto",
    ) -> None:
        assert (classifier is None) == (maps is not None)
        self._device, self._config = pick_device(device), config or LabelConfig()
        self._features, self._maps = features, maps
        self._lnet = load_model(lnet).to(self._device)
        self._classifier = load_classifier(classifier).to(self._device) if classifier is not None else None
        for net, checkpoint in ((self._lnet, lnet), (self._classifier, classifier)):
            if net is not None and checkpoint is not None:
                keep_features(net, training_of(checkpoint))

    def foreground(self, views: Views, world: World = ALONE) -> Iterator[tuple[str, Floats]]:
        """(id, M) of each picture: (1,h,w), 0-1. `world`: as `Views.batches`, here and below."""
        for image_id, evidence in self.evidence(views, world):
            yield image_id, evidence.objectness[None]

    def labels(
        self, views: Views, supervision: Supervision, config: LabelConfig, world: World = ALONE
    ) -> Iterator[tuple[str, Mask]]:
        """(id, Lw) of each picture of `views`, in order."""
        for image_id, evidence in self.evidence(views, world):
            yield image_id, annotate(evidence, views, image_id, supervision, config)

    def evidence(self, views: Views, world: World = ALONE) -> Iterator[tuple[str, Evidence]]:
        """(id, evidence) of each picture; objectness and maps are means over scales and mirrored pictures."""
        for ids, x in views.batches(self._device, world):
            parts = [t.float().cpu().numpy() for t in self._see(x)]
            parts[3] /= views.preprocess.scale
            for row, image_id in enumerate(ids):
                objectness, maps, features, colors = (part[row] for part in parts)
                found = Evidence(objectness=objectness[0], maps=maps, features=features, colors=colors)
                yield image_id, self._taught(found, views.picture(image_id))

    def _taught(self, evidence: Evidence, picture: NDArray[np.uint8]) -> Evidence:
        """The evidence with the large networks' part in it, where there are any."""
        size: tuple[int, int] = (evidence.objectness.shape[0], evidence.objectness.shape[1])
        if self._features is not None:
            evidence = msgspec.structs.replace(evidence, features=resized_map(self._features(picture), size))
        if self._maps is not None:
            evidence = msgspec.structs.replace(evidence, maps=resized_map(self._maps(picture), size))
        return evidence

    @torch.inference_mode()
    def _see(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N,3,H,W) -> objectness (N,1,h,w), class maps (N,K_all,h,w), L-Net's features, mean colours."""
        logits, maps, features = zip(*(self._look(x, scale) for scale in self._config.scales), strict=True)
        colors = F.adaptive_avg_pool2d(x, features[-1].shape[-2:])
        return mean_of(logits).sigmoid(), mean_of(maps), features[-1], colors

    def _look(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness logit, class maps and features at one scale, on that scale's stride-8 grid."""
        both = seen_at(x, scale, self._config.flip)
        levels = self._lnet.encoder(both)
        features = self._lnet.decoder(levels)
        assert self._lnet.object_head is not None
        logit = self._lnet.object_head(features)
        if self._config.affinity == "encoder":
            features = seen_by([levels] if isinstance(levels, Tensor) else levels[:2])  # VGG16 has one level
        maps = self._classifier(both).maps if self._classifier is not None else torch.zeros_like(logit)
        return averaged(logit, len(x)), averaged(maps, len(x)), features[: len(x)]


def training_of(checkpoint: Checkpoint) -> TrainConfig:
    """The settings that a checkpoint was trained with."""
    return msgspec.convert(checkpoint.meta.training, TrainConfig)


def seen_by(levels: Sequence[Tensor]) -> Tensor:
    """Encoder features of several strides -> one map on the grid of the first: each level of length 1, so that levels weigh
    the same in a cosine. What a pretrained encoder calls alike, not what L-Net's masks taught its decoder."""
    return torch.cat([F.normalize(resized(level.float(), levels[0].shape[-2:]), dim=1) for level in levels], dim=1)


def seen_at(x: Tensor, scale: float, flip: bool) -> Tensor:
    """(N,3,H,W) network input -> (N,3,h,w), about `scale` times as large, in sizes that the networks take; with `flip` the
    mirrored pictures follow: (2N,3,h,w)."""
    size = [max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in x.shape[-2:]]
    larger = resized(x, (size[0], size[1]))
    return torch.cat([larger, larger.flip(-1)]) if flip else larger


def resized(maps: Tensor, size_hw: Sequence[int]) -> Tensor:
    """(N,C,h,w) -> (N,C,*size_hw), bilinear with half-pixel centres."""
    if tuple(maps.shape[-2:]) == tuple(size_hw):
        return maps
    return F.interpolate(maps, size=tuple(size_hw), mode="bilinear", align_corners=False)


def mean_of(looks: Sequence[Tensor]) -> Tensor:
    """Maps of several scales (N,C,*,*) -> their mean, on the grid of the last."""
    return torch.stack([resized(look, looks[-1].shape[-2:]) for look in looks]).mean(dim=0)


def averaged(pair: Tensor, count: int) -> Tensor:
    """What was said of `seen_at`'s pictures -> the mean of straight and mirrored ones, or as it is: (count,C,h,w)."""
    if len(pair) == count:
        return pair
    straight, mirrored = pair.chunk(2)
    return (straight + mirrored.flip(-1)) / 2


def annotate(evidence: Evidence, views: Views, image_id: str, supervision: Supervision, config: LabelConfig) -> Mask:
    """Lw of one picture: (H,W) uint8 at the picture's own size, holding only 0, 255 and its image-level categories, with
    `config.add_above` also those that the label overlooked."""
    picture, labels = views.dataset.image(image_id), supervision.image_labels(image_id)
    if config.add_above is not None:
        labels |= overlooked(evidence.maps, evidence.objectness, config.add_above)
    lw = transferred(evidence, picture, views.preprocess, labels, config)
    return with_known(lw, supervision, image_id)


def with_known(lw: Mask, supervision: Supervision, image_id: str) -> Mask:
    """Lw with the pixels that may be seen; 255 where it names a category whose pixels are all seen, for it is wrong there (ours)."""
    known = supervision.pixel_mask(image_id)
    possible = np.where(np.isin(lw, list(supervision.drawn(image_id))), np.uint8(IGNORE), lw)
    return np.where(known != IGNORE, known, possible)


def transferred(
    evidence: Evidence, picture: NDArray[np.uint8], preprocess: Preprocess, labels: frozenset[int], config: LabelConfig
) -> Mask:
    """Lw of a picture (H,W,3) RGB of which no pixel is known: (H,W) uint8. `labels`: its image-level categories."""
    foreground = sharpened(evidence.objectness[None], picture, preprocess, config.edges)[0]
    lw = np.full(foreground.shape, IGNORE, np.uint8)
    if labels:
        categories = np.array(sorted(labels), np.int64)
        spread = spread_maps(evidence, categories, config)
        edges = config.edges if len(categories) > 1 else None  # with one category there is no border between two
        best, sure = winner(sharpened(spread, picture, preprocess, edges), config.margin)
        if config.peak_floor is not None:
            foreground = lifted(
                foreground, best, mean_peaks(evidence.objectness, evidence.maps[categories]), config.peak_floor
            )
        inside = (foreground > config.object_above) & sure
        lw[inside] = categories.astype(np.uint8)[best[inside]]
    lw[foreground < config.background_below] = 0
    forget_unseen(lw, preprocess)
    return lw


def spread_maps(evidence: Evidence, categories: NDArray[np.int64], config: LabelConfig) -> Floats:
    """Diffused activation of each category: (K,h,w), >= 0.

    Seeds are `exp((a - max a) / temperature) * M`: each category peaks at 1 where M holds, because the label says it is there.
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


class Relabeller:
    """A first P-Net (a draft), which labels the weak images that it learned from again; self-training, ours.

    Lw errs differently in each picture, so a P-Net that learned from all of them is right where many are wrong. It chooses among
    the background and the categories of the image-level label; unsure pixels stay at 255 (docs/results/transfer.md).
    Raises: ArtifactError: a damaged checkpoint.
    """

    def __init__(self, pnet: Checkpoint, *, config: LabelConfig | None = None, device: str = "auto") -> None:
        self._device, self._config = pick_device(device), config or LabelConfig()
        self._net = load_model(pnet).to(self._device)
        keep_features(self._net, training_of(pnet))

    def foreground(self, views: Views, world: World = ALONE) -> Iterator[tuple[str, Floats]]:
        """(id, probability of any category) of each picture: (1,h,w), 0-1."""
        for image_id, logits in self.logits(views, world):
            yield image_id, 1 - logits.softmax(dim=0)[:1].numpy()

    def labels(
        self, views: Views, supervision: Supervision, config: LabelConfig, world: World = ALONE
    ) -> Iterator[tuple[str, Mask]]:
        """(id, labels) of each picture of `views`, in order, as `Annotator.labels`."""
        for image_id, logits in self.logits(views, world):
            yield image_id, relabelled(logits, views, image_id, supervision, config)

    def logits(self, views: Views, world: World = ALONE) -> Iterator[tuple[str, Tensor]]:
        """(id, (K,h,w) logits on the CPU) of each picture of `views`, in order: means over scales and mirrored pictures."""
        for ids, x in views.batches(self._device, world):
            yield from zip(ids, self._see(x).cpu(), strict=True)

    @torch.inference_mode()
    def _see(self, x: Tensor) -> Tensor:
        looks = (self._net(seen_at(x, s, self._config.flip)).logits.float() for s in self._config.scales)
        return mean_of([averaged(look, len(x)) for look in looks])


def relabelled(logits: Tensor, views: Views, image_id: str, supervision: Supervision, config: LabelConfig) -> Mask:
    """A draft's (K,h,w) logits of one picture -> its labels, as `annotate`."""
    categories = [0, *sorted(supervision.image_labels(image_id))]
    picture, shares = views.dataset.image(image_id), logits[categories].softmax(dim=0).numpy()
    belief = sharpened(shares, picture, views.preprocess, config.edges)
    if config.peak_floor is not None:
        belief = lifted_shares(belief, mean_peaks(shares[1:], shares[1:]), config.peak_floor)
    found = np.array(categories, np.uint8)[belief.argmax(axis=0)]
    found[belief.max(axis=0) <= config.sure_above] = IGNORE
    forget_unseen(found, views.preprocess)
    return with_known(found, supervision, image_id)
