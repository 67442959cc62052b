"""A dataset and its strong categories -> the pixel labels a loss may see. Nothing else hands masks to training.

The rule (arXiv 1711.06828, section 3; details are ours): an image whose image-level label names a weak category is weak, and so is
one without a mask. Of a weak image's mask only pixels of strong categories that the label names may be seen. Everything else is
255, the background too, because its edge would tell the shape of an unlabelled object. Other images are strong, and their whole
mask may be seen. A weak category that the label left out is hidden all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes
from tsss_edge.data.voc import VocDataset

MaskOf = Callable[[str], NDArray[np.uint8]]  # id -> (H,W), what may be seen of a picture's mask; 255 elsewhere


class Supervision:
    """Who is weak, and what may be seen.

    Image-level labels come from image_labels.csv, else Annotations/, else the categories in the mask; from the mask
    they are used at image level only.

    Args:   strong: names of the categories with pixel masks; all others are weak.
    Raises: ValueError: a name is not an object category of the set.
    """

    def __init__(self, dataset: VocDataset, strong: Sequence[str]) -> None:
        self.dataset = dataset
        self.strong = tuple(strong)
        self._strong = frozenset(dataset.classes.ids(self.strong))
        self._tells_weak = np.isin(np.arange(IGNORE + 1), [i for i in dataset.classes.objects if i not in self._strong])
        self._labels: dict[str, frozenset[int]] = {}

    def image_labels(self, image_id: str) -> frozenset[int]:
        """Ids of the object categories in the picture. Raises: DataError: its label or mask is damaged."""
        if image_id not in self._labels:
            self._labels[image_id] = self.dataset.image_labels(image_id)
        return self._labels[image_id]

    def is_weak(self, image_id: str) -> bool:
        """Whether the image-level label names a weak category, or there is no mask: what such a picture shows is known by name alone."""
        return not self.image_labels(image_id) <= self._strong or not self.dataset.mask_path(image_id).is_file()

    def strong_ids(self, split: str) -> tuple[str, ...]:
        """Images of a split that have a mask and whose label names strong categories only, in the list's order."""
        return tuple(i for i in self.dataset.ids(split) if not self.is_weak(i))

    def weak_ids(self, split: str) -> tuple[str, ...]:
        """The other images of a split, in the list's order."""
        return tuple(i for i in self.dataset.ids(split) if self.is_weak(i))

    def drawn(self, image_id: str) -> frozenset[int]:
        """Image-level categories of which `pixel_mask` gives every pixel: no other pixel of the image shows one of them."""
        there = self.dataset.mask_path(image_id).is_file()
        return self.image_labels(image_id) & self._strong if there else frozenset()

    def pixel_mask(self, image_id: str) -> NDArray[np.uint8]:
        """(H,W) uint8: the label where a loss may see it, 255 elsewhere. Fresh memory.

        A weak image without a mask, or without strong categories, gives 255 everywhere; the mask is then not opened.
        Raises: DataError: a mask is damaged.
        """
        visible = self.drawn(image_id)
        if self.is_weak(image_id):
            if not visible:
                return np.full(self.dataset.image_hw(image_id), IGNORE, np.uint8)
        elif not self._tells_weak[self.dataset.mask(image_id)].any():
            return self.dataset.mask(image_id).copy()
        table = np.full(IGNORE + 1, IGNORE, np.uint8)
        table[list(visible)] = list(visible)
        return table[self.dataset.mask(image_id)]


def strong_from_fraction(classes: Classes, fraction: float) -> tuple[str, ...]:
    """Names of the first `fraction` of the object categories by id order (rounded half up).

    Raises: ValueError: the fraction lies outside 0-1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction of strong categories {fraction}: expected 0 to 1")
    count = int(fraction * len(classes.objects) + 0.5)
    return tuple(classes.names[i] for i in classes.objects[:count])
