"""Stride-8 logits -> labels at frame resolution on the CPU. The GPU twin is `upsample_argmax.cu`."""
# Letters: K class, h, w grid (network input / 8), H, W frame.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Placement

STRIDE = 8


def upsample_argmax(
    logits: NDArray[np.floating],
    frame_hw: tuple[int, int],
    placement: Placement | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Class of every pixel: bilinear upsampling with half-pixel centres, then the first largest class.

    Args:    logits: (K,h,w) float32 or float16. placement: where the frame lies in the network input; default: all of it.
             out: (H,W), written.
    Returns: (H,W) uint8; 255 outside `placement.source`.
    """
    height, width = logits.shape[1] * STRIDE, logits.shape[2] * STRIDE
    if placement is None:
        whole = (0, 0, frame_hw[1], frame_hw[0])
        placement = Placement(source=whole, target=(0, 0, width, height))
    if out is None:
        out = np.empty(frame_hw, np.uint8)
    x, y, w, h = placement.source
    left, top, columns, rows = placement.target
    if (w, h) != (frame_hw[1], frame_hw[0]):
        out[:] = IGNORE
    row = (top + (np.arange(h) + 0.5) * rows / h) / STRIDE - 0.5
    column = (left + (np.arange(w) + 0.5) * columns / w) / STRIDE - 0.5
    grid = logits.astype(np.float32)
    r0, r1, fr = _taps(row, grid.shape[1])
    c0, c1, fc = _taps(column, grid.shape[2])
    for i in range(h):
        line = grid[:, r0[i]] * (1 - fr[i]) + grid[:, r1[i]] * fr[i]
        out[y + i, x : x + w] = (line[:, c0] * (1 - fc) + line[:, c1] * fc).argmax(0)
    return out


def _taps(
    position: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    clipped = position.clip(0, size - 1)
    low = np.minimum(np.floor(clipped).astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), (clipped - low).astype(np.float32)
