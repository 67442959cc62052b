"""Polygons, run lengths and shapes -> pixels, each by the library that its format counts as the reference."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.importers.found import UNLABELLED
from tsss_edge.errors import DataError, UnavailableError

FARTHEST = 1 << 20  # pixels from the corner of a picture
Layer = tuple[int, NDArray[np.bool_]]  # index of a class (or VOID), and the pixels it covers
Points = Sequence[Sequence[float]]


def paint(hw: tuple[int, int], layers: Iterable[Layer], *, largest_first: bool = True) -> NDArray[np.int32]:
    """Layers -> one map. `largest_first`: small objects stay on top, as COCO's tools draw; else the later one does."""
    canvas = np.full(hw, UNLABELLED, np.int32)
    every = list(layers)
    if largest_first:
        every.sort(key=lambda layer: -int(layer[1].sum()))
    for index, covered in every:
        canvas[covered] = index
    return canvas


def coco_mask(segmentation: Any, hw: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """COCO's polygons, run lengths or compressed run lengths -> (H,W) bool, by pycocotools.

    Raises: DataError: damaged. UnavailableError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as tools
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{error}; install it with `pip install 'tsss-edge[data]'`") from error
    try:
        if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), (str, bytes)):
            if tuple(segmentation["size"]) != hw:
                raise DataError(f"{where}: run lengths of size {segmentation['size']}, the picture has {list(hw)}")
            _require_runs(run_lengths(segmentation["counts"]), hw, where)
            return np.asarray(tools.decode(segmentation), bool)
        if isinstance(segmentation, list) and any(len(polygon) < 6 for polygon in segmentation):
            raise DataError(f"{where}: a polygon of fewer than 3 points")
        if isinstance(segmentation, list):
            _require_corners(segmentation, where)
        else:
            _require_runs([int(run) for run in segmentation["counts"]], hw, where)
        runs = tools.frPyObjects(segmentation, *hw)
        return np.asarray(tools.decode(tools.merge(runs) if isinstance(runs, list) else runs), bool)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise DataError(f"{where}: not a segmentation of COCO ({error})") from error


def _require_runs(runs: list[int], hw: tuple[int, int], where: str) -> None:
    """Raise DataError unless run lengths fill the picture: pycocotools writes beyond its array otherwise."""
    if min(runs, default=0) < 0 or sum(runs) != hw[0] * hw[1]:
        raise DataError(f"{where}: run lengths of {sum(runs)} pixels, the picture has {hw[0] * hw[1]}")


def _require_corners(polygons: Sequence[Sequence[float]], where: str) -> None:
    """Raise DataError for a corner that is no number or far outside every picture: pycocotools crashes on it."""
    for polygon in polygons:
        corners = np.asarray(polygon, np.float64)
        if not (np.isfinite(corners).all() and np.abs(corners).max() <= FARTHEST):
            raise DataError(f"{where}: a polygon with a corner that no picture has")


def run_lengths(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths -> numbers, as `rleFrString` of pycocotools reads them: 5 bits a character, from 48 on, the
    sixth says that more follow; from the fourth run on each is told as difference to the last but one."""
    data, runs, at = text.encode() if isinstance(text, str) else text, list[int](), 0
    while at < len(data):
        value = shift = 0
        more = True
        while more:
            code = data[at] - 48
            value |= (code & 31) << shift
            more, at, shift = bool(code & 32), at + 1, shift + 5
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def yolo_polygon(points: NDArray[np.float64], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(N,2) corners in 0-1 -> (H,W) bool: pixel corners cut to whole numbers and filled by OpenCV, as Ultralytics does."""
    import cv2

    canvas = np.zeros(hw, np.uint8)
    corners = (points * (hw[1], hw[0])).astype(np.int32)
    cv2.fillPoly(canvas, [corners], (1,))
    return canvas.astype(bool)


def labelme_shape(shape: dict[str, Any], hw: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """A shape of labelme -> (H,W) bool, by the rules of `labelme.utils.shape_to_mask` (Pillow). Raises: DataError."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (hw[1], hw[0]), 0)
    pen = ImageDraw.Draw(canvas)
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        kind = shape.get("shape_type") or "polygon"
        if kind == "mask":
            return _labelme_bitmap(shape, points, hw)
        if kind == "polygon" and len(points) > 2:
            pen.polygon(xy=points, outline=1, fill=1)
        elif kind == "rectangle" and len(points) == 2:
            (x1, y1), (x2, y2) = points
            pen.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], outline=1, fill=1)
        elif kind == "circle" and len(points) == 2:
            (x, y), (px, py) = points
            radius = float(np.hypot(x - px, y - py))
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
        elif kind == "oriented_rectangle" and len(points) == 4:
            pen.polygon(xy=points, outline=1, fill=1)
        elif kind in ("line", "linestrip"):
            pen.line(xy=points, fill=1, width=10)  # labelme's default width
        elif kind == "point" and len(points) == 1:
            ((x, y),) = points
            pen.ellipse([x - 5, y - 5, x + 5, y + 5], outline=1, fill=1)  # labelme's default size
        else:
            raise DataError(
                f"{where}: a {kind} of {len(points)} points; expected polygon, rectangle, circle, line or mask"
            )
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{where}: not a shape of labelme ({error})") from error
    return np.asarray(canvas).astype(bool)


def _labelme_bitmap(shape: dict[str, Any], points: list[tuple[float, float]], hw: tuple[int, int]) -> NDArray[np.bool_]:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
        bitmap = np.asarray(picture).astype(bool)
    (x1, y1), (x2, y2) = np.array(points).astype(int)
    covered = np.zeros(hw, bool)
    covered[y1 : y2 + 1, x1 : x2 + 1] = bitmap[: max(0, hw[0] - y1), : max(0, hw[1] - x1)]
    return covered


def cvat_runs(runs: str, box: tuple[int, int, int, int], hw: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """CVAT's mask: run lengths, row by row, empty run first, inside the box (left, top, width, height) -> (H,W) bool."""
    left, top, width, height = box
    try:
        lengths = [int(run) for run in runs.split(",")]
        bits = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)
        covered = np.zeros(hw, bool)
        covered[top : top + height, left : left + width] = bits
    except ValueError as error:
        raise DataError(f"{where}: damaged run lengths of a mask ({error})") from error
    return covered
