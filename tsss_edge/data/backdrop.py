"""A random generator -> a background without objects: soft colours, planes, faint texture, clutter, more or less blur.

It has texture (blurred and faint), edges (of flat planes), thin sharp things (sticks) and small ones (chips), so that none
of them alone says "object"; what it lacks is a closed, lit, sharply textured body. All formulas are ours.
"""
# Letters: H height, W width.

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.data import silhouettes, textures
from tsss_edge.data.appearance import Look, any_tones, blend, draw_colors, paint

Image = NDArray[np.uint8]
SHARP_SHARE = 0.25  # of backgrounds that are not blurred at all


def backdrop(
    size_hw: tuple[int, int], rng: np.random.Generator, *, library: dict[str, textures.Texture] | None = None
) -> Image:
    """(H,W,3) uint8 RGB. `library`: the textures that may show up faintly; by default those of the embedded set."""
    names = library or textures.FIRST
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


def _plane(image: Image, library: dict[str, textures.Texture], rng: np.random.Generator) -> None:
    """Everything on one side of a straight line, such as a wall or a floor."""
    h, w = image.shape[:2]
    angle, reach = rng.uniform(0, 2 * math.pi), h + w
    x, y = rng.uniform(0.1, 0.9) * w, rng.uniform(0.1, 0.9) * h
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    corners = (np.array([along, along + 2 * across, 2 * across - along, -along]) * reach + (x, y)) * 16
    _lay(image, [np.rint(corners).astype(np.int32)], library, rng, soft=False)


def _faint_texture(image: Image, library: dict[str, textures.Texture], rng: np.random.Generator) -> None:
    """A patch of texture that fades out at its border."""
    h, w = image.shape[:2]
    points = silhouettes.place(
        silhouettes.blob(rng),
        radius=min(h, w) * rng.uniform(0.15, 0.6),
        angle=0.0,
        stretch=1.5 ** rng.uniform(-1, 1),
        origin_xy=(rng.uniform(0, w), rng.uniform(0, h)),
    )
    _lay(image, points, library, rng, soft=True)


def _lay(
    image: Image,
    points: list[NDArray[np.int32]],
    library: dict[str, textures.Texture],
    rng: np.random.Generator,
    *,
    soft: bool,
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


def _far_blur(alpha: NDArray[np.uint8], reach: float) -> NDArray[np.uint8]:
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
    outline = silhouettes.blob(rng) if kind == 1 else [rng.uniform(-1, 1, (3, 2))]
    points = silhouettes.place(
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
