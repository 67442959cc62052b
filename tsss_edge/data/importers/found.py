"""What a foreign set holds, in one form for all formats: pictures, masks that are drawn when asked for, tags, splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.ids import check_id, check_list_name
from tsss_edge.data.pictures import is_picture
from tsss_edge.errors import DataError

UNLABELLED = -1  # a pixel that no annotation covers: background, where the set has one
LARGEST_PICTURE = 200 << 20  # pixels, somewhat more than Pillow opens
VOID = -2  # a pixel that must not count: 255 in our masks

Drawing = Callable[[], NDArray[np.int32]]  # -> (H,W) index into `Found.names`, UNLABELLED or VOID


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture of a foreign set. `tags` are names of classes in the picture, where the set says so apart from masks.

    Raises: DataError: `id` or `split` is no plain name.
    """

    id: str
    picture: Path
    mask: Drawing | None = None
    tags: frozenset[str] | None = None
    split: str | None = None
    group: str = ""
    upright: bool = False  # the mask was drawn on the picture as EXIF turns it

    def __post_init__(self) -> None:
        check_id(self.id, str(self.picture))
        if self.split is not None:
            check_list_name(self.split, str(self.picture))


@dataclass(frozen=True, kw_only=True)
class Found:
    """A foreign set. With `background`, pixels without annotation are a class of their own; else they are ignored."""

    names: tuple[str, ...]
    background: bool
    items: tuple[Item, ...]
    notes: tuple[str, ...] = field(default=())  # what was left out, counted and named


def pictures_below(folder: Path) -> list[Path]:
    """Every picture below a folder, sorted; hidden ones and those in hidden folders are left out."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected pictures there")
    found = (p for p in folder.rglob("*") if is_picture(p) and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def ids_of(paths: Iterable[Path], root: Path, ending: str = "") -> dict[Path, str]:
    """An id for each path: its stem, or its path below `root` with `_` for `/` where two stems agree.

    `ending` is taken off each stem, as `_leftImg8bit`. A path that is named twice is one picture.
    Raises: DataError: a name cannot be an id, or two still agree.
    """
    paths = list(dict.fromkeys(paths))
    counts = Counter(path.stem for path in paths)
    ids = {path: path.stem if counts[path.stem] == 1 else _long_name(path, root) for path in paths}
    ids = {path: check_id(name.removesuffix(ending), str(path)) for path, name in ids.items()}
    twice = [name for name, count in Counter(ids.values()).items() if count > 1]
    if twice:
        raise DataError(f"{root}: two pictures would both be named {twice[0]}; rename one")
    return ids


def _long_name(path: Path, root: Path) -> str:
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-2:])
    return "_".join(inside.with_suffix("").parts)


def annotated_hw(height: int, width: int, where: str) -> tuple[int, int]:
    """The size that an annotation gives its picture. Raises: DataError: no picture is so small or so large."""
    if min(height, width) < 1 or height * width > LARGEST_PICTURE:
        raise DataError(
            f"{where}: its picture is said to be {width}x{height}; expected 1 to {LARGEST_PICTURE >> 20} megapixels"
        )
    return height, width


def named(values: Iterable[str], limit: int = 3) -> str:
    """`a, b, c and 7 more`: how the notes name what was left out."""
    every = list(values)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more
