"""Planes and labels -> blended planes on the CPU, in place. The GPU twin is `overlay_yuv.cu`: the same bytes.

Luma is blended as a byte of BGR is. A chroma value stands for two by two pixels and gets the mean of what each would give it, so
a region's edge is as sharp as its luma.
"""
# Letters: H, W frame; h, w chroma. Labels of two rows are looked at together; where both stay the same a stretch is one loop.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import int64, uint8, uint16, uint64, void
from numpy.typing import NDArray

from tsss_edge.kernels.jit import compiled, read, write
from tsss_edge.kernels.overlay import Palette, check_palette, run_end
from tsss_edge.kernels.yuv import Colour, Yuv


class YuvOverlayPlan:
    """What one frame size, palette, colour and alpha need, made once; calls allocate nothing. Safe in several threads at once."""

    def __init__(
        self,
        frame_hw: tuple[int, int],
        palette: Palette,
        colour: Colour,
        alpha: float = 0.5,
        shown: Sequence[int] | None = None,
    ) -> None:
        """Colours for frames of `frame_hw`; arguments as in `overlay.overlay`. Raises: ValueError: as there."""
        self.frame_hw, self.colour = frame_hw, colour
        self._tints, keep = yuv_tint_table(palette, colour, alpha, shown)
        self._keep = np.int64(keep)

    def __call__(self, picture: Yuv, labels: NDArray[np.uint8]) -> Yuv:
        """Blend into dense I420 planes, in place; give them. labels: (H,W) uint8, C-contiguous.

        Raises: ValueError: another size, colour or layout.
        """
        dense = not picture.pairs and all(p.flags.c_contiguous for p in (picture.y, *picture.chroma))
        if picture.frame_hw != self.frame_hw or picture.colour != self.colour or not dense:
            raise ValueError(f"expected dense I420 planes of {self.frame_hw}, {self.colour}")
        if labels.shape != self.frame_hw or labels.dtype != np.uint8 or not labels.flags.c_contiguous:
            raise ValueError(f"labels is {labels.dtype} {labels.shape}; expected C-contiguous uint8 {self.frame_hw}")
        flat = labels.reshape(-1)
        words = flat[: flat.size // 8 * 8].view(np.uint64)
        _blend_luma(flat, words, self._tints, self._keep, picture.y)
        _blend_chroma(flat, words, self._tints, self._keep, *self.frame_hw, picture.u, picture.v)
        return picture


def yuv_tint_table(
    palette: Palette, colour: Colour, alpha: float, shown: Sequence[int] | None
) -> tuple[NDArray[np.uint16], int]:
    """Terms of the blend, for the GPU too: (256,4) uint16, for each label colour * a as Y, U, V (128 added to Y) and whether it
    is shown (1 or 0); and 256 - a. Raises: ValueError: as `overlay`."""
    shown = check_palette(palette, alpha, shown)
    a = round(256 * alpha)
    table = np.zeros((256, 4), np.uint16)
    table[: len(palette), :3] = np.rint(a * colour.from_rgb(np.array(palette, np.float64)))
    table[: len(palette), 0] += np.uint16(128)
    table[list(shown), 3] = 1
    return table, 256 - a


_LABELS, _WORDS, _TINTS, _ROWS = read(uint8, 1), read(uint64, 1), read(uint16, 2), write(uint8, 2)


@compiled(void(_LABELS, _WORDS, _TINTS, int64, _ROWS))
def _blend_luma(labels, words, tints, keep, rows):  # type: ignore[no-untyped-def]
    """(H,W) in place, a run of one label at a time. 16-bit arithmetic: the inner loop runs in SIMD lanes."""
    height, width = rows.shape
    keep = np.uint16(keep)
    for y in range(height):
        start, end = y * width, (y + 1) * width
        while start < end:
            stop = run_end(labels, words, start, end)
            tint = tints[labels[start]]
            if tint[3]:
                pixels, colour = rows[y, start - y * width : stop - y * width], tint[0]
                for i in range(pixels.shape[0]):
                    pixels[i] = np.uint16(np.uint16(pixels[i]) * keep + colour) >> np.uint16(8)
            start = stop


@compiled(void(write(uint8, 1), int64, int64))
def _mix(values, kept, tint):  # type: ignore[no-untyped-def]
    """(value * kept + tint + 512) >> 10, in place; where both are four times something in 16 bits."""
    if kept % 4 == 0 and tint % 4 == 0 and kept <= 1024:
        keep, colour = np.uint16(kept >> 2), np.uint16((tint >> 2) + 128)
        for i in range(values.shape[0]):
            values[i] = np.uint16(np.uint16(values[i]) * keep + colour) >> np.uint16(8)
    else:
        for i in range(values.shape[0]):
            values[i] = (values[i] * kept + tint + 512) >> 10


@compiled(void(_LABELS, _WORDS, _TINTS, int64, int64, int64, _ROWS, _ROWS))
def _blend_chroma(labels, words, tints, keep, height, width, us, vs):  # type: ignore[no-untyped-def]
    """(h,w) each, in place. Beyond an odd side the last line counts twice."""
    h, w = us.shape
    for row in range(h):
        top = 2 * row * width
        bottom = min(2 * row + 1, height - 1) * width
        top_end, bottom_end = top, bottom
        column = 0
        while column < w:
            at = 2 * column
            if top + at >= top_end:
                top_end = run_end(labels, words, top + at, top + width)
            if bottom + at >= bottom_end:
                bottom_end = run_end(labels, words, bottom + at, bottom + width)
            same = min(top_end - top, bottom_end - bottom)
            stop = w if same == width else same >> 1
            kept, blue, red = 0, 0, 0
            right = min(at + 1, width - 1) if stop <= column else at
            for place in (top + at, top + right, bottom + at, bottom + right):
                tint = tints[labels[place]]
                if tint[3]:
                    kept, blue, red = kept + keep, blue + tint[1], red + tint[2]
                else:
                    kept += 256
            stop = max(stop, column + 1)
            if kept != 1024 or blue != 0:
                _mix(us[row, column:stop], kept, blue)
                _mix(vs[row, column:stop], kept, red)
            column = stop
