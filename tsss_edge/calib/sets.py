"""Dataset + CalibSet -> the pictures that calibrate, known by hash, and the held-back ones that methods are judged on.

Both come from the training split, as even over the classes as they can be, and share no picture.
"""
# Letters: H height, W width.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Placement, Preprocess
from tsss_edge.config import CalibSet, load_calib_set, shared_folder
from tsss_edge.data.ids import inside
from tsss_edge.data.voc import VocDataset, read_ids
from tsss_edge.errors import DataError
from tsss_edge.files import sha256_bytes, sha256_file
from tsss_edge.onnxgraph.sessions import RunPicture
from tsss_edge.segment import labels_at, load_picture

T = TypeVar("T")

FEW = 128  # pictures; below, ranges of rare classes are a matter of luck (peers calibrate on 128 to 512)
HELD_BACK = 128  # pictures; a network labels them in a second or two
MOST_SHARE = 5  # at most one in five pictures of the split is held back, so that enough are left to calibrate on
Picture = Callable[[], NDArray[np.uint8]]  # loads (1,H,W,3) uint8 RGB at network input size


@dataclass(frozen=True)
class Chosen:
    """Pictures ready to load, their SHA-256 values in the same order, and where they are from."""

    pictures: tuple[Picture, ...]
    sha256: tuple[str, ...]
    split: str
    seed: int
    random: bool = False
    ids: tuple[str, ...] = ()

    @property
    def list_sha256(self) -> str:
        """SHA-256 of the sorted values, one a line: the same for any order."""
        return sha256_bytes("".join(f"{value}\n" for value in sorted(self.sha256)).encode())

    @property
    def note(self) -> str:
        """A warning in words; empty when there is none."""
        if self.random:
            return "calibrated on NOISE: ranges have nothing to do with pictures, accuracy will suffer"
        few = f"only {len(self.sha256)} calibration pictures, {FEW} or more are advised"
        return few if len(self.sha256) < FEW else ""


def choose(
    dataset: VocDataset,
    spec: Preprocess,
    calib_set: CalibSet,
    *,
    list_folder: Path | None = None,
    without: Collection[str] = (),
) -> Chosen:
    """The pictures of a set, checked to be there.

    Args:    list_folder: where `calib_set.list` is; None: the shared calib/. without: ids not to choose (a list has them all).
    Raises:  DataError: no such split or listed picture, a listed id outside the split, or no pictures at all.
    """
    known = dataset.ids(calib_set.split)
    if calib_set.list:
        ids = _listed(
            inside(list_folder or shared_folder("calib"), calib_set.list, calib_set.name),
            known,
            dataset.root,
            calib_set.split,
        )
    else:
        free = [i for i in known if i not in without]
        size = min(calib_set.size, len(free))
        pick = partial(balanced, dataset) if calib_set.balanced else spread
        ids = pick(free, size, calib_set.seed)
    if not ids:
        raise DataError(f"{dataset.root}: no picture of split {calib_set.split} is left to calibrate on")
    paths = [dataset.image_path(image_id) for image_id in ids]
    return Chosen(
        pictures=tuple(partial(load_picture, path, spec) for path in paths),
        sha256=tuple(sha256_file(path) for path in paths),
        split=calib_set.split,
        seed=calib_set.seed,
        ids=tuple(ids),
    )


def find_set(name_or_path: str) -> tuple[CalibSet, Path]:
    """A set by name or .toml, and the folder its list is in. Raises: ArtifactError: unknown or damaged."""
    found = load_calib_set(name_or_path)
    is_path = Path(name_or_path).suffix == ".toml"
    return found, Path(name_or_path).parent if is_path else shared_folder("calib")


def noise(spec: Preprocess, size: int, seed: int) -> Chosen:
    """Uniform noise instead of pictures, marked as such: for trying the chain without data, never for use."""
    shape = (1, *spec.size_hw, 3)

    def load(index: int) -> NDArray[np.uint8]:
        return np.random.default_rng([seed, index]).integers(0, 256, shape, dtype=np.uint8)

    hashes = tuple(sha256_bytes(load(i).tobytes()) for i in range(size))
    return Chosen(tuple(partial(load, i) for i in range(size)), hashes, split="", seed=seed, random=True)


def balanced(dataset: VocDataset, ids: Sequence[str], size: int, seed: int) -> tuple[str, ...]:
    """`size` of `ids` in which rare classes come as often as they can: sorted ids, the same for the same seed.

    Again and again the class seen least so far gives its next picture, in an order shuffled once by `seed`; a picture
    counts for all of its classes (ours). Pictures without objects come last.
    """
    labels = {image_id: dataset.image_labels(image_id) for image_id in ids}
    order = shuffled(ids, seed)
    waiting = {c: [i for i in reversed(order) if c in labels[i]] for c in dataset.classes.objects}
    seen: Counter[int] = Counter()
    taken: dict[str, None] = {}
    while len(taken) < size and any(waiting.values()):
        rarest = min((c for c in waiting if waiting[c]), key=lambda c: (seen[c], c))
        image_id = waiting[rarest].pop()
        if image_id not in taken:
            taken[image_id] = None
            seen.update(labels[image_id])
    rest = (i for i in order if i not in taken)
    return tuple(sorted([*taken, *(next(rest) for _ in range(size - len(taken)))]))


def spread(ids: Sequence[str], size: int, seed: int) -> tuple[str, ...]:
    """`size` of `ids` at random, sorted."""
    return tuple(sorted(shuffled(ids, seed)[:size]))


def evenly_spaced(items: Sequence[T], count: int) -> Sequence[T]:
    """At most `count` items from all parts of a list: the first ones of a sorted one would be those of a class, or of a video."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """Ids in an order that depends on the seed and on nothing else (not on the order they are listed in)."""
    sorted_ids = sorted(ids)
    return [sorted_ids[i] for i in np.random.default_rng(seed).permutation(len(sorted_ids))]


def _listed(path: Path, known: Sequence[str], data: Path, split: str) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"{path}: no such list of calibration pictures; expected one image id a line")
    ids = read_ids(path)
    if strangers := sorted(set(ids) - set(known)):
        raise DataError(
            f"{path}: {len(strangers)} of {len(ids)} pictures ({strangers[0]}, ...) are not in split {split!r} of {data}; "
            "this calibration set is for another dataset"
        )
    return ids


@dataclass(frozen=True)
class HeldBackPicture:
    """A held-back picture as the network gets it, (1,H,W,3) RGB; its mask, (H,W) at its own size; their relation."""

    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    placement: Placement

    def labels(self, run: RunPicture) -> NDArray[np.uint8]:
        """What a graph says, at the mask's size."""
        return labels_at(run(self.picture), (self.mask.shape[0], self.mask.shape[1]), self.placement)


def held_back_ids(dataset: VocDataset, split: str, *, seed: int, without: Collection[str] = ()) -> tuple[str, ...]:
    """Pictures with masks to choose by: class-balanced, one in five of `split` at most, none of `without`.

    Raises: DataError: no such picture.
    """
    ids = dataset.ids(split)
    free = dataset.masked(i for i in ids if i not in without)
    size = min(HELD_BACK, max(1, len(ids) // MOST_SHARE), len(free))
    if not size:
        raise DataError(
            f"{dataset.root}: no picture with a mask is left in split {split!r} to choose methods and layers by; "
            "name one --method and leave --search out, or calibrate on fewer pictures"
        )
    return balanced(dataset, free, size, seed)


def load_held_back(dataset: VocDataset, ids: Sequence[str], spec: Preprocess) -> list[HeldBackPicture]:
    """Decode and preprocess. Raises: DataError: a picture or mask is damaged."""
    pictures = []
    for image_id in ids:
        mask = dataset.mask(image_id)
        picture = load_picture(dataset.image_path(image_id), spec)
        pictures.append(HeldBackPicture(picture, mask, spec.place((mask.shape[0], mask.shape[1]))))
    return pictures
