"""Integer texture coordinates -> texture: how much of the second colour each pixel takes.

Integer arithmetic only, so that every platform draws the same bytes. One period is `PERIOD` units of u or v, and u = v = 0
is the middle of the object. All formulas are ours.
"""
# Letters: h height, w width of a patch.

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

PERIOD = 1024
Ints = NDArray[np.int32]
Texture = Callable[[Ints, Ints], Ints]

SINE = np.array([round(256 * math.sin(2 * math.pi * i / PERIOD)) for i in range(PERIOD)], np.int32)


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


FIRST: dict[str, Texture] = {
    "stripes": stripes, "checks": checks, "dots": dots, "rings": rings, "bricks": bricks,
    "waves": waves, "zigzag": zigzag, "scales": scales, "camo": camo, "plaid": plaid,
}  # fmt: skip
SECOND: dict[str, Texture] = {
    "mosaic": mosaic, "weave": weave, "sparks": sparks, "diamonds": diamonds, "marble": marble, "wood": wood,
}  # fmt: skip
