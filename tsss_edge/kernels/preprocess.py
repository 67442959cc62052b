"""Frame -> network input on the CPU. The GPU twin is `preprocess.cu`."""
# Letters: H, W frame height and width; h, w network input.

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Preprocess


def preprocess(
    image: NDArray[np.uint8], spec: Preprocess, *, bgr: bool, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Resize a frame into the network input by `spec.place`; what no pixel of the frame fills is black.

    Args:    image: (H,W,3) uint8. bgr: its channels are BGR, as OpenCV reads them; else RGB. out: (h,w,3), written.
    Returns: (h,w,3) uint8 RGB, h and w from `spec.size_hw`; bilinear, half-pixel centres. `out` where it was given.
    Raises:  ValueError: `image` is not (H,W,3) uint8, or `out` has another size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 (H,W,3)")
    if out is None:
        out = np.empty((*spec.size_hw, 3), np.uint8)
    elif out.shape != (*spec.size_hw, 3):
        raise ValueError(f"out is {out.shape}; expected {(*spec.size_hw, 3)}")
    placement = spec.place((image.shape[0], image.shape[1]))
    x, y, width, height = placement.source
    left, top, columns, rows = placement.target
    if (columns, rows) != (out.shape[1], out.shape[0]):
        out[:] = 0
    target = out[top : top + rows, left : left + columns]
    resized = cv2.resize(image[y : y + height, x : x + width], (columns, rows), interpolation=cv2.INTER_LINEAR)
    target[:] = resized[..., ::-1] if bgr else resized
    return out
