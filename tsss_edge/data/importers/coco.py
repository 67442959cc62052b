"""COCO's instances JSON, one file or a folder of them -> `Found`. Crowds are ignored, small objects stay on top."""

from __future__ import annotations

import functools
import re
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.ids import inside
from tsss_edge.data.importers.draw import coco_mask, paint
from tsss_edge.data.importers.found import VOID, Found, Item, annotated_hw, ids_of, named
from tsss_edge.data.importers.pairs import SPLITS
from tsss_edge.errors import DataError
from tsss_edge.files import edge, parse_json

SPLIT = re.compile(r"(trainval|training|train|validation|valid|val|test)\d*(?=[_.-]|$)", re.IGNORECASE)


class Category(msgspec.Struct, frozen=True):
    """A class: COCO's ids have holes."""

    id: int
    name: str


class Picture(msgspec.Struct, frozen=True):
    """A picture, as the file says; some tools write its size as 480.0."""

    id: int | str  # compared as text: exporters mix 7 and "7"
    file_name: str
    height: int | float
    width: int | float


class Annotation(msgspec.Struct, frozen=True):
    """One object."""

    image_id: int | str
    category_id: int | float
    segmentation: Any = None
    iscrowd: int | bool | None = 0  # COCO Annotator writes true and false


class CocoFile(msgspec.Struct, frozen=True):
    """The parts of an instances file that count here."""

    images: list[Picture]
    categories: list[Category]
    annotations: list[Annotation] = []


def read_coco(source: Path, *, images: str | None = None, tags_only: bool = False) -> Found:
    """Read a JSON file, or each of SRC/annotations/*.json or SRC/*.json; its name gives the split.

    Pictures are looked for beside the file: SRC/SPLIT2017, SRC/images/SPLIT, SRC/images, SRC; or only in the folder `images`, from SRC on.
    Raises: DataError: no such file, damaged, pictures missing, boxes without masks (unless `tags_only`).
    """
    files = _json_files(source)
    parsed = {path: _read(path) for path in files}
    names = _names(parsed)
    base = source.parent if source.is_file() else source
    places = {
        path: _places(path, file, _picture_folders(path) if images is None else [base / images])
        for path, file in parsed.items()
    }
    ids = ids_of((place for found in places.values() for place in found.values()), base)
    items = [
        item
        for path, file in parsed.items()
        for item in _items(path, file, names, places[path], ids, tags_only=tags_only)
    ]
    missing = [p.file_name for path, file in parsed.items() for p in file.images if str(p.id) not in places[path]]
    if not items:
        first = missing[0] if missing else "absent"
        where = "beside the file" if images is None else f"in {base / images}"
        raise DataError(
            f"{source}: none of its {len(missing)} pictures is there; the first is {first}, looked for {where}; "
            "name their folder with --images"
        )
    notes = [f"{len(missing)} pictures of the list are not there: {named(missing)}"] if missing else []
    for path, file in parsed.items():
        notes += _without_picture(path, file)
    return Found(names=names, background=True, items=tuple(items), notes=tuple(notes))


def _without_picture(path: Path, file: CocoFile) -> list[str]:
    """A note on annotations whose picture the file does not list. Raises: DataError: that is all of them."""
    known = {str(p.id) for p in file.images}
    strangers = [str(a.image_id) for a in file.annotations if str(a.image_id) not in known]
    if strangers and len(strangers) == len(file.annotations):
        raise DataError(
            f"{path}: none of its {len(strangers)} annotations belongs to a picture of its list; the first names picture {strangers[0]}, "
            f"the list has {named(sorted(known))}"
        )
    return [f"{len(strangers)} annotations are of pictures that {path.name} does not list"] if strangers else []


def _json_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    files = (
        sorted(source.glob("annotations/[!.]*.json"))
        or sorted(source.glob("[!.]*.json"))
        or sorted(source.glob("[!.]*/[!.]*.json"))
    )
    chosen = [p for p in files if p.name.startswith("instances")] or [p for p in files if _looks(p)]
    if not chosen:
        raise DataError(f"{source}: no COCO file; expected annotations/instances_*.json, or name the file itself")
    return chosen


def _looks(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"images"' in file.read() and "image_info" not in path.name


def _read(path: Path) -> CocoFile:
    with edge(path, "instances file of COCO", "export it again", DataError):
        return parse_json(path.read_bytes().removeprefix(BOM_UTF8), CocoFile)


def _names(parsed: dict[Path, CocoFile]) -> tuple[str, ...]:
    """Class names in the order of their ids. Raises: DataError: two files have different ones."""
    tables = {path: tuple(sorted((c.id, c.name) for c in file.categories)) for path, file in parsed.items()}
    if len(set(tables.values())) > 1:
        first, second = list(tables)[:2]
        raise DataError(f"{first} and {second} have different categories; import them one by one")
    return tuple(name for _, name in next(iter(tables.values())))


def split_of(path: Path) -> str | None:
    """`instances_val2017.json` -> `val`; None where the name tells nothing."""
    match = SPLIT.search(path.stem) or SPLIT.search(path.parent.name)
    return {"trainval": "train", **SPLITS}[match[1].lower()] if match else None


def _places(path: Path, file: CocoFile, folders: list[Path]) -> dict[str, Path]:
    """The file of each picture that is there, by the picture's id."""
    return {str(p.id): place for p in file.images if (place := _place(folders, p.file_name, str(path))) is not None}


def _items(
    path: Path,
    file: CocoFile,
    names: tuple[str, ...],
    places: dict[str, Path],
    ids: dict[Path, str],
    *,
    tags_only: bool,
) -> list[Item]:
    order: dict[float, int] = {c.id: names.index(c.name) for c in file.categories}
    objects: dict[str, list[Annotation]] = {}
    for annotation in file.annotations:
        if annotation.category_id not in order:
            raise DataError(f"{path}: an annotation has category {annotation.category_id}, which is not in the list")
        objects.setdefault(str(annotation.image_id), []).append(annotation)
    here = [(p, places[str(p.id)], objects.get(str(p.id), [])) for p in file.images if str(p.id) in places]
    return [
        Item(
            id=ids[place],
            picture=place,
            mask=None if tags_only else functools.partial(_draw, p, found, order, str(path)),
            tags=frozenset(names[order[a.category_id]] for a in found) if tags_only else None,
            split=split_of(path),
            group=str(Path(p.file_name).parent),
        )
        for p, place, found in here
    ]


def _picture_folders(path: Path) -> list[Path]:
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    tail = SPLIT.search(path.stem)
    written = [tail[0], tail[1], tail[1].lower()] if tail else []  # Validation2017, Validation, validation
    wanted = list(dict.fromkeys([*written, *filter(None, [split_of(path)])]))
    beside = [root / name for name in wanted] + [root / "images" / name for name in wanted]
    return [*beside, root / "images", root / "JPEGImages", root / "data", root, path.parent]


def _place(folders: list[Path], name: str, where: str) -> Path | None:
    return next((p for folder in folders if (p := inside(folder, name, where)).is_file()), None)


def _draw(picture: Picture, objects: list[Annotation], order: dict[float, int], where: str) -> NDArray[np.int32]:
    where = f"{where}, picture {picture.file_name}"
    hw = annotated_hw(int(picture.height), int(picture.width), where)
    without = [a for a in objects if not a.segmentation]
    if without:
        raise DataError(
            f"{where}: {len(without)} objects have a box but no mask; take the classes alone with --image-labels"
        )
    layers = [(VOID if a.iscrowd else order[a.category_id], coco_mask(a.segmentation, hw, where)) for a in objects]
    return paint(hw, layers)
