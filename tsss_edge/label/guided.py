"""Soft maps + the picture they belong to -> the same maps with the picture's edges: the guided image filter.

He, Sun and Tang, "Guided Image Filtering", TPAMI 35(6), 2013, equations 14 to 16 (colour guidance): around each pixel a map
is replaced by its best linear fit on red, green and blue. Maps come from a stride-8 grid and are wide of the mark at
borders; the picture knows where they run.
"""
# Letters: K maps, H, W picture.

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def guided(maps: Floats, picture: NDArray[np.uint8], radius: int, eps: float) -> Floats:
    """Filter each map.

    Args:    maps: (K,H,W). picture: (H,W,3) RGB. radius: of the window, in pixels. eps: variance (colours 0-1) below
             which a window counts as flat and its map is averaged.
    Returns: (K,H,W), near the range of the maps, but not held to it.
    """
    colors: Floats = picture.astype(np.float32) / np.float32(255)
    mean = _box(colors, radius)
    flat = np.float32(eps) * np.eye(3, dtype=np.float32)
    inverse = np.linalg.inv(_covariance(colors, mean, radius) + flat).astype(np.float32)
    return np.stack([_fit(grid, colors, mean, inverse, radius) for grid in maps])


def _fit(grid: Floats, colors: Floats, mean: Floats, inverse: Floats, radius: int) -> Floats:
    level = _box(grid, radius)
    together = _box(colors * grid[..., None], radius) - mean * level[..., None]
    slope = np.einsum("hwab,hwb->hwa", inverse, together)
    offset = level - np.einsum("hwa,hwa->hw", slope, mean)
    filtered: Floats = np.einsum("hwa,hwa->hw", _box(slope, radius), colors) + _box(offset, radius)
    return filtered


def _covariance(colors: Floats, mean: Floats, radius: int) -> Floats:
    """(H,W,3,3) of the colours in each window."""
    products = colors[..., :, None] * colors[..., None, :]
    flat = _box(products.reshape(*colors.shape[:2], 9), radius).reshape(products.shape)
    return flat - mean[..., :, None] * mean[..., None, :]


def _box(values: Floats, radius: int) -> Floats:
    """Mean over the window; channels one by one, for OpenCV's blur takes four at most."""
    side = (2 * radius + 1, 2 * radius + 1)
    if values.ndim == 2:
        return cv2.blur(values, side, borderType=cv2.BORDER_REFLECT)  # type: ignore[return-value]
    channels = [
        cv2.blur(np.ascontiguousarray(c), side, borderType=cv2.BORDER_REFLECT) for c in np.moveaxis(values, -1, 0)
    ]
    return np.stack(channels, axis=-1).astype(np.float32)
