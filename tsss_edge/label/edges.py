"""Maps on a network's grid + the picture -> maps at the picture's size, their borders on its edges (ours).

A guided filter moves rough borders to the picture's edges. A wide filter suits painted objects and smears photographs
(docs/results/transfer.md), so the radius whose foreground agrees best with visible masks is chosen.
"""
# Letters: K maps, H, W picture, h, w grid.

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Preprocess, Struct
from tsss_edge.data.supervision import MaskOf
from tsss_edge.label.diffusion import Floats
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.ranks import ALONE, World, of_all_processes, this_process
from tsss_edge.scoring import Views, object_truth


class EdgeFit(Struct, frozen=True):
    """How maps are fitted to the picture's edges."""

    radius: float  # of the picture's shorter side; 0 leaves them as the networks see them
    eps: float = 1e-4


RADII = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
CAREFUL = EdgeFit(radius=1 / 64)  # where there is no mask to choose by


class Labeller(Protocol):
    """What finds a foreground."""

    def foreground(self, views: Views, world: World = ALONE) -> Iterator[tuple[str, Floats]]: ...


def choose_edges(labeller: Labeller, known: Views, mask_of: MaskOf) -> EdgeFit:
    """The radius with the best object IoU on the images `known`, of which `mask_of` gives what may be seen. By all processes
    together."""
    if not known.ids:
        return CAREFUL
    counts = {EdgeFit(radius=radius): ConfusionMatrix(2) for radius in RADII}
    for image_id, foreground in labeller.foreground(known, this_process()):
        picture, truth = known.dataset.image(image_id), object_truth(mask_of(image_id))
        for edges, matrix in counts.items():
            matrix.update(object_mask(foreground, picture, known.preprocess, edges), truth)
    counts = {edges: of_all_processes(matrix) for edges, matrix in counts.items()}
    return max(counts, key=lambda edges: float(counts[edges].iou[1]))


def object_mask(
    foreground: Floats, picture: NDArray[np.uint8], preprocess: Preprocess, edges: EdgeFit | None, above: float = 0.5
) -> NDArray[np.uint8]:
    """M (1,h,w) over the whole network input -> (H,W) over the picture, 1 where it is over `above` after the fit to edges."""
    mask: NDArray[np.uint8] = (sharpened(foreground, picture, preprocess, edges)[0] > above).astype(np.uint8)
    return mask


def sharpened(maps: Floats, picture: NDArray[np.uint8], preprocess: Preprocess, edges: EdgeFit | None) -> Floats:
    """Maps (K,h,w) over the whole network input -> (K,H,W) over the picture (H,W,3), their borders on its edges."""
    wide = to_frame(maps, preprocess, picture.shape[:2])
    if edges is not None and edges.radius > 0:
        x, y, width, height = preprocess.place((picture.shape[0], picture.shape[1])).source
        rows, columns = slice(y, y + height), slice(x, x + width)  # what the networks saw; the rest stays undecided
        radius = max(1, round(edges.radius * min(height, width)))
        wide[:, rows, columns] = guided(wide[:, rows, columns], picture[rows, columns], radius, edges.eps)
    return wide


def to_frame(maps: Floats, preprocess: Preprocess, frame_hw: tuple[int, ...]) -> Floats:
    """Maps (K,h,w) over the whole network input -> (K,H,W) over the picture; 0.5 where the network did not look."""
    placement = preprocess.place((frame_hw[0], frame_hw[1]))
    left, top, columns, rows = placement.target
    x, y, width, height = placement.source
    result = np.full((len(maps), frame_hw[0], frame_hw[1]), 0.5, np.float32)
    for target, grid in zip(result, maps, strict=True):
        wide = cv2.resize(np.ascontiguousarray(grid), preprocess.size_hw[::-1])
        target[y : y + height, x : x + width] = cv2.resize(
            wide[top : top + rows, left : left + columns], (width, height)
        )
    return result


def forget_unseen(labels: NDArray[np.uint8], preprocess: Preprocess) -> None:
    """255 where the network did not look, in place: a picture (H,W) that `crop` cuts has such margins."""
    x, y, width, height = preprocess.place((labels.shape[0], labels.shape[1])).source
    labels[:y] = labels[y + height :] = labels[:, :x] = labels[:, x + width :] = IGNORE


def guided(maps: Floats, picture: NDArray[np.uint8], radius: int, eps: float) -> Floats:
    """The guided image filter: around each pixel a map is replaced by its best linear fit on red, green and blue.

    He, Sun and Tang, "Guided Image Filtering", TPAMI 35(6), 2013, equations 14 to 16 (colour guidance).
    Args:    maps: (K,H,W). picture: (H,W,3) RGB. radius: of the window, in pixels. eps: variance (colours 0-1) below
             which a window counts as flat and its map is averaged.
    Returns: (K,H,W), near the range of the maps, but not held to it.
    """
    colors: Floats = picture.astype(np.float32) / np.float32(255)
    mean = _box(colors, radius)
    flat = np.float32(eps) * np.eye(3, dtype=np.float32)
    inverse = _inverse(_covariance(colors, mean, radius) + flat)
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


def _inverse(matrices: Floats) -> Floats:
    """Inverses of symmetric (H,W,3,3) matrices by their cofactors, in double precision: nine times as fast as LAPACK one by one."""
    a, b, c = (matrices[..., 0, k].astype(np.float64) for k in range(3))
    d, e, f = (matrices[..., i, j].astype(np.float64) for i, j in ((1, 1), (1, 2), (2, 2)))
    cofactors = {
        (0, 0): d * f - e * e, (0, 1): c * e - b * f, (0, 2): b * e - c * d,
        (1, 1): a * f - c * c, (1, 2): b * c - a * e, (2, 2): a * d - b * b,
    }  # fmt: skip
    scale = 1 / (a * cofactors[0, 0] + b * cofactors[0, 1] + c * cofactors[0, 2])
    inverse = np.empty_like(matrices)
    for (row, column), cofactor in cofactors.items():
        inverse[..., row, column] = inverse[..., column, row] = cofactor * scale
    return inverse


def _box(values: Floats, radius: int) -> Floats:
    """Mean over the window; channels one by one, for OpenCV's blur takes four at most."""
    side, border = (2 * radius + 1, 2 * radius + 1), cv2.BORDER_REFLECT
    if values.ndim == 2:
        return cv2.blur(values, side, borderType=border)  # type: ignore[return-value]
    channels = [cv2.blur(np.ascontiguousarray(c), side, borderType=border) for c in np.moveaxis(values, -1, 0)]
    return np.stack(channels, axis=-1).astype(np.float32)
