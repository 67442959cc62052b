"""labelme's JSON files, one beside each picture -> `Found`. The later shape lies on top, as in labelme's own export."""

from __future__ import annotations

import functools
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.importers.draw import labelme_shape, paint
from tsss_edge.data.importers.found import UNLABELLED, VOID, Found, Item, annotated_hw, ids_of
from tsss_edge.errors import DataError
from tsss_edge.files import edge, parse_json

IGNORED = ("__ignore__",)  # as labelme's own export reads its labels.txt
BACKGROUND = "_background_"


class LabelmeFile(msgspec.Struct, frozen=True):
    """The parts of a file of labelme that count here. `flags` are tags of the whole picture."""

    shapes: list[dict[str, Any]]
    imagePath: str  # labelme's own name
    imageHeight: int
    imageWidth: int
    flags: dict[str, bool] | None = None


def read_labelme(source: Path, *, tags_only: bool = False) -> Found:
    """Read every JSON file of labelme below a folder. Classes are the labels that occur, by name.

    Raises: DataError: no such file, damaged, or its picture is missing.
    """
    files = {path: _read(path) for path in sorted(source.rglob("*.json")) if not path.name.startswith(".")}
    if not files:
        raise DataError(f"{source}: no JSON file of labelme there")
    labels = {name for file in files.values() for name in _labels(file, tags_only=tags_only)}
    names = tuple(sorted(labels - {BACKGROUND, *IGNORED}))
    pictures = {path: _picture(path, file, source) for path, file in files.items()}
    ids = ids_of(pictures.values(), source)
    items = [
        Item(
            id=ids[pictures[path]],
            picture=pictures[path],
            mask=None if tags_only else functools.partial(_draw, path, file, names),
            tags=frozenset(_labels(file, tags_only=True)) & set(names) if tags_only else None,
            split=None,
            group=str(path.parent.relative_to(source)),
            upright=True,
        )
        for path, file in files.items()
    ]
    return Found(names=names, background=True, items=tuple(items))


def _read(path: Path) -> LabelmeFile:
    with edge(path, "file of labelme", "save it again in labelme", DataError):
        return parse_json(path.read_bytes().removeprefix(BOM_UTF8), LabelmeFile)


def _labels(file: LabelmeFile, *, tags_only: bool) -> list[str]:
    flags = [name for name, on in (file.flags or {}).items() if on] if tags_only else []
    return [str(shape.get("label")) for shape in file.shapes] + flags


def _picture(path: Path, file: LabelmeFile, root: Path) -> Path:
    name = Path(file.imagePath.replace("\\", "/").replace("\0", ""))
    places = (path.parent / name, path.parent / name.name)
    within = (p for p in places if p.parent.resolve().is_relative_to(root.resolve()))  # labelme writes ../images/a.jpg
    found = next((p for p in within if p.is_file()), None)
    if found is None:
        raise DataError(f"{path}: its picture {file.imagePath} is not there; put it beside the JSON file")
    return found


def _draw(path: Path, file: LabelmeFile, names: tuple[str, ...]) -> NDArray[np.int32]:
    hw = annotated_hw(file.imageHeight, file.imageWidth, str(path))
    layers = []
    for shape in file.shapes:
        label = str(shape.get("label"))
        index = VOID if label in IGNORED else UNLABELLED if label == BACKGROUND else names.index(label)
        layers.append((index, labelme_shape(shape, hw, str(path))))
    return paint(hw, layers, largest_first=False)
