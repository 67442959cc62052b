"""Planes -> network input on the CPU, without a BGR picture between. The GPU twin is `preprocess_yuv.cu`: the same bytes.

Each plane is resized by OpenCV's bit-exact bilinear (weights in 1/256), then three values become RGB. Against the exactly
resized RGB picture a value is off by at most 3: weights and planes are rounded before the matrix, which makes up to 2.1 of 1.
"""
# Letters: H, W frame height and width; h, w network input.

from __future__ import annotations

import cv2
import numpy as np
from numba import int32, uint8, void
from numpy.typing import NDArray

from tsss_edge.artifacts import Placement, Preprocess
from tsss_edge.kernels.jit import compiled, read, write
from tsss_edge.kernels.yuv import Matrix, Yuv


class YuvPreprocessPlan:
    """What one frame size needs, made once; calls allocate nothing for I420. Not thread-safe."""

    def __init__(self, frame_hw: tuple[int, int], spec: Preprocess) -> None:
        """For frames of `frame_hw` pixels."""
        self._make(frame_hw, spec.place(frame_hw), spec.size_hw)

    def _make(self, frame_hw: tuple[int, int], placement: Placement, size_hw: tuple[int, int]) -> None:
        self.frame_hw, self.size_hw = frame_hw, size_hw
        x, y, width, height = placement.source
        left, top, columns, rows = placement.target
        self._luma = np.s_[y : y + height, x : x + width]
        self._chroma = np.s_[y // 2 : (y + height + 1) // 2, x // 2 : (x + width + 1) // 2]
        self._target = np.s_[top : top + rows, left : left + columns]
        self._rgb = np.empty((rows, columns, 3), np.uint8) if (rows, columns) != size_hw else None
        self._planes = np.empty((3, rows, columns), np.uint8)
        self._columns_rows = (columns, rows)

    def __call__(self, picture: Yuv, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Write the network input of `picture` into `out`, (h,w,3) uint8 RGB, C-contiguous; give `out`.

        Raises: ValueError: another size, type or layout.
        """
        if picture.frame_hw != self.frame_hw:
            raise ValueError(f"the picture is {picture.frame_hw}; this plan was made for {self.frame_hw}")
        if out.shape != (*self.size_hw, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected C-contiguous uint8 {(*self.size_hw, 3)}")
        self._sample(picture)
        if self._rgb is None:
            _to_rgb(*self._planes.reshape(3, -1), *picture.colour.terms, out.reshape(-1))
            return out
        _to_rgb(*self._planes.reshape(3, -1), *picture.colour.terms, self._rgb.reshape(-1))
        out.fill(0)
        np.copyto(out[self._target], self._rgb)
        return out

    def _sample(self, picture: Yuv) -> None:
        y, u, v = self._planes
        _resize(picture.y[self._luma], self._columns_rows, y)
        if picture.pairs:
            pairs = _resize(picture.chroma[0][self._chroma], self._columns_rows, None)
            u[...], v[...] = pairs[..., 0], pairs[..., 1]
        else:
            _resize(picture.u[self._chroma], self._columns_rows, u)
            _resize(picture.v[self._chroma], self._columns_rows, v)


def yuv_to_bgr(picture: Yuv, size_hw: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """(H,W,3) uint8 BGR of planes, by the formula of the network input; fresh memory. size_hw: another size than the frame's."""
    size_hw = size_hw or picture.frame_hw
    planes = [_resize(plane, size_hw[::-1], None) for plane in (picture.y, *picture.chroma)]
    y, u, v = (planes[0], planes[1][..., 0], planes[1][..., 1]) if picture.pairs else planes
    out = np.empty((*size_hw, 3), np.uint8)
    m = picture.colour.terms
    swapped = Matrix(
        m.luma_zero, m.luma, m.blue_u, m.green_v, m.green_u, m.red_v
    )  # U and V change places: BGR comes out
    _to_rgb(y.reshape(-1), v.reshape(-1), u.reshape(-1), *swapped, out.reshape(-1))
    return out


def _resize(
    plane: NDArray[np.uint8], columns_rows: tuple[int, int], out: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(plane, columns_rows, dst=out, interpolation=cv2.INTER_LINEAR_EXACT), np.uint8)


_PLANE = read(uint8, 1)


@compiled(void(_PLANE, _PLANE, _PLANE, int32, int32, int32, int32, int32, int32, write(uint8, 1)))
def _to_rgb(y, u, v, luma_zero, luma, red_v, green_u, green_v, blue_u, out):  # type: ignore[no-untyped-def]
    """Values of three planes -> (3n,) RGB. Every step is cut to 32 bits: numba would go on in 64, and in half the SIMD lanes."""
    for i in range(y.shape[0]):
        gray = np.int32(np.int32(np.int32(y[i]) - luma_zero) * luma) + np.int32(4096)
        blue, red = np.int32(np.int32(u[i]) - np.int32(128)), np.int32(np.int32(v[i]) - np.int32(128))
        r = np.int32(gray + np.int32(red_v * red)) >> np.int32(13)
        g = np.int32(np.int32(gray - np.int32(green_u * blue)) - np.int32(green_v * red)) >> np.int32(13)
        b = np.int32(gray + np.int32(blue_u * blue)) >> np.int32(13)
        out[3 * i] = min(max(r, np.int32(0)), np.int32(255))
        out[3 * i + 1] = min(max(g, np.int32(0)), np.int32(255))
        out[3 * i + 2] = min(max(b, np.int32(0)), np.int32(255))
