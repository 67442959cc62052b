"""Label maps -> pictures that fit them: real silhouettes, scales and co-occurrences under made-up appearances.

Objects are lit and sharp on a soft background, as in the embedded set. A picture depends on its seed, id and label map alone.
"""
# Letters: H height, W width of a rendered picture; h, w of the part an object covers.

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes
from tsss_edge.data import appearance, patterns
from tsss_edge.data.ids import place
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.synthetic import Family, Scenes, tight
from tsss_edge.data.voc import SetWriter, read_classes, read_ids, write_pair
from tsss_edge.errors import DataError
from tsss_edge.machine import progress, usable_cores

Looks = Literal["a", "b"]  # families of appearances without a common texture or pair of tones
Image = NDArray[np.uint8]

SPLIT_SHARE = 0.25  # a piece at least this large against its category's largest one counts as an object of its own

# The source set of the 0% protocol: no silhouette, texture or pair of tones of family "a" or of the embedded set.
SOURCE = Family(
    pairs=(
        "fish-mosaic", "hourglass-weave", "trefoil-sparks", "house-diamonds", "comb-marble", "tree-wood",
        "fish-wood", "hourglass-marble", "trefoil-diamonds", "house-sparks", "comb-weave", "tree-mosaic",
    ),
    shapes=patterns.MORE_OUTLINES,
    materials=patterns.MORE_TEXTURES,
    tones=tuple(appearance.other_tones_of(number) for number in range(12)),
    radius=(0.12, 0.55),
    max_turn=math.pi,
    seen_share=0.35,
)  # fmt: skip


def render_layouts(
    layouts: Path,
    out: Path,
    *,
    lists: Path | None = None,
    short_side: int = 160,
    seed: int = 0,
    splits: Sequence[str] = ("train", "val"),
    family: Looks = "a",
    workers: int | None = None,
) -> None:
    """Render a set in VOC layout onto the label maps in `layouts`/SegmentationClass.

    Args:   lists: folder of SPLIT.txt; by default `layouts`/ImageSets/Segmentation.
            short_side: of the rendered pictures, in pixels; label maps are resized to the nearest.
            workers: processes; by default one a core.
    Raises: DataError: a list or label map is missing or unusable, or `out` is not empty and not this set.
    """
    if not layouts.is_dir():
        raise DataError(f"{layouts}: no such folder; expected label maps in its SegmentationClass")
    classes = read_classes(layouts)
    ids = {split: _read_list((lists or layouts / "ImageSets/Segmentation") / f"{split}.txt") for split in splits}
    jobs = [(split, image_id) for split in splits for image_id in ids[split]]
    missing = [i for _, i in jobs if not (layouts / f"SegmentationClass/{i}.png").is_file()]
    if missing:
        raise DataError(f"{layouts}: no label map for {len(missing)} listed ids, the first is {missing[0]}")
    recipe = {"made by": "tsss-edge data render", "seed": seed, "short_side": short_side, "family": family}
    writer = SetWriter.open(out, classes, recipe)
    job = partial(_render_file, layouts, out, classes, short_side, seed, family)
    with progress("rendering", len(jobs)) as advance:
        for (split, image_id), labels in zip(jobs, _mapped(job, [i for _, i in jobs], workers), strict=True):
            writer.note(split, image_id, labels)
            advance()
    writer.finish()


def render_source(
    out: Path, *, train: int = 1464, val: int = 150, short_side: int = 160, seed: int = 0, workers: int | None = None
) -> None:
    """Render the *source* set of the 0% protocol: 12 categories with masks that share nothing with the others.

    Args:   train, val: pictures of each split; they are 4:3. Others as `render_layouts`.
    Raises: DataError: `out` is not empty and not this set.
    """
    recipe = {"made by": "tsss-edge data render --source", "seed": seed, "short_side": short_side}
    writer = SetWriter.open(out, SOURCE.classes, recipe)
    numbers = {"train": range(1 << 20, (1 << 20) + train), "val": range(1 << 21, (1 << 21) + val)}
    jobs = [(split, index) for split, indices in numbers.items() for index in indices]
    job = partial(_source_file, out, Scenes(seed, (short_side, short_side * 4 // 3), SOURCE))
    with progress("rendering", len(jobs)) as advance:
        done = _mapped(job, [(f"{split}_{i & 0xFFFFF:05d}", i) for split, i in jobs], workers)
        for (split, index), labels in zip(jobs, done, strict=True):
            writer.note(split, f"{split}_{index & 0xFFFFF:05d}", labels)
            advance()
    writer.finish()


def render(mask: Image, classes: Classes, rng: np.random.Generator, *, family: Looks = "a") -> Image:
    """Paint one picture onto a label map.

    Args:    mask: (H,W) uint8 ids, 255 is painted like what lies next to it.
    Returns: (H,W,3) uint8 RGB.
    """
    light = appearance.Light.draw(rng)
    library = patterns.TEXTURES if family == "a" else patterns.MORE_TEXTURES
    image = appearance.backdrop(mask.shape, rng, library=library)
    pieces = sorted(_pieces(mask, classes), key=lambda piece: piece.bottom)  # what stands lower stands nearer
    for piece in pieces:
        _cast_shadow(image, piece, light, rng)
        _paint_piece(image, piece, look_of(piece.category, family), light, rng)
    return image


def look_of(category: int, family: Looks = "a") -> appearance.Look:
    """The look of a category: some categories later its texture returns with other tones, or the other way round."""
    if family == "b":
        others = tuple(patterns.MORE_TEXTURES.values())
        return appearance.Look(texture=others[category % len(others)], tones=appearance.other_tones_of(category % 16))
    library = tuple(patterns.TEXTURES.values())
    return appearance.Look(
        texture=library[(category + category // 10) % len(library)], tones=appearance.tones_of(category % 20)
    )


@dataclass(frozen=True)
class _Piece:
    """One object, or all small pieces of a category together: `solid` (h,w) uint8 0 or 255 at `rows`, `columns`."""

    category: int
    solid: Image
    rows: slice
    columns: slice

    @property
    def bottom(self) -> int:
        """First row below the piece."""
        return int(self.rows.stop)


def _pieces(mask: Image, classes: Classes) -> Iterator[_Piece]:
    """Connected regions of each category, small ones joined to the largest; two pixels of margin."""
    for category in classes.objects:
        if not (own := mask == category).any():
            continue
        near = cv2.dilate(own.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        region = (own | (near & (mask == IGNORE))).astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        largest = 1 + int(areas.argmax())
        alone = [k for k in range(1, count) if k != largest and areas[k - 1] >= SPLIT_SHARE * areas.max()]
        rest = np.isin(parts, [0, *alone], invert=True)
        for solid in (rest, *(parts == k for k in alone)):
            yield _cut(category, solid.astype(np.uint8) * np.uint8(255))


def _cut(category: int, solid: Image) -> _Piece:
    rows, columns = tight(solid, margin=2)
    return _Piece(category=category, solid=np.ascontiguousarray(solid[rows, columns]), rows=rows, columns=columns)


def _cast_shadow(image: Image, piece: _Piece, light: appearance.Light, rng: np.random.Generator) -> None:
    """A soft shadow on everything painted so far, away from the light."""
    size = math.sqrt(cv2.countNonZero(piece.solid))
    reach, away = max(3, round(0.25 * size) | 1), 0.08 * size
    canvas = np.zeros(image.shape[:2], np.uint8)
    canvas[piece.rows, piece.columns] = piece.solid
    move = np.array([[1, 0, round(-away * math.cos(light.angle))], [0, 1, round(-away * math.sin(light.angle))]], float)
    moved = cv2.warpAffine(canvas, move, canvas.shape[::-1], flags=cv2.INTER_NEAREST)
    shadow = cv2.GaussianBlur(moved, (reach, reach), 0).astype(np.uint16)
    appearance.darken(image, (shadow * np.uint16(rng.integers(0, 130)) >> 8).astype(np.uint8))


def _paint_piece(
    image: Image, piece: _Piece, look: appearance.Look, light: appearance.Light, rng: np.random.Generator
) -> None:
    here, solid = (piece.rows, piece.columns), piece.solid
    unit = min(image.shape[:2])
    middle = solid.shape[1] // 2, solid.shape[0] // 2
    period = min(unit * 0.09, max(4.0, 0.45 * math.sqrt(cv2.countNonZero(solid))))  # small objects show some of it too
    color = appearance.paint(look, solid.shape, middle, period, rng)
    grain = rng.integers(-9, 10, solid.shape, dtype=np.int8)
    over = appearance.lit(color, appearance.lighting(appearance.relief(solid, rng), light, rng), grain)
    appearance.blend(image[here], over, cv2.GaussianBlur(solid, (3, 3), 0))  # type: ignore[arg-type]


def _shrunk(mask: Image, short_side: int) -> Image:
    """A label map with the given shorter side, resized to the nearest with half-pixel centres."""
    scale = short_side / min(mask.shape)
    size = [max(1, round(side * scale)) for side in mask.shape]
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip(size, mask.shape, strict=True))
    return np.ascontiguousarray(mask[rows][:, columns])


def _render_file(
    layouts: Path, out: Path, classes: Classes, short_side: int, seed: int, family: Looks, image_id: str
) -> frozenset[int]:
    """Render one picture and write it; the ids in its mask."""
    path = place(layouts / "SegmentationClass", image_id, ".png")
    mask = _shrunk(read_mask(path), short_side)
    ids = frozenset(int(i) for i in np.unique(mask))
    if not ids <= {*range(len(classes)), IGNORE}:
        raise DataError(f"{path}: class id {max(ids - {IGNORE})}, but the set has ids 0 to {len(classes) - 1}")
    own = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")
    write_pair(out, image_id, render(mask, classes, np.random.default_rng((seed, own)), family=family), mask)
    return ids


def _source_file(out: Path, scenes: Scenes, item: tuple[str, int]) -> frozenset[int]:
    image_id, index = item
    image, mask = scenes.scene(index)
    write_pair(out, image_id, image, mask)
    return frozenset(int(i) for i in np.unique(mask))


def _mapped(
    job: Callable[..., frozenset[int]], items: Sequence[object], workers: int | None
) -> Iterable[frozenset[int]]:
    """`job` of each item in order, by `workers` processes; one works right here."""
    count = min(workers or usable_cores(), len(items) // 16)
    if count <= 1:
        yield from map(job, items)
        return
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield from pool.map(job, items, chunksize=8)


def _read_list(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"{path}: no such list; expected one image id a line (see --lists)")
    return read_ids(path)
