"""What painted objects are made of: outlines and textures. All formulas are ours.

An outline is polygons in units of the object's radius; an inner polygon is a hole. A texture gives each pixel its share of the
second colour, in integer arithmetic, so every platform draws the same bytes. `PERIOD` units of u or v are one period; u = v = 0
is the middle of the object.
"""
# Letters: h height, w width of a patch.

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]  # (n,2): x, y
Silhouette = Callable[[np.random.Generator], list[Polygon]]

PERIOD = 1024
Ints = NDArray[np.int32]
Texture = Callable[[Ints, Ints], Ints]

SINE = np.array([round(256 * math.sin(2 * math.pi * i / PERIOD)) for i in range(PERIOD)], np.int32)


def _polar(radius: NDArray[np.float64]) -> Polygon:
    """Polygon of the given radii at equal angles."""
    angle = np.arange(len(radius)) * (2 * np.pi / len(radius))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _mirrored(half: list[tuple[float, float]]) -> Polygon:
    """A right half from top to bottom -> the whole outline, symmetric about x = 0."""
    right = np.array(half)
    return np.concatenate([right, right[::-1] * (-1, 1)])


def star(rng: np.random.Generator) -> list[Polygon]:
    points, inner = int(rng.integers(5, 8)), rng.uniform(0.38, 0.6)
    return [_polar(np.tile([1.0, inner], points))]


def gear(rng: np.random.Generator) -> list[Polygon]:
    teeth, root = int(rng.integers(7, 11)), rng.uniform(0.68, 0.8)
    return [_polar(np.tile([1.0, 1.0, root, root], teeth)), rng.uniform(0.15, 0.3) * _polar(np.ones(24))]


def leaf(rng: np.random.Generator) -> list[Polygon]:
    width, bend, t = rng.uniform(0.45, 0.65), rng.uniform(-0.4, 0.4), np.linspace(-1, 1, 17)
    side, middle = width * np.cos(t * np.pi / 2), bend * (t**2 - 0.4)
    top, bottom = np.stack([t, middle - side], 1), np.stack([t, middle + side], 1)
    return [np.concatenate([top, bottom[-2:0:-1]])]


def crescent(rng: np.random.Generator) -> list[Polygon]:
    opening, depth = rng.uniform(0.5, 0.9), rng.uniform(0.25, 0.45)
    outer = np.linspace(opening, 2 * np.pi - opening, 28)
    edge = np.stack([np.cos(outer), np.sin(outer)], 1)
    inner = edge[-2:0:-1] * (0.7, 0.8)
    inner[:, 0] += 0.2 + depth
    return [np.concatenate([edge, inner]) - (depth / 2, 0)]


def cross(rng: np.random.Generator) -> list[Polygon]:
    a, b, c = rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.4), rng.uniform(0.6, 1.0)
    return [_mirrored([(a, -1), (a, -b), (c, -b), (c, b), (a, b), (a, 1)])]


def blob(rng: np.random.Generator) -> list[Polygon]:
    angle, radius = np.arange(40) * (2 * np.pi / 40), np.full(40, 0.75)
    for wave in (2, 3, 4):
        radius += rng.uniform(0.03, 0.16) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return [_polar(radius)]


def arrow(rng: np.random.Generator) -> list[Polygon]:
    shaft, head, neck = rng.uniform(0.18, 0.35), rng.uniform(0.6, 0.9), rng.uniform(-0.25, 0.15)
    return [_mirrored([(0, -1), (head, neck), (shaft, neck), (shaft, 1)])]


def bottle(rng: np.random.Generator) -> list[Polygon]:
    neck, body, shoulder = rng.uniform(0.12, 0.22), rng.uniform(0.35, 0.55), rng.uniform(-0.4, 0.0)
    return [_mirrored([(neck, -1), (neck, shoulder - 0.3), (body, shoulder), (body, 0.95), (body * 0.85, 1)])]


def heart(rng: np.random.Generator) -> list[Polygon]:
    t, depth = np.linspace(0, 2 * np.pi, 40, endpoint=False), rng.uniform(0.8, 1.2)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * depth * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 17
    return [np.stack([x, y], 1)]


def ring(rng: np.random.Generator) -> list[Polygon]:
    return [_polar(np.ones(36)), rng.uniform(0.4, 0.55) * _polar(np.ones(36)) + rng.uniform(-0.1, 0.1, 2)]


def fish(rng: np.random.Generator) -> list[Polygon]:
    tail, belly = rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.6)
    body = [(-1.0, 0.0), (-0.7, -belly * 0.7), (-0.2, -belly), (0.3, -belly * 0.6), (0.6, -0.12), (1.0, -tail)]
    return [np.array([*body, (0.85, 0.0), *((x, -y) for x, y in body[:0:-1])])]


def hourglass(rng: np.random.Generator) -> list[Polygon]:
    wide, waist = rng.uniform(0.5, 0.8), rng.uniform(0.1, 0.25)
    return [_mirrored([(wide, -1), (wide * 0.8, -0.5), (waist, 0), (wide * 0.8, 0.5), (wide, 1)])]


def trefoil(rng: np.random.Generator) -> list[Polygon]:
    lobes, angle = int(rng.integers(3, 5)), np.arange(60) * (2 * np.pi / 60)
    return [_polar(0.62 + rng.uniform(0.25, 0.36) * np.cos(lobes * angle))]


def house(rng: np.random.Generator) -> list[Polygon]:
    eaves, wall, roof = rng.uniform(0.7, 0.95), rng.uniform(0.45, 0.65), rng.uniform(-0.3, 0.0)
    return [_mirrored([(0, -1), (eaves, roof), (wall, roof), (wall, 0.9)])]


def comb(rng: np.random.Generator) -> list[Polygon]:
    teeth, depth = int(rng.integers(3, 5)), rng.uniform(-0.1, 0.3)
    x = np.linspace(0.8, -0.8, 2 * teeth)  # right and left edge of each tooth in turn
    outline = [(-0.8, -0.8), (0.8, -0.8)]
    for right, left in zip(x[::2], x[1::2], strict=True):
        outline += [(right, depth), (right, 0.9), (left, 0.9), (left, depth)]
    return [np.array(outline)]


def tree(rng: np.random.Generator) -> list[Polygon]:
    a, b, trunk = rng.uniform(0.45, 0.6), rng.uniform(0.65, 0.85), rng.uniform(0.1, 0.2)
    return [_mirrored([(0, -1), (a, -0.3), (a * 0.5, -0.3), (b, 0.5), (trunk, 0.5), (trunk, 1)])]


OUTLINES: dict[str, Silhouette] = {
    "star": star, "gear": gear, "leaf": leaf, "crescent": crescent, "cross": cross,
    "blob": blob, "arrow": arrow, "bottle": bottle, "heart": heart, "ring": ring,
}  # fmt: skip
MORE_OUTLINES: dict[str, Silhouette] = {
    "fish": fish, "hourglass": hourglass, "trefoil": trefoil, "house": house, "comb": comb, "tree": tree,
}  # fmt: skip


def place(
    polygons: list[Polygon], *, radius: float, angle: float, stretch: float, origin_xy: tuple[float, float]
) -> list[NDArray[np.int32]]:
    """Polygons in pixels for `cv2.fillPoly` with `shift=4` (sixteenths of a pixel), turned, stretched and moved."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = radius * np.array([stretch, 1 / stretch])
    return [np.rint(((p * scale) @ turn + origin_xy) * 16).astype(np.int32) for p in polygons]


def coordinates(
    size_hw: tuple[int, int], center_xy: tuple[int, int], *, angle: float, period: tuple[float, float], phase: int = 0
) -> tuple[Ints, Ints]:
    """Rotated texture coordinates of a patch: two (h,w) int32.

    Args: center_xy: pixel where u = v = phase. angle: radians. period: pixels a period along u and along v.
    """
    x = np.arange(size_hw[1], dtype=np.int32) - center_xy[0]
    y = np.arange(size_hw[0], dtype=np.int32)[:, None] - center_xy[1]
    cosine, sine = math.cos(angle), math.sin(angle)
    per_u, per_v = 256 * PERIOD / period[0], 256 * PERIOD / period[1]
    u = (x * round(cosine * per_u) + y * round(sine * per_u)) >> 8
    v = (y * round(cosine * per_v) - x * round(sine * per_v)) >> 8
    return (u + phase).astype(np.int32), (v + phase).astype(np.int32)


def _cell(p: Ints) -> Ints:
    """Distance from the middle of the cell, 0-512."""
    distance: Ints = np.abs((p & (PERIOD - 1)) - PERIOD // 2)
    return distance


def _tri(p: Ints) -> Ints:
    """Triangle wave, 0-255."""
    return _cell(p) * 255 >> 9


def _step(value: Ints, threshold: int, gain: int = 6) -> Ints:
    """A steep edge at `threshold`, 0-255; `gain` keeps about a pixel of slope."""
    slope: Ints = ((value - threshold) * gain + 128).clip(0, 255)
    return slope


def _root(value: Ints) -> Ints:
    """Square root; exact in IEEE arithmetic, so the same everywhere."""
    return np.sqrt(value.astype(np.float64)).astype(np.int32)


def _hash(i: Ints, j: Ints) -> Ints:
    """A fixed pseudo-random byte for each lattice point."""
    h = (i.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (j.astype(np.uint32) * np.uint32(0x85EBCA77))
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    byte: Ints = (h >> np.uint32(24)).astype(np.int32)
    return byte


def noise(u: Ints, v: Ints) -> Ints:
    """Value noise: lattice bytes one period apart, blended bilinearly; 0-255."""
    i, j, fu, fv = u >> 10, v >> 10, u & (PERIOD - 1), v & (PERIOD - 1)
    top = _hash(i, j) * (PERIOD - fu) + _hash(i + 1, j) * fu >> 10
    bottom = _hash(i, j + 1) * (PERIOD - fu) + _hash(i + 1, j + 1) * fu >> 10
    return top * (PERIOD - fv) + bottom * fv >> 10


def stripes(u: Ints, v: Ints) -> Ints:
    return _step(_tri(u), 128)


def checks(u: Ints, v: Ints) -> Ints:
    return _step((_tri(u) - 128) * (_tri(v) - 128) >> 6, 0)


def dots(u: Ints, v: Ints) -> Ints:
    a, b = _cell(u), _cell(v)
    return _step(-_root(a * a + b * b), -310, 2)


def rings(u: Ints, v: Ints) -> Ints:
    return _step(_tri(_root((u >> 2) * (u >> 2) + (v >> 2) * (v >> 2)) << 2), 128)


def bricks(u: Ints, v: Ints) -> Ints:
    return _step(np.maximum(_cell(u + ((v >> 10) & 1) * (PERIOD // 2)), _cell(v)), 430, 3)


def waves(u: Ints, v: Ints) -> Ints:
    return _step(_tri(u + SINE[v & (PERIOD - 1)] * 5 // 4), 128)


def zigzag(u: Ints, v: Ints) -> Ints:
    return _step(_tri(u + 4 * _tri(v)), 128)


def scales(u: Ints, v: Ints) -> Ints:
    row = v >> 9
    a, b = _cell(u + (row & 1) * (PERIOD // 2)), (v & 511) + 60
    return np.minimum(_root(a * a + b * b) * 255 // 640, 255)


def camo(u: Ints, v: Ints) -> Ints:
    blotches = 2 * noise(u, v) + noise(2 * u + 77, 2 * v + 177)
    return _step(blotches // 3, 128, 8)


def plaid(u: Ints, v: Ints) -> Ints:
    return (_step(_tri(u), 90) + _step(_tri(v), 150) >> 1) * 3 // 4 + (_step(_tri(3 * v), 190) >> 2)


def mosaic(u: Ints, v: Ints) -> Ints:
    return _hash(u >> 9, v >> 9)


def weave(u: Ints, v: Ints) -> Ints:
    across = ((u >> 10) ^ (v >> 10)) & 1
    return _step(np.where(across == 1, _tri(3 * u), _tri(3 * v)), 110, 4)


def sparks(u: Ints, v: Ints) -> Ints:
    return _step(-(_cell(u) * _cell(v) >> 7), -250, 1)


def diamonds(u: Ints, v: Ints) -> Ints:
    return _step(-np.abs(_cell(u) + _cell(v) - 420), -150, 3)


def marble(u: Ints, v: Ints) -> Ints:
    return _tri(u + 6 * noise(u, v))


def wood(u: Ints, v: Ints) -> Ints:
    return _tri(2 * _root((u >> 2) * (u >> 2) + (v >> 5) * (v >> 5)) + 4 * noise(u, v >> 2))


TEXTURES: dict[str, Texture] = {
    "stripes": stripes, "checks": checks, "dots": dots, "rings": rings, "bricks": bricks,
    "waves": waves, "zigzag": zigzag, "scales": scales, "camo": camo, "plaid": plaid,
}  # fmt: skip
MORE_TEXTURES: dict[str, Texture] = {
    "mosaic": mosaic, "weave": weave, "sparks": sparks, "diamonds": diamonds, "marble": marble, "wood": wood,
}  # fmt: skip
