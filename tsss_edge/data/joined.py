"""A set and a folder of labelled frames -> one set with both, whose files are links to theirs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tsss_edge.artifacts import Classes
from tsss_edge.data.voc import SetWriter, VocDataset
from tsss_edge.errors import DataError


def join_sets(old: Path, collected: Path, out: Path, *, new_class: str) -> VocDataset:
    """Write a set at `out`: train is the old train and the collected frames that somebody labelled, val is the old val.

    Classes are the old ones, and `new_class` as the last. Of the collected frames image_labels.csv decides; a mask comes along
    where one was accepted.
    Raises: DataError: the collected frames have other classes, none is labelled, or an id stands in both.
    """
    before, added = VocDataset.open(old), VocDataset.open(collected)
    classes = _with_new(before.classes, new_class)
    if added.classes != classes:
        raise DataError(
            f"{collected}: its classes.txt has {', '.join(added.classes.names[-2:])} at its end, expected the classes of {old} "
            f"and then {new_class!r}; type that name on the review page"
        )
    if not (labelled := added.label_table):
        raise DataError(
            f"{collected}: no labelled frame (image_labels.csv); label some with `tsss-edge review {collected}`"
        )
    writer = SetWriter.open(out, classes, {"joined": [str(old.resolve()), str(collected.resolve())]})
    for split in ("train", "val"):
        for image_id in before.ids(split):
            _take(before, writer, split, image_id, before.image_labels(image_id))
    known = set(writer.labels)
    for image_id in added.ids("train"):
        if image_id in labelled:
            if image_id in known:
                raise DataError(f"{collected}: picture {image_id} is in {old} too")
            _take(added, writer, "train", image_id, labelled[image_id])
    writer.finish()
    return VocDataset.open(out)


def _with_new(classes: Classes, new_class: str) -> Classes:
    names = classes.names if classes.names[-1] == new_class else (*classes.names, new_class)
    return Classes(names=names, background=classes.background)


def _take(source: VocDataset, writer: SetWriter, split: str, image_id: str, labels: frozenset[int]) -> None:
    """Link picture and mask, and note the picture's label."""
    path, mask = source.image_path(image_id), source.mask_path(image_id)
    _link(path, writer.root / "JPEGImages" / path.relative_to(source.root / "JPEGImages"))
    target = writer.root / "SegmentationClass" / mask.relative_to(source.root / "SegmentationClass")
    if mask.is_file():
        _link(mask, target)
    else:
        target.unlink(missing_ok=True)  # of an earlier join, before the mask was withdrawn
    writer.note(split, image_id, labels)


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none; in place of an earlier one, whose source may have changed."""
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
