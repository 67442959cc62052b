"""A first P-Net (a draft) -> better pixel annotations of the weak images it learned from; self-training, ours.

Lw is made picture by picture and errs differently in each, so the P-Net that learned from all of them is right where
many of them are wrong. It looks at two scales, as such and mirrored, chooses among the background and the categories
that the image-level label names, is fitted to the picture's edges, and leaves at 255 what it is not sure of.
Measured: docs/results/transfer.md.
"""
# Letters: N batch, K class, H, W network input, h, w grid of the largest scale.

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import Tensor

from tsss_edge.artifacts import IGNORE, Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.label.annotate import SCALES, LabelConfig, Mask, resized, scaled, sharpened, unflipped
from tsss_edge.label.diffusion import Floats
from tsss_edge.models import load_model
from tsss_edge.train.loop import pick_device
from tsss_edge.train.memory import keep_features
from tsss_edge.train.validate import Views


class Relabeller:
    """A P-Net as the one who labels. `scales`, `flip`: see LabelConfig. Raises: ArtifactError: a damaged checkpoint."""

    def __init__(
        self, pnet: Checkpoint, *, device: str = "auto", scales: tuple[float, ...] = SCALES, flip: bool = True
    ) -> None:
        self._device, self._scales, self._flip = pick_device(device), scales, flip
        self._net = load_model(pnet).to(self._device)
        keep_features(self._net, msgspec.convert(pnet.meta.training, TrainConfig))

    def foreground(self, views: Views) -> Iterator[tuple[str, Floats]]:
        """(id, probability of any category) of each picture: (1,h,w), 0-1."""
        for image_id, logits in self._logits(views):
            yield image_id, 1 - logits.softmax(dim=0)[:1].numpy()

    def labels(self, views: Views, supervision: Supervision, config: LabelConfig) -> Iterator[tuple[str, Mask]]:
        """(id, labels) of each picture of `views`, in order, as `Annotator.labels`; known pixels stay as they are."""
        for image_id, logits in self._logits(views):
            known = supervision.pixel_mask(image_id)
            categories = [0, *sorted(supervision.image_labels(image_id))]
            picture, shares = views.dataset.image(image_id), logits[categories].softmax(dim=0).numpy()
            belief = sharpened(shares, picture, views.preprocess, config.edges)
            found = np.array(categories, np.uint8)[belief.argmax(axis=0)]
            found[belief.max(axis=0) <= config.sure_above] = IGNORE
            yield image_id, np.where(known != IGNORE, known, found)

    def _logits(self, views: Views) -> Iterator[tuple[str, Tensor]]:
        for ids, x in views.batches(self._device):
            yield from zip(ids, self._see(x).cpu(), strict=True)

    @torch.inference_mode()
    def _see(self, x: Tensor) -> Tensor:
        """(N,3,H,W) -> (N,K,h,w) logits, a mean over scales and mirrored pictures."""
        looks = []
        for scale in self._scales:
            larger = scaled(x, scale)
            both = torch.cat([larger, larger.flip(-1)]) if self._flip else larger
            logits = self._net(both).logits.float()
            looks.append(unflipped(logits) if self._flip else logits)
        size = (looks[-1].shape[-2], looks[-1].shape[-1])
        return torch.stack([resized(look, size) for look in looks]).mean(dim=0)
