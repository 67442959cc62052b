"""Frame -> network input on the CPU. The GPU twin is `preprocess.cu`.

OpenCV's bilinear resize is faster here than anything numba gave (docs/results/kernels.md). It rounds its weights to
1/2048, so a value may differ by 1 from the exactly rounded one, which the GPU twin gives.
"""
# Letters: H, W frame height and width; h, w network input.

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Preprocess


class PreprocessPlan:
    """What one frame size needs, made once; calls allocate nothing. Not thread-safe."""

    def __init__(self, frame_hw: tuple[int, int], spec: Preprocess, *, bgr: bool) -> None:
        """For frames of `frame_hw` pixels. bgr: their channels are BGR, as OpenCV reads them; else RGB."""
        self.frame_hw, self.size_hw = frame_hw, spec.size_hw
        placement = spec.place(frame_hw)
        x, y, width, height = placement.source
        left, top, columns, rows = placement.target
        self._source = np.s_[y : y + height, x : x + width]
        self._target = np.s_[top : top + rows, left : left + columns]
        self._padded = (rows, columns) != spec.size_hw
        self._resized = np.empty((rows, columns, 3), np.uint8) if bgr else None
        self._columns_rows = (columns, rows)

    def __call__(self, image: NDArray[np.uint8], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Write the network input of `image`, (H,W,3) uint8, into `out`, (h,w,3) uint8 RGB; give `out`.

        Raises: ValueError: another shape or type.
        """
        _require(image, (*self.frame_hw, 3), "image")
        _require(out, (*self.size_hw, 3), "out")
        if self._padded:
            out.fill(0)
        source, target = image[self._source], out[self._target]
        if self._resized is None:
            cv2.resize(source, self._columns_rows, dst=target, interpolation=cv2.INTER_LINEAR)
        else:
            cv2.resize(source, self._columns_rows, dst=self._resized, interpolation=cv2.INTER_LINEAR)
            cv2.cvtColor(self._resized, cv2.COLOR_BGR2RGB, dst=target)
        return out


def preprocess(
    image: NDArray[np.uint8], spec: Preprocess, *, bgr: bool, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Resize a frame into the network input by `spec.place`; what no pixel of the frame fills is black.

    A loop over frames of one size keeps a `PreprocessPlan` instead.

    Args:    image: (H,W,3) uint8. bgr: its channels are BGR, as OpenCV reads them; else RGB. out: (h,w,3), written.
    Returns: (h,w,3) uint8 RGB, h and w from `spec.size_hw`; bilinear, half-pixel centres. `out` where it was given.
    Raises:  ValueError: `image` is not (H,W,3) uint8, or `out` has another size or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 (H,W,3)")
    plan = PreprocessPlan((image.shape[0], image.shape[1]), spec, bgr=bgr)
    return plan(image, np.empty((*spec.size_hw, 3), np.uint8) if out is None else out)


def _require(array: NDArray[np.uint8], shape: tuple[int, ...], name: str) -> None:
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected uint8 {shape}")
