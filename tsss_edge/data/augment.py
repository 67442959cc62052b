"""A decoded picture and its mask -> one random view of both at network input size, reproducible by its generator.

Geometry is one axis-aligned map, so picture and mask are resampled once: the way `Preprocess` would place the picture,
times a random scale, at a random offset, perhaps mirrored. At scale 1 without flip it is exactly what `Preprocess` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Preprocess

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
MIN_SIDE = 2.0  # network input pixels that a picture keeps at least


@dataclass(frozen=True)
class _Axis:
    """One axis of the map: picture coordinate p lies at `offset + p * scale` of the output (edges, not centres)."""

    scale: float
    offset: float
    length: int  # picture pixels
    size: int  # output pixels

    @property
    def inside(self) -> slice:
        """Output pixels whose centre lies in the picture."""
        start = math.ceil(self.offset - 0.5)
        stop = math.ceil(self.offset + self.length * self.scale - 0.5)
        return slice(min(max(start, 0), self.size), min(max(stop, 0), self.size))

    @property
    def nearest(self) -> NDArray[np.int64]:
        """Picture pixel under the centre of each output pixel of `inside`."""
        centres = np.arange(self.inside.start, self.inside.stop) + 0.5
        return np.floor((centres - self.offset) / self.scale).astype(np.int64).clip(0, self.length - 1)


@dataclass(frozen=True)
class TrainAugment:
    """Random scale, offset, flip and colour.

    Args:    size_hw: output height and width.
             preprocess: decides what scale 1 is (see `Preprocess.place`).
             scale_range: bounds of the random scale, drawn log-uniformly.
             aspect: largest factor by which the two axes may differ.
             flip: probability of mirroring left and right.
             color: strength of brightness, contrast, saturation and hue jitter, 0 turns it off; probability 0.8.
             blur: probability of a light blur.
    """

    size_hw: tuple[int, int]
    preprocess: Preprocess
    scale_range: tuple[float, float] = (0.5, 2.0)
    aspect: float = 1.1
    flip: float = 0.5
    color: float = 0.3
    blur: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range {self.scale_range}: expected 0 < low <= high")
        if self.aspect < 1 or not 0 <= self.color < 1:
            raise ValueError(f"aspect {self.aspect}, color {self.color}: expected aspect >= 1 and 0 <= color < 1")

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """One random view.

        Args:    image: (H,W,3) uint8 RGB. mask: (H,W) uint8.
        Returns: (h,w,3) uint8, bilinear, black outside the picture; (h,w) uint8, nearest, 255 outside.
        Raises:  ValueError: picture and mask differ in size.
        """
        if image.shape[:2] != mask.shape:
            raise ValueError(f"picture {image.shape[:2]} and mask {mask.shape} must have one size")
        u = rng.random(12)  # always as many, so that a switch changes only what it switches
        rows, columns = self._axes(mask.shape, u[1:5])
        view, labels = _resample(image, rows, columns), _nearest(mask, rows, columns)
        if self.color and u[5] < 0.8:
            view = _recolor(view, self.color, u[6:11])
        if u[11] < self.blur:
            view = cv2.GaussianBlur(view, (3, 3), 0)  # type: ignore[assignment]
        view = _blacken_outside(view, rows.inside, columns.inside)
        if u[0] < self.flip:  # after the crop: its offset is as likely on either side
            view, labels = cv2.flip(view, 1), cv2.flip(labels, 1)  # type: ignore[assignment]
        return view, labels

    def _axes(self, frame_hw: tuple[int, int], u: NDArray[np.float64]) -> tuple[_Axis, _Axis]:
        low, high = self.scale_range
        scale = low * (high / low) ** u[0]
        stretch = self.aspect ** (u[1] - 0.5)
        placement = self.preprocess.place(frame_hw)
        (*_, source_w, source_h), (*_, target_w, target_h) = placement.source, placement.target
        row_scale = max(scale * stretch * target_h / source_h, MIN_SIDE / frame_hw[0])
        column_scale = max(scale / stretch * target_w / source_w, MIN_SIDE / frame_hw[1])
        return _axis(row_scale, frame_hw[0], self.size_hw[0], u[2]), _axis(
            column_scale, frame_hw[1], self.size_hw[1], u[3]
        )


def _axis(scale: float, length: int, size: int, u: float) -> _Axis:
    """Offset at share `u` of the free room: what sticks out when the picture is larger, padding when it is smaller."""
    return _Axis(scale=scale, offset=u * (size - length * scale), length=length, size=size)


def _nearest(mask: NDArray[np.uint8], rows: _Axis, columns: _Axis) -> NDArray[np.uint8]:
    """The label under the centre of each output pixel, 255 outside the picture."""
    labels = np.full((rows.size, columns.size), IGNORE, np.uint8)
    labels[rows.inside, columns.inside] = mask[rows.nearest][:, columns.nearest]
    return labels


def _resample(image: NDArray[np.uint8], rows: _Axis, columns: _Axis) -> NDArray[np.uint8]:
    """Bilinear with half-pixel centres: output centre c is picture centre `(c + 0.5 - offset) / scale - 0.5`."""
    row, column = rows, columns
    inverse = np.array(
        [
            [1 / column.scale, 0, (0.5 - column.offset) / column.scale - 0.5],
            [0, 1 / row.scale, (0.5 - row.offset) / row.scale - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(  # type: ignore[return-value]
        image, inverse, (column.size, row.size), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def _recolor(image: NDArray[np.uint8], strength: float, u: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Contrast, saturation and hue as one 3x3 matrix, brightness as its offset, gamma as a table."""
    contrast, saturation, gamma = np.exp(strength * (2 * u[:3] - 1) * (1.0, 1.5, 0.7))
    angle = 0.3 * strength * math.pi * (2 * u[3] - 1)
    matrix = contrast * _hue_rotation(angle) @ (saturation * np.eye(3) + (1 - saturation) * LUMA)
    shift = 127.5 * (1 - contrast) + 100 * strength * (2 * u[4] - 1)
    view = cv2.transform(image, np.hstack([matrix, np.full((3, 1), shift)]))
    table = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return cv2.LUT(view, table)  # type: ignore[return-value]


def _hue_rotation(angle: float) -> NDArray[np.float64]:
    """(3,3) rotation about the grey axis by `angle` radians (Rodrigues' formula with axis (1,1,1)/sqrt(3))."""
    cosine, sine = math.cos(angle), math.sin(angle) / math.sqrt(3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return cosine * np.eye(3) + (1 - cosine) / 3 * np.ones((3, 3)) + sine * cross


def _blacken_outside(image: NDArray[np.uint8], rows: slice, columns: slice) -> NDArray[np.uint8]:
    """Padding is black, as letterboxing pads at inference, whatever the colours were changed to."""
    image[: rows.start] = 0
    image[rows.stop :] = 0
    image[:, : columns.start] = 0
    image[:, columns.stop :] = 0
    return image
