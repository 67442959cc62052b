"""A VOC-layout set <-> WebDataset shards: tar files that a remote store gives in one stream each.

A sample is ID.jpg (the picture's bytes as they are), ID.mask.png (index PNG; of pictures that have one) and ID.json
(`{"split": "train", "labels": [names]}`). Shards are SPLIT-000000.tar, ...; classes.txt lies beside them. Reading takes what
others write too: `seg.png` or a second `png` as the mask, labels as names or ids, or `cls`. The form is WebDataset's:
https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import importlib
import json
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec
import numpy as np

from tsss_edge.artifacts import IGNORE, Classes, Struct
from tsss_edge.data.ids import check_id, check_list_name, place
from tsss_edge.data.importers.pairs import SPLITS
from tsss_edge.data.importers.to_voc import ImportReport
from tsss_edge.data.pictures import IMAGE_SUFFIXES, read_mask, read_size
from tsss_edge.data.voc import SetWriter, VocDataset, classes_of, write_mask
from tsss_edge.disk import MARK, scratch_folder
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.files import parse_json, write_bytes
from tsss_edge.machine import progress

PICTURES_EACH = 1000  # of a shard: some 100 MB of photographs, what a store reads well in one piece
SCHEMES = ("", "file", "http", "https", "gs", "hf")  # not `pipe:`, which would run any command
MASKS = ("mask.png", "seg.png", "png")
Sample = Mapping[str, Any]


class ShardReport(Struct, frozen=True):
    """What was written."""

    out: str
    shards: dict[str, int]  # by split
    pictures: dict[str, int]

    def summary(self) -> str:
        """For a terminal."""
        lists = ", ".join(f"{name} {self.pictures[name]} in {count}" for name, count in self.shards.items())
        return f"{self.out}: pictures in shards: {lists}"


def write_shards(data: Path, out: Path, *, each: int = PICTURES_EACH) -> ShardReport:
    """Write all lists of a set as shards of `each` pictures; a picture of several lists stands in each.

    An error leaves `out` as it was; shards of an earlier call there are replaced.
    Raises: DataError: unusable set, an id with a dot (the form cuts names there), or `out` holds files that are no shards.
    """
    wds, dataset = _library("webdataset"), VocDataset.open(data)
    out.mkdir(parents=True, exist_ok=True)
    names = [p.name for p in out.iterdir() if not p.name.startswith(MARK)]
    if others := [name for name in names if not name.endswith(".tar") and name != "classes.txt"]:
        raise DataError(f"{out}: holds {others[0]}, which is no shard; name a new or empty folder")
    shards: dict[str, int] = {}
    with scratch_folder(out) as scratch:
        for split in dataset.splits:
            ids = dataset.ids(split)
            name = f"{scratch}/{split}-%06d.tar"
            with (
                wds.ShardWriter(name, maxcount=each, verbose=0, encoder=False, mtime=0.0) as writer,
                progress(f"shards of {split}", len(ids)) as tick,
            ):
                for image_id in ids:
                    writer.write(_sample(dataset, image_id, split))
                    tick()
            shards[split] = -(-len(ids) // each)
        write_bytes(scratch / "classes.txt", ("\n".join(dataset.classes.names) + "\n").encode())
        _replace(out, scratch)
    return ShardReport(out=str(out), shards=shards, pictures={split: len(dataset.ids(split)) for split in shards})


def _replace(out: Path, new: Path) -> None:
    """Put the files of `new`, a folder in `out`, in place of the shards there."""
    made = {path.name for path in new.iterdir()}
    for name in made:
        (new / name).replace(out / name)
    for old in out.glob("*.tar"):
        if old.name not in made:
            old.unlink()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{error}; install it with `pip install 'tsss-edge[data]'`") from error


def _sample(dataset: VocDataset, image_id: str, split: str) -> dict[str, Any]:
    if "." in image_id:
        raise DataError(f"{image_id}: a shard cuts names at their first dot; rename this picture")
    path, mask = dataset.image_path(image_id), dataset.mask_path(image_id)
    sample: dict[str, Any] = {"__key__": image_id, path.suffix[1:].lower(): path.read_bytes()}
    if mask.is_file():
        dataset.mask(image_id)  # a damaged one is told here
        sample["mask.png"] = mask.read_bytes()
    names = [dataset.classes.names[i] for i in sorted(dataset.image_labels(image_id))]
    return {**sample, "json": json.dumps({"split": split, "labels": names}).encode()}


def import_shards(source: str, out: Path, *, names: Path | None = None) -> ImportReport:
    """Make a VOC-layout set at `out`. Pictures pass one by one, so that memory does not grow with the set.

    Args:    source: a folder of .tar files, one of them, or an address as `https://host/train-{000000..000031}.tar`.
             names: class names, a line each; without, classes.txt beside the shards.
    Raises:  DataError: nothing there, a sample without picture, or masks and labels that are not of these classes.
    """
    shards = shards_of(source)
    classes = classes_of(names) if names is not None else _classes_beside(shards[0])
    writer = SetWriter.open(out, classes, {"format": "webdataset", "source": source, "names": str(names or "")})
    masks, pixels = 0, np.zeros(IGNORE + 1, np.int64)
    with progress("importing", 0) as tick:
        for sample in _samples(shards):
            counts = _take(sample, writer)
            masks, pixels = masks + (counts is not None), pixels + (0 if counts is None else counts)
            tick()
    if not writer.labels:
        raise DataError(f"{source}: no sample in {len(shards)} shards")
    writer.finish()
    return ImportReport(
        out=str(out),
        classes=classes.names,
        splits=dict(Counter({split: len(ids) for split, ids in writer.splits.items()})),
        masks=masks,
        image_labels=len(writer.labels) - masks,
        pixels={name: int(pixels[i]) for i, name in enumerate(classes.names)},
        notes=(),
    )


def shards_of(source: str) -> list[str]:
    """Files and addresses that a source names, in order. Raises: DataError: none, or of a kind that is not read."""
    if urlsplit(source).scheme not in SCHEMES or source.startswith("-"):
        raise DataError(f"{source}: expected a folder, a .tar or an address of {', '.join(SCHEMES[1:])}")
    if Path(source).is_dir():
        found = [str(path) for path in sorted(Path(source).glob("*.tar"))]
    else:
        found = list(_library("braceexpand").braceexpand(source))
    if not found or (urlsplit(found[0]).scheme == "" and not Path(found[0]).is_file()):
        raise DataError(
            f"{source}: no shard there; expected .tar files, or a name such as train-{{000000..000031}}.tar"
        )
    return found


def _classes_beside(shard: str) -> Classes:
    address = shard.rpartition("/")[0] + "/classes.txt" if "/" in shard else "classes.txt"
    if urlsplit(address).scheme in ("gs", "hf"):
        raise DataError(
            f"{shard}: give the class names with --names; classes.txt is looked for here and on web servers"
        )
    if urlsplit(address).scheme not in ("http", "https"):
        return classes_of(Path(address))
    with tempfile.NamedTemporaryFile(suffix=".txt") as copy:
        try:
            with urlopen(address, timeout=30) as answer:  # http or https, see above
                copy.write(answer.read(1 << 20))
        except OSError as error:
            raise DataError(f"{address}: cannot be read ({error}); give the class names with --names") from error
        copy.flush()
        return classes_of(Path(copy.name))


def _samples(shards: list[str]) -> Iterator[Sample]:
    """Every sample of every shard; what the library says of a damaged one, in our words."""
    wds, inside = _library("webdataset"), _library("webdataset.tariterators")
    for shard in shards:
        try:
            with closing(wds.gopen(shard, "rb")) as stream:
                files = ({**file, "__url__": shard} for file in inside.tar_file_iterator(stream))
                yield from inside.group_by_keys(files)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{shard}: cannot be read ({error})") from error


def _take(sample: Sample, writer: SetWriter) -> np.ndarray | None:
    """Write one sample; pixels of each id in its mask, None where it has none. Raises: DataError: unusable."""
    where = f"{sample['__url__']}, {sample['__key__']}"
    image_id, classes = check_id(sample["__key__"], where), writer.classes
    there = [s for s in IMAGE_SUFFIXES if s[1:] in sample]
    suffix = next((s for s in there if s != ".png"), next(iter(there), None))  # a png beside another is its mask
    if suffix is None:
        raise DataError(f"{where}: no picture; expected one of {', '.join(s[1:] for s in IMAGE_SUFFIXES)}")
    told = _told(sample, where)
    split = check_list_name(str(told.get("split") or _split_of(sample["__url__"])), where)
    picture = place(writer.root / "JPEGImages", image_id, suffix)
    if image_id in writer.labels:  # of another list
        if not picture.is_file() or picture.read_bytes() != sample[suffix[1:]]:
            raise DataError(
                f"{where}: an earlier shard has another picture of this name; make names differ in the whole set"
            )
        writer.note(split, image_id, writer.labels[image_id])
        return None
    write_bytes(picture, sample[suffix[1:]], durable=False)
    sizes = read_size(picture), read_size(picture, upright=True)  # a mask may have been made on either
    name = next((m for m in MASKS if m in sample and f".{m}" != suffix), None)
    if name is None:
        writer.note(split, image_id, _labels(told, classes, where))
        return None
    path = place(writer.root / "SegmentationClass", image_id, ".png")
    write_bytes(path, sample[name], durable=False)
    mask = read_mask(path)
    write_mask(path, mask)
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    if mask.shape not in sizes or counts[len(classes) : IGNORE].any():
        path.unlink()
        raise DataError(
            f"{where}: its mask is {mask.shape}, its picture {sizes[0]}; ids below {len(classes)} and 255 are known"
        )
    shown = frozenset(np.flatnonzero(counts[:IGNORE]).tolist())
    writer.note(split, image_id, _labels(told, classes, where) if "labels" in told else shown)
    return counts


def _told(sample: Sample, where: str) -> dict[str, Any]:
    """What a sample says of itself: its json, else the one class of `cls`."""
    try:
        found = parse_json(sample["json"]) if "json" in sample else {}
        return {"labels": [int(sample["cls"])]} if "cls" in sample and "labels" not in found else dict(found)
    except (ValueError, TypeError, msgspec.DecodeError) as error:
        raise DataError(f"{where}: its json or cls cannot be read ({error})") from error


def _labels(told: dict[str, Any], classes: Classes, where: str) -> frozenset[int]:
    """Image-level labels, names or ids, as ids."""
    try:
        ids = frozenset(i if isinstance(i, int) else classes.names.index(i) for i in told.get("labels", ()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: its labels are not of these classes ({error})") from error
    if not ids <= set(range(len(classes))):
        raise DataError(f"{where}: labels {sorted(ids)}, but the set has ids 0 to {len(classes) - 1}")
    return ids


def _split_of(url: str) -> str:
    """`.../train-000003.tar` -> train; a name that says nothing is taken for training pictures."""
    name = re.split(r"[-_.]", url.rpartition("/")[2])[0].lower()
    return SPLITS.get(name, name if name == "trainval" else "train")
