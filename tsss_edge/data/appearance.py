"""A family of looks and a random generator -> painted, lit objects, and backgrounds without objects. All formulas are ours.

A look names a texture and two tones. Every object draws its own colours, period and contrast from them, so no single colour
tells a category. Light comes from one side: an object has a lit rim, a dark rim and a soft shadow. A background has texture,
edges and small things too, but no closed, lit, sharply textured body. Pixels use integer arithmetic, as in `patterns`.
"""
# Letters: h height, w width of a patch.

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.data import patterns
from tsss_edge.data.patterns import PERIOD, Ints, Texture, coordinates

CENTERED = (patterns.rings, patterns.wood)  # run around the middle of the object, so that their phase is not random

# Name -> hue in degrees, how far it may stray, and the range of saturation.
TONES: dict[str, tuple[float, float, tuple[float, float]]] = {
    "fire": (5, 12, (0.6, 0.95)),
    "straw": (48, 12, (0.55, 0.9)),
    "leaf": (105, 16, (0.5, 0.9)),
    "lagoon": (175, 12, (0.5, 0.9)),
    "night": (222, 14, (0.55, 0.9)),
    "dusk": (275, 14, (0.5, 0.85)),
    "berry": (325, 12, (0.5, 0.9)),
    "stone": (0, 180, (0.0, 0.12)),
}
# 20 pairs of tones in which every tone occurs five times: a colour alone names no category. OTHER_PAIRS are none of them.
PAIRS = tuple((i, (i + step) % 8) for step, count in ((1, 8), (3, 8), (4, 4)) for i in range(count))
OTHER_PAIRS = tuple((i, (i + step) % 8) for step, count in ((2, 8), (0, 8)) for i in range(count))

Tones = tuple[str, str]
Image = NDArray[np.uint8]
SHARP_SHARE = 0.25  # of backgrounds that are not blurred at all


@dataclass(frozen=True)
class Look:
    """The family of appearances of one category."""

    texture: Texture
    tones: Tones
    faithful: float = 0.97  # probability that an object takes its colours from `tones` and not from any two


def tones_of(number: int) -> Tones:
    """The pair of tones number 0-19; neighbours in number have little in common."""
    names, (a, b) = tuple(TONES), PAIRS[number * 7 % len(PAIRS)]
    return names[a], names[b]


def other_tones_of(number: int) -> Tones:
    """A pair of tones, number 0-15, that is none of those of `tones_of`."""
    names, (a, b) = tuple(TONES), OTHER_PAIRS[number * 3 % len(OTHER_PAIRS)]
    return names[a], names[b]


def any_tones(rng: np.random.Generator) -> Tones:
    """Any two tones."""
    names = tuple(TONES)
    return names[int(rng.integers(len(names)))], names[int(rng.integers(len(names)))]


@dataclass(frozen=True)
class Light:
    """The one light of a scene. Angle in radians, strength 0-1."""

    angle: float
    strength: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        """A random light."""
        return cls(angle=rng.uniform(0, 2 * math.pi), strength=rng.uniform(0.35, 1.0))


def draw_colors(tones: Tones, rng: np.random.Generator) -> Ints:
    """One RGB colour of each tone, of different brightness: (2,3) int32."""
    value = rng.uniform(0.35, 0.7)
    values = [value, min(1.0, value + rng.uniform(0.15, 0.45))]
    if rng.random() < 0.5:
        values.reverse()
    colors = []
    for tone, brightness in zip(tones, values, strict=True):
        hue, stray, (low, high) = TONES[tone]
        turn = (hue + rng.uniform(-stray, stray)) / 360 % 1.0
        colors.append(colorsys.hsv_to_rgb(turn, rng.uniform(low, high), brightness))
    rgb: Ints = np.rint(np.array(colors) * 255).astype(np.int32)
    return rgb


def paint(
    look: Look,
    size_hw: tuple[int, int],
    center_xy: tuple[int, int],
    period_px: float,
    rng: np.random.Generator,
    *,
    angle: float = 0.0,
) -> Image:
    """A textured patch without light: (h,w,3) uint8.

    Args: period_px: typical period of the texture; the patch draws its own between 0.75 and 1.35 times that.
          angle: of the object in radians; the texture keeps to it but for a little.
    """
    colors = draw_colors(look.tones if rng.random() < look.faithful else any_tones(rng), rng)
    period = max(3.0, period_px * rng.uniform(0.75, 1.35))
    u, v = coordinates(
        size_hw,
        center_xy,
        angle=angle + rng.uniform(-0.4, 0.4),
        period=(period, period * rng.uniform(0.8, 1.25)),
        phase=int(rng.integers(0, PERIOD)) if look.texture not in CENTERED else 0,
    )
    contrast = int(rng.integers(170, 257))
    table = colors[0] + ((colors[1] - colors[0]) * (np.arange(256, dtype=np.int32) * contrast)[:, None] >> 16)
    weight = look.texture(u, v).astype(np.uint8)
    return cv2.LUT(cv2.merge([weight] * 3), table.astype(np.uint8)[None])  # type: ignore[return-value]


def relief(solid: Image, rng: np.random.Generator) -> Image:
    """A body of outline `solid`, (h,w) uint8 0 or 255 -> its rounded height: the blurred outline, (h,w) uint8."""
    reach = max(3, round(math.sqrt(np.count_nonzero(solid)) * rng.uniform(0.2, 0.4)) | 1)
    return cv2.GaussianBlur(solid, (reach, reach), 0, borderType=cv2.BORDER_CONSTANT)  # type: ignore[return-value]


def lighting(height: Image, light: Light, rng: np.random.Generator) -> Ints:
    """Light on a body of height `height`, (h,w) uint8: (h,w) int32, 256 = the colour as painted.

    Its rim is bright on the light's side and dark on the other, and a ramp runs over the whole body.
    """
    step = max(1.0, 0.02 * (height.shape[0] + height.shape[1]))
    dx, dy = round(step * math.cos(light.angle)), round(step * math.sin(light.angle))
    slope = height.astype(np.int32) - _shifted(height, dx, dy)
    rim = (height.astype(np.int32) - 255) * int(rng.integers(20, 110)) >> 8
    return 256 + (slope * round(300 * light.strength) >> 8) + rim + _ramp(height.shape, light, rng)


def _shifted(height: Image, dx: int, dy: int) -> Ints:
    """The height field moved by whole pixels, 0 coming in."""
    moved = np.zeros_like(height, np.int32)
    h, w = height.shape
    moved[max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)] = height[
        max(0, dy) : h - max(0, -dy), max(0, dx) : w - max(0, -dx)
    ]
    return moved


def _ramp(size_hw: tuple[int, ...], light: Light, rng: np.random.Generator) -> Ints:
    """A linear change of light across the patch, toward the light."""
    strength = int(rng.integers(10, 90))
    x = np.arange(size_hw[1], dtype=np.int32) * 2 - size_hw[1]
    y = np.arange(size_hw[0], dtype=np.int32)[:, None] * 2 - size_hw[0]
    toward = x * round(256 * math.cos(light.angle)) + y * round(256 * math.sin(light.angle))
    return (toward // max(size_hw)) * strength >> 9


def lit(color: Image, level: Ints, grain: NDArray[np.int8]) -> Image:
    """Colour times light, plus grain, (h,w): (h,w,3) uint8."""
    bright = np.multiply(color, level.clip(0, 1023)[..., None], dtype=np.int32)
    bright >>= 8
    bright += grain[..., None]
    result: Image = bright.clip(0, 255).astype(np.uint8)
    return result


def blend(under: Image, over: Image, alpha: Image) -> None:
    """Lay `over` on `under` in place; (h,w,3) uint8 each, alpha (h,w) uint8."""
    a = alpha.astype(np.uint16)[..., None]
    mixed = under * (255 - a) + over * a
    mixed += (mixed >> 8) + 128  # then >> 8 divides by 255, rounded
    np.copyto(under, mixed >> 8, casting="unsafe")


def darken(under: Image, shadow: Image) -> None:
    """Cast a shadow in place: (h,w) uint8, 0 none, 255 black."""
    np.copyto(under, under * (256 - shadow.astype(np.uint16))[..., None] >> 8, casting="unsafe")


def backdrop(size_hw: tuple[int, int], rng: np.random.Generator, *, library: dict[str, Texture] | None = None) -> Image:
    """(H,W,3) uint8 RGB. `library`: the textures that may show up faintly; by default those of the embedded set."""
    names = library or patterns.TEXTURES
    image = _soft_colors(size_hw, rng)
    for _ in range(int(rng.integers(0, 3))):
        _plane(image, names, rng)
    for _ in range(int(rng.integers(0, 4))):
        _faint_texture(image, names, rng)
    for _ in range(int(rng.integers(1, 7))):
        _clutter(image, rng)
    reach = 0 if rng.random() < SHARP_SHARE else round(min(size_hw) * rng.uniform(0.012, 0.06)) | 1
    if reach >= 3:
        image = cv2.GaussianBlur(image, (reach, reach), 0)  # type: ignore[assignment]
    for _ in range(int(rng.integers(0, 4))):
        _stick(image, rng)
    return _grainy(image, rng)


def _soft_colors(size_hw: tuple[int, int], rng: np.random.Generator) -> Image:
    """Colours on a coarse lattice, blended over the picture."""
    base = draw_colors(any_tones(rng), rng).mean(axis=0)
    lattice = base + rng.integers(-60, 61, (int(rng.integers(2, 7)), int(rng.integers(2, 7)), 3)) * rng.uniform(0.2, 1)
    small: Image = lattice.clip(0, 255).astype(np.uint8)
    return cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_LINEAR_EXACT)  # type: ignore[return-value]


def _plane(image: Image, library: dict[str, Texture], rng: np.random.Generator) -> None:
    """Everything on one side of a straight line, such as a wall or a floor."""
    h, w = image.shape[:2]
    angle, reach = rng.uniform(0, 2 * math.pi), h + w
    x, y = rng.uniform(0.1, 0.9) * w, rng.uniform(0.1, 0.9) * h
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    corners = (np.array([along, along + 2 * across, 2 * across - along, -along]) * reach + (x, y)) * 16
    _lay(image, [np.rint(corners).astype(np.int32)], library, rng, soft=False)


def _faint_texture(image: Image, library: dict[str, Texture], rng: np.random.Generator) -> None:
    """A patch of texture that fades out at its border."""
    h, w = image.shape[:2]
    points = patterns.place(
        patterns.blob(rng),
        radius=min(h, w) * rng.uniform(0.15, 0.6),
        angle=0.0,
        stretch=1.5 ** rng.uniform(-1, 1),
        origin_xy=(rng.uniform(0, w), rng.uniform(0, h)),
    )
    _lay(image, points, library, rng, soft=True)


def _lay(
    image: Image, points: list[NDArray[np.int32]], library: dict[str, Texture], rng: np.random.Generator, *, soft: bool
) -> None:
    h, w = image.shape[:2]
    alpha = np.zeros((h, w), np.uint8)
    cv2.fillPoly(alpha, points, int(rng.integers(60, 200)), shift=4)
    if soft:
        alpha = _far_blur(alpha, min(h, w) * rng.uniform(0.1, 0.3))
    x, y, width, height = cv2.boundingRect(alpha)
    if not width:
        return
    texture = tuple(library.values())[int(rng.integers(len(library)))]
    look = Look(texture=texture, tones=any_tones(rng))
    period, angle = min(h, w) * rng.uniform(0.05, 0.25), rng.uniform(0, math.pi)
    patch = paint(look, (height, width), (width // 2, height // 2), period, rng, angle=angle)
    here = slice(y, y + height), slice(x, x + width)
    mean = np.array(cv2.mean(patch)[:3]).astype(np.uint8)
    faint = (patch >> 1) + (mean >> 1)  # half the contrast of an object
    blend(image[here], faint, alpha[here])


def _far_blur(alpha: Image, reach: float) -> Image:
    """A wide blur over `reach` pixels, made at an eighth of the size."""
    size = alpha.shape[::-1]
    small = cv2.resize(alpha, (size[0] // 8 + 1, size[1] // 8 + 1), interpolation=cv2.INTER_LINEAR_EXACT)
    kernel = round(reach / 8) | 1
    small = cv2.GaussianBlur(small, (kernel, kernel), 0)
    return cv2.resize(small, size, interpolation=cv2.INTER_LINEAR_EXACT)  # type: ignore[return-value]


def _clutter(image: Image, rng: np.random.Generator) -> None:
    """A stick, a chip or a pebble of one colour."""
    kind = rng.integers(0, 3)
    if kind == 0:
        return _stick(image, rng)
    h, w = image.shape[:2]
    outline = patterns.blob(rng) if kind == 1 else [rng.uniform(-1, 1, (3, 2))]
    points = patterns.place(
        outline,
        radius=min(h, w) * rng.uniform(0.02, 0.09),
        angle=rng.uniform(0, 2 * math.pi),
        stretch=1.5 ** rng.uniform(-1, 1),
        origin_xy=(rng.uniform(0, w), rng.uniform(0, h)),
    )
    cv2.fillPoly(image, points, _color(rng), lineType=cv2.LINE_AA, shift=4)
    return None


def _stick(image: Image, rng: np.random.Generator) -> None:
    h, w = image.shape[:2]
    start, way = rng.uniform(0, 1, 2) * (w, h), rng.uniform(-0.5, 0.5, 2) * min(h, w)
    ends = [tuple(int(v) for v in np.rint(p * 16)) for p in (start, start + way)]
    thickness = max(1, round(min(h, w) * rng.uniform(0.006, 0.025)))
    cv2.line(image, ends[0], ends[1], _color(rng), thickness, cv2.LINE_AA, shift=4)


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    r, g, b = draw_colors(any_tones(rng), rng)[0]
    return int(r), int(g), int(b)


def _grainy(image: Image, rng: np.random.Generator) -> Image:
    """Grey grain of a random strength."""
    strength = int(rng.integers(2, 12))
    grain = rng.integers(-strength, strength + 1, (*image.shape[:2], 1), dtype=np.int16)
    return (image + grain).clip(0, 255).astype(np.uint8)
