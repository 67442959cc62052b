"""Several sets as one, whose pictures teach without labels: what a student sees beside the masks, or instead of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE
from tsss_edge.data.ids import ImageId
from tsss_edge.data.voc import VocDataset

HELD_BACK = ("val", "test")  # lists whose pictures no student sees


@dataclass(frozen=True)
class Photographs(VocDataset):
    """The training pictures of several sets as one, without labels. Ids are `N/ID`, N the place of the set."""

    parts: tuple[VocDataset, ...] = ()

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Photographs:
        """Raises: DataError: a folder is not in VOC layout."""
        parts = tuple(VocDataset.open(folder) for folder in folders)
        return cls(root=parts[0].root, classes=parts[0].classes, parts=parts)

    def ids(self, split: str) -> tuple[ImageId, ...]:
        """Of "train": of each part all listed pictures that are in neither its "val" nor its "test"; of one that lists nothing
        else, these. Of another split: the first part's."""
        if split != "train":
            return tuple(ImageId(f"0/{i}") for i in self.parts[0].ids(split))
        return tuple(ImageId(f"{n}/{i}") for n, part in enumerate(self.parts) for i in to_learn_from(part))

    def image_path(self, image_id: str) -> Path:
        """Path of a picture, in its own set."""
        part, name = self._found(image_id)
        return part.image_path(name)

    def mask_path(self, image_id: str) -> Path:
        """Where its mask is, or would be: it says too how the picture is turned."""
        part, name = self._found(image_id)
        return part.mask_path(name)

    def nothing(self, image_id: str) -> NDArray[np.uint8]:
        """A mask without labels, at the picture's size."""
        return np.full(self.image_hw(image_id), IGNORE, np.uint8)

    def _found(self, image_id: str) -> tuple[VocDataset, str]:
        place, _, name = image_id.partition("/")
        return self.parts[int(place)], name


def to_learn_from(part: VocDataset) -> list[str]:
    """Each listed picture once, without those of HELD_BACK; of a set that lists nothing else, all. A list of training pictures may
    leave out those without masks, and they are wanted here."""
    lists = {split: part.ids(split) for split in part.splits}
    held_back = {i for split in HELD_BACK for i in lists.get(split, ())}
    listed = dict.fromkeys(i for ids in lists.values() for i in ids)
    return [i for i in listed if i not in held_back] or list(listed)
