"""Frame and labels -> blended frame on the CPU, and outlines. The GPU twin of the blend is `overlay.cu`."""
# Letters: H, W frame. A run is a stretch of a row with one label; runs that stay as they are cost a scan of 8 labels a step.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import boolean, int64, uint8, uint16, uint64, void
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE
from tsss_edge.kernels.jit import compiled, read, write

Palette = Sequence[tuple[int, int, int]]


class OverlayPlan:
    """What one frame size, palette and alpha need, made once; calls allocate nothing. Safe in several threads at once."""

    def __init__(
        self, frame_hw: tuple[int, int], palette: Palette, alpha: float = 0.5, shown: Sequence[int] | None = None
    ) -> None:
        """Colours for frames of `frame_hw`; arguments as in `overlay`. Raises: ValueError: as `overlay`."""
        self.frame_hw = frame_hw
        table, keep = tint_table(palette, alpha, shown)
        self._shown, self._keep = table[:, 3] == 1, np.uint16(keep)
        self._tint = np.tile(table[: len(palette), :3], (1, frame_hw[1]))  # (K,3W): a colour for every byte of a row

    def __call__(self, frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Blend into `frame`, (H,W,3) uint8 BGR, in place; give `frame`. labels: (H,W) uint8. Both C-contiguous.

        Raises: ValueError: another shape, type or layout.
        """
        _require(frame, (*self.frame_hw, 3), "frame")
        _require(labels, self.frame_hw, "labels")
        flat = labels.reshape(-1)
        words = flat[: flat.size // 8 * 8].view(np.uint64)
        _blend(flat, words, self._shown, self._tint, self._keep, frame.reshape(self.frame_hw[0], -1))
        return frame


def overlay(
    frame: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    palette: Palette,
    alpha: float = 0.5,
    out: NDArray[np.uint8] | None = None,
    *,
    shown: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Blend class colours into a frame: (value * (256 - a) + colour * a + 128) >> 8 with a = round(256 * alpha).

    A loop over frames of one size keeps an `OverlayPlan` instead.

    Args:    frame: (H,W,3) uint8 BGR. labels: (H,W) uint8. palette: one RGB colour a class. alpha: 0 (frame) to 1 (colour).
             out: written; may be `frame`. C-contiguous, as `labels`.
             shown: classes to colour, the others stay as they are; default: those whose colour is not black, which
             leaves VOC's background alone. A set without a background gives all (`Classes.objects`).
    Returns: (H,W,3) uint8 BGR, `out` where it was given.
    Raises:  ValueError: another shape, type or layout; alpha outside 0-1; a shown class without a colour.
    """
    if out is None:
        out = np.empty(frame.shape, np.uint8)
    plan = OverlayPlan((frame.shape[0], frame.shape[1]), palette, alpha, shown)
    if out is not frame:
        np.copyto(out, frame)
    return plan(out, labels)


class OutlinePlan:
    """Solid lines in the classes' colours along the borders of regions. Made once for a frame size; calls allocate nothing."""

    def __init__(self, frame_hw: tuple[int, int], palette: Palette, shown: Sequence[int], thickness: int = 1) -> None:
        """Args: palette, shown: as in `overlay`. thickness: pixels of the line, on either side of a border."""
        table, _ = tint_table(palette, 1.0, shown)
        self.frame_hw = frame_hw
        self._shown, self._thickness = table[:, 3] == 1, thickness
        self._colours = np.zeros((IGNORE + 1, 3), np.uint8)
        self._colours[: len(palette)] = np.array(palette, np.uint8)[:, ::-1]

    def __call__(self, frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Draw on `frame`, (H,W,3) uint8 BGR, in place; give `frame`. labels: (H,W) uint8. Both C-contiguous.

        A pixel of a shown class is of its line where a pixel of another label is at most `thickness` away, in its row or
        column. The rim of the frame is no border.
        Raises: ValueError: another shape, type or layout.
        """
        _require(frame, (*self.frame_hw, 3), "frame")
        _require(labels, self.frame_hw, "labels")
        flat = labels.reshape(-1)
        words = flat[: flat.size // 8 * 8].view(np.uint64)
        _outline(flat, words, self._shown, self._colours, self._thickness, self.frame_hw[1], frame.reshape(-1, 3))
        return frame


def tint_table(palette: Palette, alpha: float, shown: Sequence[int] | None) -> tuple[NDArray[np.uint16], int]:
    """Terms of the blend, for the GPU too: (256,4) uint16, for each label colour * a + 128 in BGR order and whether it is
    shown (1 or 0); and 256 - a. Raises: ValueError: as `overlay`."""
    shown = check_palette(palette, alpha, shown)
    a = round(256 * alpha)
    table = np.zeros((IGNORE + 1, 4), np.uint16)
    table[: len(palette), :3] = np.array(palette, np.uint16)[:, ::-1] * np.uint16(a) + np.uint16(128)
    table[list(shown), 3] = 1
    return table, 256 - a


def check_palette(palette: Palette, alpha: float, shown: Sequence[int] | None) -> Sequence[int]:
    """Give the classes to colour. Raises: ValueError: as `overlay`."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected 0 to 1")
    if not 1 <= len(palette) <= IGNORE:
        raise ValueError(f"{len(palette)} colours; expected 1 to {IGNORE}, one a class")
    if shown is None:
        shown = [k for k, colour in enumerate(palette) if any(colour)]
    if unknown := [k for k in shown if not 0 <= k < len(palette)]:
        raise ValueError(f"shown names class {unknown[0]}; the palette has 0 to {len(palette) - 1}")
    return shown


def _require(array: NDArray[np.uint8], shape: tuple[int, ...], name: str) -> None:
    if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected C-contiguous uint8 {shape}")


@compiled(int64(read(uint8, 1), read(uint64, 1), int64, int64))
def run_end(labels, words, p, end):  # type: ignore[no-untyped-def]
    """End of the run that begins at `p`, at most `end`. `words` are the labels, eight at a time."""
    label = labels[p]
    while p < end and p & 7 and labels[p] == label:
        p += 1
    if not p & 7:
        eight = np.uint64(label) * np.uint64(0x0101010101010101)
        while p + 8 <= end and words[p >> 3] == eight:
            p += 8
    while p < end and labels[p] == label:
        p += 1
    return p


@compiled(void(read(uint8, 1), read(uint64, 1), read(boolean, 1), read(uint16, 2), uint16, write(uint8, 2)))
def _blend(labels, words, shown, tint, keep, rows):  # type: ignore[no-untyped-def]
    """Rows of the frame, (H,3W), in place. 16-bit arithmetic and slices of one length: the inner loop runs in SIMD lanes."""
    height = rows.shape[0]
    width = rows.shape[1] // 3
    for y in range(height):
        start, end = y * width, (y + 1) * width
        while start < end:
            stop = run_end(labels, words, start, end)
            label = labels[start]
            if shown[label]:
                begin, length = 3 * (start - y * width), 3 * (stop - start)
                pixels = rows[y, begin : begin + length]
                colour = tint[label, begin : begin + length]
                for i in range(length):
                    pixels[i] = np.uint16(np.uint16(pixels[i]) * keep + colour[i]) >> np.uint16(8)
            start = stop


@compiled(void(write(uint8, 2), int64, int64, read(uint8, 2), int64))
def _paint(pixels, start, stop, colours, label):  # type: ignore[no-untyped-def]
    for p in range(start, stop):
        for c in range(3):
            pixels[p, c] = colours[label, c]


@compiled(void(read(uint8, 1), read(uint64, 1), read(boolean, 1), read(uint8, 2), int64, int64, write(uint8, 2)))
def _outline(labels, words, shown, colours, thickness, width, pixels):  # type: ignore[no-untyped-def]
    """For each run: its ends, then what differs in the rows above and below, which are scanned 8 labels a step too."""
    height = labels.size // width
    for y in range(height):
        row, end = y * width, (y + 1) * width
        start = row
        while start < end:
            stop = run_end(labels, words, start, end)
            label = labels[start]
            if shown[label]:
                if start > row:
                    _paint(pixels, start, min(stop, start + thickness), colours, label)
                if stop < end:
                    _paint(pixels, max(start, stop - thickness), stop, colours, label)
                for other in range(max(0, y - thickness), min(height, y + thickness + 1)):
                    shift = (other - y) * width
                    p = start + shift
                    while p < stop + shift:
                        if labels[p] == label:
                            p = run_end(labels, words, p, stop + shift)
                        else:
                            _paint(pixels, p - shift, p - shift + 1, colours, label)
                            p += 1
            start = stop
