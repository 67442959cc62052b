"""A seed -> scenes of 20 made-up categories with exact masks: the set that comes with the toolkit, and `synthetic://`.

A category is an outline, a texture and a pair of tones, each shared with other categories. Every object draws its own shape,
size, colours and light. Scene `index` depends on (seed, index) alone, on every platform.
"""
# Letters: H height, W width of a scene; h, w of a sprite.

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes
from tsss_edge.data import appearance, patterns
from tsss_edge.data.voc import SetWriter
from tsss_edge.machine import progress

# Silhouette and texture of each category. The first ten and the last ten share some of them, not all: what is learned from
# one half must carry over to shapes and textures never seen.
PAIRS = (
    "star-stripes", "gear-checks", "leaf-dots", "crescent-rings", "cross-bricks",
    "blob-waves", "arrow-zigzag", "star-rings", "leaf-waves", "cross-checks",
    "bottle-scales", "heart-camo", "ring-plaid", "bottle-zigzag", "heart-dots",
    "ring-bricks", "gear-camo", "crescent-scales", "blob-plaid", "arrow-stripes",
)  # fmt: skip
TRAIN_FROM, VAL_FROM = 1 << 20, 1 << 21  # first scene of each split; `synthetic://` counts from 0 and never meets them
OBJECTS_UP_TO = (0.2, 0.55, 0.85)  # 1 object in 20% of the scenes, 2 in 35%, 3 in 30%, 4 in 15%

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Family:
    """What the objects of a set are made of.

    pairs: silhouette and texture of each category, as its name. radius: smallest and largest, as shares of the scene's
    shorter side. max_turn: radians an object may stand askew. seen_share: of an object that must stay visible.
    """

    pairs: tuple[str, ...]
    shapes: dict[str, patterns.Silhouette]
    materials: dict[str, patterns.Texture]
    tones: tuple[appearance.Tones, ...]
    radius: tuple[float, float]
    max_turn: float
    seen_share: float

    @property
    def classes(self) -> Classes:
        """Background and the categories."""
        return Classes(names=("background", *self.pairs))

    def parts(self, category: int) -> tuple[patterns.Silhouette, appearance.Look]:
        """Silhouette and look of a category."""
        outline, texture = self.pairs[category - 1].split("-")
        return self.shapes[outline], appearance.Look(texture=self.materials[texture], tones=self.tones[category - 1])


EMBEDDED = Family(
    pairs=PAIRS,
    shapes=patterns.OUTLINES,
    materials=patterns.TEXTURES,
    tones=tuple(appearance.tones_of(number) for number in range(20)),
    radius=(0.22, 0.4),
    max_turn=0.6,
    seen_share=0.6,
)
CLASSES = EMBEDDED.classes


@dataclass(frozen=True)
class _Outline:
    """Where an object is, before it is painted. `origin` is the top left corner in the scene, `middle` lies in `solid`."""

    category: int
    solid: Image  # (h,w), 255 on the object, 0 beside it
    middle_xy: tuple[int, int]
    origin_xy: tuple[int, int]
    angle: float
    radius: float


@dataclass(frozen=True)
class _Sprite:
    """One object, painted once. `speed` in pixels a second (x, y)."""

    category: int
    image: Image  # (h,w,3)
    solid: NDArray[np.bool_]  # (h,w)
    alpha: NDArray[np.uint8]  # (h,w), the same with an edge of one soft pixel
    shadow: NDArray[np.uint8]  # (h,w)
    origin_xy: tuple[int, int]
    speed_xy: tuple[float, float]
    shadow_xy: tuple[int, int]


@dataclass(frozen=True)
class _Prepared:
    background: Image
    sprites: tuple[_Sprite, ...]


class Scenes:
    """All scenes of one seed at one size.

    Args:   size_hw: height and width in pixels, each at least 32. family: what the objects are made of.
    Raises: ValueError: smaller.
    """

    def __init__(self, seed: int, size_hw: tuple[int, int], family: Family = EMBEDDED) -> None:
        if min(size_hw) < 32:
            raise ValueError(f"scene size {size_hw}: height and width must be at least 32")
        self.seed, self.size_hw, self.family = seed, size_hw, family
        self._kept: tuple[int, _Prepared] | None = None  # the scene of the last frame, painted

    def scene(self, index: int) -> tuple[Image, Image]:
        """Scene `index` at rest: (H,W,3) uint8 RGB and (H,W) uint8 category ids."""
        return self._compose(self._prepare(index), 0.0)

    def frame(self, index: int, t: float) -> tuple[Image, Image]:
        """Scene `index` after `t` seconds: its objects drift and turn back at the border. Shapes as `scene`."""
        if self._kept is None or self._kept[0] != index:
            self._kept = index, self._prepare(index)
        return self._compose(self._kept[1], t)

    def _prepare(self, index: int) -> _Prepared:
        rng = np.random.default_rng((self.seed, index))
        light = appearance.Light.draw(rng)
        background = appearance.backdrop(self.size_hw, rng, library=self.family.materials)
        outlines: list[_Outline] = []
        wanted = 1 + int(np.searchsorted(OBJECTS_UP_TO, rng.random()))
        for _ in range(6 * wanted):
            trial = [*outlines, self._outline(rng)]
            if min(_seen_shares(trial, self.size_hw)) >= self.family.seen_share:
                outlines = trial
            if len(outlines) == wanted:
                break
        return _Prepared(background, tuple(self._sprite(outline, light, rng) for outline in outlines))

    def _outline(self, rng: np.random.Generator) -> _Outline:
        family, unit = self.family, min(self.size_hw)
        category, (low, high) = int(rng.integers(1, len(family.pairs) + 1)), family.radius
        radius, angle = unit * low * (high / low) ** rng.random(), rng.uniform(-family.max_turn, family.max_turn)
        half = math.ceil(radius * 1.6)
        polygons, _ = family.parts(category)
        points = patterns.place(
            polygons(rng), radius=radius, angle=angle, stretch=1.25 ** rng.uniform(-1, 1), origin_xy=(half, half)
        )
        solid = np.zeros((2 * half + 1, 2 * half + 1), np.uint8)
        cv2.fillPoly(solid, points, 255, shift=4)
        middle = [int(rng.uniform(0.12, 0.88) * side) for side in self.size_hw[::-1]]
        rows, columns = tight(solid, margin=2 + round(0.12 * radius))
        return _Outline(
            category=category,
            solid=np.ascontiguousarray(solid[rows, columns]),
            middle_xy=(half - columns.start, half - rows.start),
            origin_xy=(middle[0] - half + columns.start, middle[1] - half + rows.start),
            angle=angle,
            radius=radius,
        )

    def _sprite(self, outline: _Outline, light: appearance.Light, rng: np.random.Generator) -> _Sprite:
        solid, unit, off = outline.solid, min(self.size_hw), 0.15 * outline.radius
        height = appearance.relief(solid, rng)
        _, look = self.family.parts(outline.category)
        color = appearance.paint(look, solid.shape, outline.middle_xy, unit * 0.11, rng, angle=outline.angle)
        grain = rng.integers(-9, 10, solid.shape, dtype=np.int8)
        return _Sprite(
            category=outline.category,
            image=appearance.lit(color, appearance.lighting(height, light, rng), grain),
            solid=solid > 0,
            alpha=cv2.GaussianBlur(solid, (3, 3), 0),  # type: ignore[arg-type]
            shadow=(height * np.uint16(rng.integers(0, 130)) >> 8).astype(np.uint8),
            origin_xy=outline.origin_xy,
            speed_xy=(unit * rng.uniform(-0.25, 0.25), unit * rng.uniform(-0.25, 0.25)),
            shadow_xy=(round(-off * math.cos(light.angle)), round(-off * math.sin(light.angle))),
        )

    def _compose(self, prepared: _Prepared, t: float) -> tuple[Image, Image]:
        image, mask = prepared.background.copy(), np.zeros(self.size_hw, np.uint8)
        for sprite in prepared.sprites:
            x, y = self._position(sprite, t)
            cast, part = _overlap(self.size_hw, sprite.solid.shape, x + sprite.shadow_xy[0], y + sprite.shadow_xy[1])
            appearance.darken(image[cast], sprite.shadow[part])
            here, part = _overlap(self.size_hw, sprite.solid.shape, x, y)
            appearance.blend(image[here], sprite.image[part], sprite.alpha[part])
            mask[here][sprite.solid[part]] = sprite.category
        return image, mask

    def _position(self, sprite: _Sprite, t: float) -> tuple[int, int]:
        """Top left corner after `t` seconds; the middle of the sprite bounces between the scene's borders."""
        height, width = self.size_hw
        places = []
        for start, speed, side, own in zip(
            sprite.origin_xy, sprite.speed_xy, (width, height), sprite.solid.shape[::-1], strict=True
        ):
            way = (start + own // 2 + round(speed * t)) % (2 * side)
            places.append(min(way, 2 * side - way) - own // 2)
        return places[0], places[1]


def _overlap(
    scene_hw: tuple[int, int], sprite_hw: tuple[int, ...], x: int, y: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a sprite at (x, y) meets the scene: slices (rows, columns) of the scene and of the sprite."""
    top, left = max(0, y), max(0, x)
    bottom, right = max(top, min(scene_hw[0], y + sprite_hw[0])), max(left, min(scene_hw[1], x + sprite_hw[1]))
    scene = slice(top, bottom), slice(left, right)
    return scene, (slice(top - y, bottom - y), slice(left - x, right - x))


def _seen_shares(outlines: list[_Outline], size_hw: tuple[int, int]) -> list[float]:
    """How much of each object is neither hidden by a later one nor outside the scene."""
    top = np.zeros(size_hw, np.uint8)
    for number, outline in enumerate(outlines, start=1):
        here, part = _overlap(size_hw, outline.solid.shape, *outline.origin_xy)
        np.copyto(top[here], np.uint8(number), where=outline.solid[part] > 0)
    seen = np.bincount(top.ravel(), minlength=len(outlines) + 1)[1:]
    return [int(n) / cv2.countNonZero(outline.solid) for n, outline in zip(seen, outlines, strict=True)]


def tight(solid: Image, *, margin: int) -> tuple[slice, slice]:
    """Rows and columns of the object and `margin` pixels around it."""
    x, y, w, h = cv2.boundingRect(solid)
    return slice(max(0, y - margin), y + h + margin), slice(max(0, x - margin), x + w + margin)


def write_synthetic(out: Path, *, train: int = 600, val: int = 150, size: int = 128, seed: int = 0) -> None:
    """Write the embedded set in VOC layout, with image-level labels for every picture.

    An interrupted set is written again in place. The lists are written last, so a set with lists is complete.

    Args:   train, val: pictures of each split. size: side of the square pictures in pixels.
    Raises: DataError: `out` is not empty and not this set.
    """
    scenes = Scenes(seed, (size, size))
    recipe = {"made by": "tsss-edge data synth", "seed": seed, "size": size, "border": 0}
    writer = SetWriter.open(out, CLASSES, recipe)
    splits = {"train": range(TRAIN_FROM, TRAIN_FROM + train), "val": range(VAL_FROM, VAL_FROM + val)}
    with progress("scenes", train + val) as advance:
        for split, indices in splits.items():
            for index in indices:
                writer.add(split, f"{split}_{index - indices.start:05d}", *scenes.scene(index))
                advance()
    writer.finish()
