"""Pictures and the masks a loss may see -> batches. Counters alone decide the order and the randomness.

Sample `index` of `epoch` has its own generator, seeded with (seed, epoch, index), or with (view, picture) where views repeat. So a
resumed run needs no saved generator, and threads change nothing. Threads and not processes: OpenCV works outside Python's lock, and
pictures stay in one cache.
"""
# Letters: N batch, H height, W width, K class.

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsss_edge.data.picture_cache import PICTURES
from tsss_edge.data.supervision import MaskOf
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.machine import in_order, usable_cores

FINGERPRINTED = 16  # pictures by which a data set is known again
AHEAD = 3  # batches that are made in advance, while the network works; more where more threads make them


def loader_threads() -> int:
    """Threads that read and augment: half the cores, since the network wants the others."""
    return max(1, usable_cores() // 2)


LabelsOf = Callable[[str], frozenset[int]]  # id -> categories in the picture
Augment = Callable[
    [NDArray[np.uint8], NDArray[np.uint8], np.random.Generator], tuple[NDArray[np.uint8], NDArray[np.uint8]]
]


@dataclass(frozen=True)
class Batch:
    """One training batch.

    images: (N,H,W,3) uint8 RGB at network input size. masks: (N,H,W) uint8, 255 = no loss. labels: (N,K) float 0/1,
    the categories of the whole picture. weak: (N,) bool. ids name the pictures.
    """

    images: Tensor
    masks: Tensor
    labels: Tensor
    weak: Tensor
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        images, masks, labels, weak = (
            t.to(device, non_blocking=True) for t in (self.images, self.masks, self.labels, self.weak)
        )
        return Batch(images=images, masks=masks, labels=labels, weak=weak, ids=self.ids)


class Samples:
    """The training pictures of one stage.

    Args:    ids: of an epoch; one that stands there more than once is seen that often, each time in another view.
             mask_of: id -> (H,W) uint8, what a loss may see of the picture (255 elsewhere).
             augment: (image, mask, rng) -> the same at network input size.
             labels_of: id -> categories in the picture; none where the stage does not need them.
             weak: ids of weak pictures; batches mix them with the others in proportion.
             views: of each picture, taken in turn; 0 makes new ones in every epoch. They hang on the picture's id alone, so
             all stages and seeds see the same ones, and what frozen layers say of them can be kept (memory.py).
    """

    def __init__(
        self,
        dataset: VocDataset,
        ids: Sequence[str],
        mask_of: MaskOf,
        augment: Augment,
        *,
        batch: int,
        seed: int = 0,
        labels_of: LabelsOf | None = None,
        weak: frozenset[str] = frozenset(),
        views: int = 0,
    ) -> None:
        if len(ids) < 2:
            raise DataError(f"{dataset.root}: {len(ids)} usable training pictures; at least 2 are needed")
        self.dataset, self.ids = dataset, tuple(ids)
        self.batch = min(batch, len(ids))
        self._mask_of, self._augment, self._labels_of = mask_of, augment, labels_of
        self._seed, self._weak, self._views = seed, weak, views
        self._kept = PICTURES.shelf()
        self._times = Counter(self.ids)
        self._turns = _turns(self.ids)

    @property
    def steps(self) -> int:
        """Batches of an epoch; a last, smaller one is left out (batch norm wants full batches)."""
        return len(self.ids) // self.batch

    def fingerprint(self) -> str:
        """SHA-256 over the ids, and over picture files and visible masks of a few: what a resumed run must find again."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for image_id in self.ids[:: max(1, len(self.ids) // FINGERPRINTED)]:
            digest.update(self.dataset.image_path(image_id).read_bytes())
            digest.update(self._mask_of(image_id).tobytes())
        return digest.hexdigest()

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of an epoch: each once, shuffled, weak and other pictures evenly interleaved."""
        rng = np.random.default_rng((self._seed, epoch))
        is_weak = np.array([image_id in self._weak for image_id in self.ids])
        groups = [rng.permutation(np.flatnonzero(is_weak == kind)) for kind in (False, True)]
        place = np.concatenate([(np.arange(len(g)) + rng.random()) / max(1, len(g)) for g in groups])
        return np.concatenate(groups)[np.argsort(place, kind="stable")]

    def sample(self, epoch: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augmented picture and mask of `index` in `epoch`."""
        image_id = self.ids[index]
        turn = epoch * self._times[image_id] + self._turns[index]  # how often the picture was seen before
        counters = (turn % self._views, crc32(image_id.encode())) if self._views else (self._seed, epoch, index)
        image, mask = self._decoded(image_id)
        return self._augment(image, mask, np.random.default_rng(counters))

    def batches(
        self, epoch: int, *, rank: int = 0, world: int = 1, threads: int | None = None
    ) -> Generator[Batch, None, None]:
        """The batches of an epoch, in order, made ahead by `threads`; with `world` > 1 the share of `rank` in each batch."""
        threads = threads or loader_threads()
        order = self.order(epoch)
        chunks = [order[i * self.batch : (i + 1) * self.batch][rank::world] for i in range(self.steps)]
        ahead = max(AHEAD, threads + 1)
        return in_order(partial(self._make, epoch), chunks, threads=threads, ahead=ahead, name="loader")

    def _make(self, epoch: int, chunk: NDArray[np.int64]) -> Batch:
        pairs = [self.sample(epoch, int(index)) for index in chunk]
        ids = tuple(self.ids[index] for index in chunk)
        labels = torch.zeros(len(ids), len(self.dataset.classes))
        for row, image_id in enumerate(ids if self._labels_of else ()):
            assert self._labels_of is not None
            labels[row, list(self._labels_of(image_id))] = 1.0
        return Batch(
            images=torch.from_numpy(np.stack([image for image, _ in pairs])),
            masks=torch.from_numpy(np.stack([mask for _, mask in pairs])),
            labels=labels,
            weak=torch.tensor([image_id in self._weak for image_id in ids]),
            ids=ids,
        )

    def _decoded(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self._kept.get(image_id, lambda: (self.dataset.image(image_id), self._mask_of(image_id)))


def _turns(ids: Sequence[str]) -> list[int]:
    """Of each place in a list how often its id stands before it."""
    seen: Counter[str] = Counter()
    turns = []
    for image_id in ids:
        turns.append(seen[image_id])
        seen[image_id] += 1
    return turns
