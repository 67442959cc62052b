"""A segmentation set of YOLO (Ultralytics: data.yaml, images/, labels/*.txt) -> `Found`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.importers.draw import paint, yolo_polygon
from tsss_edge.data.importers.found import Found, Item, ids_of, named, pictures_below
from tsss_edge.data.pictures import is_picture, read_size
from tsss_edge.data.voc import read_text
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.files import edge

SPLITS = ("train", "val", "test")


def read_yolo(source: Path, *, tags_only: bool = False) -> Found:
    """Read a folder with data.yaml (or that file). Pictures without a label file hold background only.

    Raises: DataError: no data.yaml, unknown classes, lines that are boxes (unless `tags_only`) or damaged.
    """
    yaml = source if source.is_file() else _yaml_of(source)
    config = _yaml(yaml)
    names = _names(config, yaml)
    root = _root(config, yaml)
    splits, notes = _splits(config, root)
    if not splits:
        raise DataError(f"{yaml}: names no pictures; expected train: and val: with folders or lists below {root}")
    ids = ids_of(splits, root)
    items = [
        Item(
            id=ids[path],
            picture=path,
            mask=None if tags_only else functools.partial(_draw, path, len(names)),
            tags=frozenset(names[i] for i, _ in _lines(path, len(names))) if tags_only else None,
            split=split,
            group=str(path.parent),
            upright=True,  # Ultralytics turns pictures by EXIF before it scales the corners
        )
        for path, split in splits.items()
    ]
    return Found(names=names, background=True, items=tuple(items), notes=notes)


def _yaml_of(source: Path) -> Path:
    """data.yaml, else the first YAML file with names: a training run leaves args.yaml beside it."""
    found = [source / "data.yaml", *sorted(source.glob("*.y*ml"))]
    return next((p for p in found if p.is_file() and "names" in read_text(p)), found[-1])


def _splits(config: dict[str, Any], root: Path) -> tuple[dict[Path, str], tuple[str, ...]]:
    """The list of each picture; and notes. A picture of two lists (Ultralytics' own coco128-seg) stays in the first."""
    splits: dict[Path, str] = {}
    notes: list[str] = []
    for split in SPLITS:
        places = _places(config, split)
        if split == "test" and places and not any(_place(text, root) for text in places):
            notes.append(f"the test pictures ({', '.join(places)}) are not there and are left out")
            continue
        found = _pictures(places, root)
        if twice := [path.name for path in found if path in splits]:
            notes.append(
                f"{len(twice)} pictures of {split} stand in an earlier list too and stay there: {named(twice)}"
            )
        splits = dict.fromkeys(found, split) | splits
    return splits, tuple(notes)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{error}; install it with `pip install 'tsss-edge[data]'`") from error
    if not path.is_file():
        raise DataError(f"{path}: no such file; a YOLO set has a data.yaml with names, train and val")
    with edge(path, "YAML file", "mend it", DataError):
        config = yaml.safe_load(read_text(path))
    if not isinstance(config, dict) or "names" not in config:
        raise DataError(f"{path}: not a data file of YOLO; expected names, train and val in it")
    return config


def _names(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = config["names"]
    if isinstance(names, dict):
        names = {int(key) if str(key).isdecimal() else key: name for key, name in names.items()}  # '0' of some tools
        if set(names) != set(range(len(names))):
            raise DataError(f"{path}: names have ids {list(names)}; expected 0 to {len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: names are {names!r}; expected a list")
    return tuple(str(name) for name in names)


def _root(config: dict[str, Any], yaml: Path) -> Path:
    named = yaml.parent / str(config.get("path") or ".")
    return named if named.is_dir() else yaml.parent


def _places(config: dict[str, Any], split: str) -> list[str]:
    """What data.yaml says of a list: none, one or several folders and text files."""
    keys = ("val", "valid") if split == "val" else (split,)
    told: Any = next((config[key] for key in keys if config.get(key)), [])
    return [str(text) for text in (told if isinstance(told, list) else [told])]


def _place(text: str, root: Path) -> Path | None:
    """A folder or list below `root`; Roboflow writes `../train/images`."""
    return next((p for p in (root / text, root / text.removeprefix("../")) if p.exists()), None)


def _pictures(places: list[str], root: Path) -> list[Path]:
    """Folders, or text files with one picture a line, below `root`."""
    found: list[Path] = []
    for text in places:
        place = _place(text, root)
        if place is None:
            raise DataError(f"{root / text}: no such folder or list, though data.yaml names it")
        if place.is_dir():
            found += pictures_below(place)
        else:
            lines = (root / line.strip() for line in read_text(place).splitlines() if line.strip())
            found += [path for path in lines if is_picture(path)]
    return found


def label_path(picture: Path) -> Path:
    """images/…/NAME.jpg -> labels/…/NAME.txt: the last folder named `images` is exchanged."""
    parts = list(picture.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _lines(picture: Path, classes: int) -> list[tuple[int, NDArray[np.float64]]]:
    """Class and numbers of each line of a picture's label file; none where there is no file."""
    path = label_path(picture)
    if not path.is_file():
        return []
    rows: list[tuple[int, NDArray[np.float64]]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            first, *rest = line.split()
            index, values = int(float(first)), np.array([float(v) for v in rest])
        except ValueError as error:
            raise DataError(f"{path}, line {number}: expected a class and numbers, got {line[:60]!r}") from error
        if not 0 <= index < classes:
            raise DataError(f"{path}, line {number}: class {index}, but data.yaml names 0 to {classes - 1}")
        rows.append((index, values))
    return rows


def _draw(picture: Path, classes: int) -> NDArray[np.int32]:
    hw = read_size(picture, upright=True)
    layers = []
    for index, values in _lines(picture, classes):
        if len(values) == 4:
            raise DataError(
                f"{label_path(picture)}: holds boxes, not polygons; take the classes alone with --image-labels"
            )
        if len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
            raise DataError(
                f"{label_path(picture)}: a polygon has {len(values)} numbers; expected pairs, three or more"
            )
        layers.append((index, yolo_polygon(values.reshape(-1, 2).clip(0, 1), hw)))
    return paint(hw, layers)
