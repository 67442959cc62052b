"""Frame and labels -> blended frame on the CPU. The GPU twin is `overlay.cu`."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE


def overlay(
    frame: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    palette: Sequence[tuple[int, int, int]],
    alpha: float = 0.5,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Blend class colours into a frame; black classes (VOC's background) and 255 stay as they are.

    Args:    frame: (H,W,3) uint8 BGR. labels: (H,W) uint8. palette: one RGB colour a class. out: written; may be `frame`.
    Returns: (H,W,3) uint8 BGR, `out` where it was given.
    """
    colours = np.zeros((IGNORE + 1, 1, 3), np.uint8)
    colours[: len(palette), 0] = np.array(palette, np.uint8)[:, ::-1]
    shown = np.zeros(IGNORE + 1, np.uint8)
    shown[: len(palette)] = [255 if any(c) else 0 for c in palette]
    mixed = cv2.addWeighted(frame, 1 - alpha, cv2.LUT(cv2.merge([labels] * 3), colours), alpha, 0.0)
    if out is None:
        out = frame.copy()
    elif out is not frame:
        out[:] = frame
    cv2.copyTo(mixed, cv2.LUT(labels, shown), out)
    return out
