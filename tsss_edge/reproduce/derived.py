"""Data sets made of another one by links: labels with errors in them, pictures without some categories."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from tsss_edge.data.voc import VocDataset
from tsss_edge.disk import scratch
from tsss_edge.errors import DataError
from tsss_edge.files import write_bytes


def with_noisy_labels(data: Path, out: Path, *, share: float, seed: int) -> Path:
    """A set whose image-level labels of "train" are wrong: of each picture's categories a `share` is dropped, and as many
    labels as that, in the whole set, are added to other pictures at random. "val" keeps its labels. Drawn from `seed`.

    A picture whose last label is dropped keeps none. Returns `out`.
    """
    dataset, rng = VocDataset.open(data), np.random.default_rng(seed)
    labels = {image_id: set(dataset.image_labels(image_id)) for image_id in dataset.ids("train")}
    pairs = [(image_id, label) for image_id, found in labels.items() for label in sorted(found)]
    absent = [(i, c) for i, found in labels.items() for c in dataset.classes.objects if c not in found]
    count = round(share * len(pairs))
    for place in rng.choice(len(pairs), count, replace=False):
        labels[pairs[place][0]].discard(pairs[place][1])
    for place in rng.choice(len(absent), count, replace=False):
        labels[absent[place][0]].add(absent[place][1])
    kept = {image_id: dataset.image_labels(image_id) for image_id in dataset.ids("val")}
    table = "".join(f"{i},{' '.join(str(c) for c in sorted(found))}\n" for i, found in {**labels, **kept}.items())
    _link(dataset, out, {"image_labels.csv": f"id,classes\n{table}"})
    return out


def without_categories(data: Path, out: Path, names: Collection[str]) -> Path:
    """The set without the training pictures that show one of these categories. Returns `out`.

    Raises: ValueError: an unknown category. DataError: no picture is left.
    """
    dataset = VocDataset.open(data)
    unwanted = set(dataset.classes.ids(tuple(names)))
    ids = [i for i in dataset.ids("train") if not unwanted & dataset.image_labels(i)]
    if not ids:
        raise DataError(f"{data}: every training picture shows one of {', '.join(sorted(names))}; leave out fewer")
    _link(dataset, out, {_list("train"): "".join(f"{i}\n" for i in ids)})
    return out


def with_masks(data: Path, out: Path) -> Path:
    """The set itself where every picture of "train" has a mask; else one of those that have one, at `out`. Returns its folder.

    Raises: DataError: none has.
    """
    dataset = VocDataset.open(data)
    every = dataset.ids("train")
    ids = dataset.masked(every)
    if not ids:
        raise DataError(f"{data}: no picture of train has a mask, so there is no supervised network to compare with")
    if len(ids) == len(every):
        return data
    _link(dataset, out, {_list("train"): "".join(f"{i}\n" for i in ids)})
    return out


def narrowed(data: Path, out: Path, *, only: Collection[str] = (), train_list: str = "train") -> Path:
    """The set with another list as "train" and, with `only`, without every picture whose image-level label names another
    category, in "train" and "val": no mask of those can then be looked at, by accident or for a score. Returns `out`.

    Raises: ValueError: an unknown category. DataError: no such list, or no picture is left in one.
    """
    dataset = VocDataset.open(data)
    kept = set(dataset.classes.ids(tuple(only)) or dataset.classes.objects)
    lists = {
        name: [i for i in dataset.ids(list_name) if dataset.image_labels(i) <= kept]
        for name, list_name in (("train", train_list), ("val", "val"))
    }
    if empty := [name for name, ids in lists.items() if not ids]:
        raise DataError(
            f"{data}: no picture of {empty[0]!r} shows only {', '.join(sorted(only))}; name more categories"
        )
    _link(dataset, out, {_list(name): "".join(f"{i}\n" for i in ids) for name, ids in lists.items()})
    return out


def _link_folder(link: Path, folder: Path) -> None:
    """Make `link` point to `folder`; one that points nowhere, because its set was moved, is made anew. Two processes may do it at once.

    Raises: DataError: it points to another folder that is there.
    """
    if link.exists() and link.is_symlink() and link.resolve() != folder:
        raise DataError(f"{link}: is a link to {link.resolve()}, and {folder} is wanted now; name another --out")
    if not link.exists():
        new = scratch(link.parent)
        new.symlink_to(folder, target_is_directory=True)
        new.replace(link)


def _list(split: str) -> str:
    return f"ImageSets/Segmentation/{split}.txt"


def _link(dataset: VocDataset, out: Path, other: Mapping[str, str]) -> None:
    """Pictures, masks and annotations as links, lists and class names as copies; `other`: files with a text of their own.

    Each file is written once: who reads the set while it is made again never sees what the original says there.
    """
    for name in ("JPEGImages", "SegmentationClass", "Annotations"):
        folder = dataset.root / name
        if folder.is_dir():
            _link_folder(out / name, folder.resolve())
    lists = (dataset.root / "ImageSets/Segmentation").glob("*.txt")
    for path in (*lists, dataset.root / "classes.txt", dataset.root / "image_labels.csv"):
        if path.is_file() and path.relative_to(dataset.root).as_posix() not in other:
            write_bytes(out / path.relative_to(dataset.root), path.read_bytes())
    for name, text in other.items():
        write_bytes(out / name, text.encode())
