"""CVAT's XML ("CVAT for images 1.1") -> `Found`: polygons, masks, boxes and ellipses in their z order."""

from __future__ import annotations

import functools
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.ids import inside
from tsss_edge.data.importers.draw import coco_mask, cvat_runs, paint
from tsss_edge.data.importers.found import Found, Item, annotated_hw, ids_of, named
from tsss_edge.data.importers.pairs import SPLITS
from tsss_edge.data.voc import read_xml
from tsss_edge.errors import DataError

AREAS = ("polygon", "mask", "box", "ellipse")  # shapes that cover pixels
OTHERS = ("polyline", "points", "cuboid", "skeleton")


def read_cvat(source: Path, *, tags_only: bool = False) -> Found:
    """Read SRC/annotations.xml (or the file itself); pictures lie in SRC/images or beside it. <tag>s are image labels.

    Raises: DataError: no such file, the video form, damaged, or a picture is missing.
    """
    path = source if source.is_file() else source / "annotations.xml"
    root = _parse(path)
    names = tuple(dict.fromkeys(label.text or "" for label in root.iterfind("meta//labels/label/name")))
    if not names:
        raise DataError(f"{path}: names no labels; export it from CVAT as `CVAT for images 1.1`")
    images = root.findall("image")
    pictures = [_picture(path, image.get("name", ""), image.get("subset", "")) for image in images]
    ids = ids_of(pictures, path.parent)
    left = [kind for kind in OTHERS if root.find(f"image/{kind}") is not None]
    items = [
        Item(
            id=ids[picture],
            picture=picture,
            mask=None if tags_only else functools.partial(_draw, image, names, f"{path}, picture {image.get('name')}"),
            tags=frozenset(shape.get("label", "") for shape in image) & set(names) if tags_only else None,
            split=_split(image.get("subset", "").lower()),
            group=str(Path(image.get("name", "")).parent),
            upright=True,
        )
        for image, picture in zip(images, pictures, strict=True)
    ]
    notes = (f"shapes that cover no pixels are left out: {named(left)}",) if left else ()
    return Found(names=names, background=True, items=tuple(items), notes=notes)


def _parse(path: Path) -> ElementTree.Element:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected CVAT's annotations.xml")
    root = read_xml(path, "XML file of CVAT")
    if root.tag != "annotations" or root.find("track") is not None or root.find("image") is None:
        raise DataError(f"{path}: not pictures of CVAT; export the task as `CVAT for images 1.1`")
    return root


def _split(subset: str) -> str | None:
    """CVAT calls them Train, Validation and Test, and `default` what has none."""
    return None if subset in ("", "default") else SPLITS.get(subset, subset)


def _picture(path: Path, name: str, subset: str) -> Path:
    """A project's pictures lie in images/SUBSET; frames of a video are named without their suffix."""
    below = [path.parent / "images", path.parent]
    folders = [inside(below[0], subset, str(path)), *below] if subset else below
    places = [inside(folder, name + end, str(path)) for folder in folders for end in ("", ".PNG", ".png")]
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        raise DataError(f"{path}: its picture {name} is not there; put the pictures into {path.parent / 'images'}")
    return found


def _draw(image: ElementTree.Element, names: tuple[str, ...], where: str) -> NDArray[np.int32]:
    try:
        hw = annotated_hw(int(image.attrib["height"]), int(image.attrib["width"]), where)
        shapes = [shape for shape in image if shape.tag in AREAS]
        shapes.sort(key=lambda shape: int(shape.get("z_order", "0")))
        layers = [(names.index(shape.attrib["label"]), _covered(shape, hw, where)) for shape in shapes]
    except (KeyError, ValueError) as error:
        raise DataError(f"{where}: damaged ({error}); export it again") from error
    return paint(hw, layers, largest_first=False)


def _covered(shape: ElementTree.Element, hw: tuple[int, int], where: str) -> NDArray[np.bool_]:
    get = shape.attrib
    if shape.tag == "mask":
        box = int(get["left"]), int(get["top"]), int(get["width"]), int(get["height"])
        return cvat_runs(get["rle"], box, hw, where)
    if shape.tag == "polygon":
        # CVAT's own exports go through datumaro, which keeps points in float32; pixels on an edge differ otherwise.
        points = np.array([value for pair in get["points"].split(";") for value in pair.split(",")], np.float32)
        return coco_mask([points.tolist()], hw, where)
    if shape.tag == "ellipse":
        return _ellipse(*(float(get.get(key, "0")) for key in ("cx", "cy", "rx", "ry", "rotation")), hw=hw)
    left, top, right, bottom = (float(get[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return coco_mask([_turned(corners, float(get.get("rotation", "0"))).ravel().tolist()], hw, where)


def _ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float, *, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose middle lies in an ellipse with half axes rx and ry, turned clockwise."""
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    along, across = (x - cx) * cos + (y - cy) * sin, (y - cy) * cos - (x - cx) * sin
    return np.asarray((along / max(rx, 1e-6)) ** 2 + (across / max(ry, 1e-6)) ** 2 <= 1)


def _turned(corners: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """(4,2) corners turned about their middle, clockwise as CVAT shows them."""
    angle, middle = np.deg2rad(degrees), corners.mean(0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray((corners - middle) @ turn + middle)
