"""What image-level labels are good for beyond their names: a category that is named is there, however little L-Net sees of it,
and one that the classifier is sure of is there, though nobody named it. All ours."""
# Letters: K categories, H, W or h, w grid.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tsss_edge.label.diffusion import Floats
from tsss_edge.models.segnet import pool

PEAK_SHARE = 0.05  # of a class map, its highest values


def overlooked(maps: Floats, objectness: Floats, above: float) -> frozenset[int]:
    """Ids of the object categories that the classifier gives a probability of `above` and more, as it was trained to.

    maps: (K,h,w) logits, background first. objectness: (h,w), 0-1. That a label is *wrong* the classifier cannot say as well: rare
    categories have low probabilities where they are right (docs/results/photos.md).
    """
    scores = pool(torch.from_numpy(maps)[None], torch.from_numpy(objectness)[None, None])[0].sigmoid()
    return frozenset(c for c, score in enumerate(scores.tolist()) if c and score >= above)


def mean_peaks(values: Floats, maps: Floats) -> Floats:
    """Mean of each value map (K,h,w) where its class map (K,h,w) is highest: (K,). One value map (h,w) serves for all."""
    highest = maps >= np.quantile(maps, 1 - PEAK_SHARE, axis=(1, 2), keepdims=True)
    return np.asarray((values * highest).sum(axis=(1, 2)) / highest.sum(axis=(1, 2)), np.float32)


def lifted(foreground: Floats, best: NDArray[np.int64], peaks: Floats, floor: float) -> Floats:
    """M (H,W) as a share of what it is where the pixel's category peaks: the label says that it is there, so M is 1 there (ours).

    L-Net is less sure of categories that it never saw; one that it hardly sees would be labelled as background, and the next
    network would learn that. best: (H,W) index of each pixel's category; peaks: (K,). A peak under `floor` counts as `floor`.
    """
    return np.asarray(np.minimum(foreground / np.maximum(peaks, floor)[best], 1.0), np.float32)


def lifted_shares(shares: Floats, peaks: Floats, floor: float) -> Floats:
    """As `lifted`, of a network that knows the categories: shares (1+K,H,W), background first -> the same, summing to 1.

    The background keeps what the most certain category leaves, and no more than it had. peaks: (K,).
    """
    objects = np.minimum(shares[1:] / np.maximum(peaks, floor)[:, None, None], 1.0)
    background = np.minimum(shares[:1], 1 - objects.max(axis=0, keepdims=True))
    together = np.concatenate([background, objects])
    return np.asarray(together / together.sum(axis=0), np.float32)
