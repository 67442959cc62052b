"""A picture -> which categories it shows, and where: class maps whose foreground part is pooled to image-level scores."""
# Letters: N batch, K class, H height, W width, h = H/8, w = W/8.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.errors import ArtifactError
from tsss_edge.models import SegNet, build_model, load_weights

SHARPNESS = 4.0  # r of the log-mean-exp pooling: 0 is the mean, infinity the maximum


class ClassMaps(NamedTuple):
    """maps: (N,K,h,w) logits of each class in each cell; scores: (N,K) image-level; objectness: (N,1,h,w) logits."""

    maps: Tensor
    scores: Tensor
    objectness: Tensor


class Classifier(nn.Module):
    """A `SegNet` with both heads, its class logits pooled over the cells that its objectness head calls an object.

    Pooling is log-mean-exp (Pinheiro and Collobert, arXiv 1411.6228, equation 6), weighted by objectness (ours): a category
    must show inside M, the foreground of L-Net, not in the background that often comes with it. Column 0 (background) of maps
    and scores means nothing.
    """

    def __init__(self, net: SegNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> ClassMaps:
        """(N,3,H,W) -> maps and scores."""
        maps, objectness = self.net(x)
        return ClassMaps(maps, pool(maps.float(), objectness.detach().float().sigmoid()), objectness)


def pool(maps: Tensor, weight: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """`log(sum(w * exp(r * a)) / sum(w)) / r` over the cells: (N,K,h,w), (N,1,h,w) in 0-1 -> (N,K)."""
    log_weight = (weight + 1e-4).log()  # never 0: a picture without foreground still has a score
    total = torch.logsumexp(log_weight, dim=(2, 3))
    return (torch.logsumexp(sharpness * maps + log_weight, dim=(2, 3)) - total) / sharpness


def load_classifier(checkpoint: Checkpoint) -> Classifier:
    """The classifier of a checkpoint, in eval mode. Raises: ArtifactError: another stage, or weights that do not fit."""
    meta = checkpoint.meta
    if meta.stage != "classifier":
        raise ArtifactError(f"{checkpoint.path}: is a {meta.stage} checkpoint; expected a classifier's")
    classifier = Classifier(build_model(meta.arch, num_classes=len(meta.classes)))
    load_weights(classifier, checkpoint)
    return classifier.eval()
