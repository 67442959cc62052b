"""voc_photos -> the sets of the rehearsal: an engine's old world without one category, a fixed set with it, and a field of photographs.

known/   train and val without the new category, its pictures and its name: what the engine is trained and proven on
fixed/   all val pictures, the new category as the last id: what before and after are measured on
field/   pictures in the order in which the stream sees them; new ones begin after a third
truth/   masks of the field's pictures with the new ids: for labels by script, never for training
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tsss_edge.artifacts import Classes
from tsss_edge.data.voc import SetWriter, VocDataset, write_mask
from tsss_edge.files import write_bytes, write_json

KNOWN = 900  # training pictures of the engine; the rest of those without the new category is the field


def make_sets(data: Path, out: Path, *, new: str, seed: int = 0) -> None:
    """Write the four folders under `out`, unless field.json says that they are there."""
    if (out / "field.json").is_file():
        return
    source = VocDataset.open(data)
    new_id = source.classes.ids((new,))[0]
    table = moved_last(len(source.classes), new_id)
    names = tuple(name for name in source.classes.names if name != new)
    rng = np.random.default_rng(seed)
    train, val = ([str(i) for i in source.ids(split)] for split in ("train", "val"))
    shows = {i for i in (*train, *val) if bool((source.mask(i) == new_id).any())}
    old = [i for i in train if i not in shows]
    rng.shuffle(old)
    known = {"train": old[:KNOWN], "val": [i for i in val if i not in shows]}
    write_set(source, out / "known", Classes(names=names), known, table)
    write_set(source, out / "fixed", Classes(names=(*names, new)), {"val": val}, table)
    field = field_order(old[KNOWN:], [i for i in train if i in shows], rng)
    for number, image_id in enumerate(field):
        write_bytes(out / f"field/{number:05d}.jpg", source.image_path(image_id).read_bytes())
        write_mask(out / f"truth/{number:05d}.png", table[source.mask(image_id)])
    write_json(
        out / "field.json", {"pictures": field, "change": len(field) // 3, "shows_new": sorted(shows & {*field})}
    )


def moved_last(count: int, new_id: int) -> np.ndarray:
    """Table from old to new ids: `new_id` becomes the last, those above it move down by one."""
    table = np.arange(256, dtype=np.uint8)
    table[new_id + 1 : count] -= 1
    table[new_id] = count - 1
    return table


def write_set(
    source: VocDataset, root: Path, classes: Classes, splits: dict[str, list[str]], table: np.ndarray
) -> None:
    """One set with the pictures' own bytes, and masks with the new ids."""
    writer = SetWriter.open(root, classes, {"rehearsal": root.name, "splits": {k: len(v) for k, v in splits.items()}})
    for split, ids in splits.items():
        for image_id in ids:
            mask = table[source.mask(image_id)]
            path = source.image_path(image_id)
            write_bytes(root / "JPEGImages" / path.name, path.read_bytes())
            write_mask(writer.root / f"SegmentationClass/{image_id}.png", mask)
            writer.note(split, image_id, frozenset(int(i) for i in np.unique(mask)))
    writer.finish()


def field_order(old: list[str], new: list[str], rng: np.random.Generator) -> list[str]:
    """A third old pictures alone, then old and new ones mixed by lot."""
    first = round((len(old) + len(new)) / 3)
    rest = [*old[first:], *new]
    rng.shuffle(rest)
    return [*old[:first], *rest]
