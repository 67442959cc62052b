"""Frames as decoders give them: a luma plane, and chroma planes of half its height and width (I420, NV12)."""
# Letters: H, W frame; h, w chroma, half of them rounded up.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

ONE = 8192  # of the matrix terms: a term of 1.0
LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # red, blue; ITU-R BT.601-7 and BT.709-6, section 3


class Matrix(NamedTuple):
    """What makes RGB of one luma and two chroma values, as both kernels take it: integers in 1/8192 but the first.

    red = luma * (Y - luma_zero) + red_v * (V - 128), green = ... - green_u * (U - 128) - green_v * (V - 128),
    blue = ... + blue_u * (U - 128); then + 4096, >> 13, cut to 0-255.
    """

    luma_zero: int
    luma: int
    red_v: int
    green_u: int
    green_v: int
    blue_u: int


@dataclass(frozen=True)
class Colour:
    """What the numbers of the planes mean. One holds for a whole stream, from its metadata.

    full: 0-255 (JPEG); else luma 16-235 and chroma 16-240, as video is.
    """

    matrix: Literal["bt601", "bt709"] = "bt601"
    full: bool = False

    @property
    def terms(self) -> Matrix:
        """The way to RGB."""
        red, blue = LUMA_WEIGHTS[self.matrix]
        green, luma, chroma = 1 - red - blue, self._luma_scale, 255 / self._chroma_range
        terms = (
            luma,
            2 * (1 - red) * chroma,
            2 * (1 - blue) * blue / green * chroma,
            2 * (1 - red) * red / green * chroma,
            2 * (1 - blue) * chroma,
        )
        return Matrix(0 if self.full else 16, *(round(ONE * term) for term in terms))

    def from_rgb(self, rgb: NDArray[np.floating]) -> NDArray[np.float64]:
        """(...,3) RGB 0-255 -> (...,3) Y, U, V, not rounded."""
        red, blue = LUMA_WEIGHTS[self.matrix]
        r, g, b = np.moveaxis(np.asarray(rgb, np.float64), -1, 0)
        y = red * r + (1 - red - blue) * g + blue * b
        chroma = self._chroma_range / 255
        u, v = (b - y) / (2 * (1 - blue)) * chroma + 128, (r - y) / (2 * (1 - red)) * chroma + 128
        return np.stack([y / self._luma_scale + (0 if self.full else 16), u, v], axis=-1)

    @property
    def _luma_scale(self) -> float:
        return 1.0 if self.full else 255 / 219

    @property
    def _chroma_range(self) -> int:
        return 255 if self.full else 224


@dataclass(frozen=True, eq=False, slots=True)
class Yuv:
    """One picture in planes, uint8. Rows may be longer than the picture is wide; values of a row lie side by side.

    chroma: two planes (h,w), U and V (I420), or one plane (h,w,2) of pairs (NV12). owner: keeps their memory.
    """

    y: NDArray[np.uint8]
    chroma: tuple[NDArray[np.uint8], ...]
    colour: Colour
    owner: Any = None

    @classmethod
    def empty(cls, frame_hw: tuple[int, int], colour: Colour, *, pairs: bool = False) -> Yuv:
        """Dense planes, not set. pairs: NV12, else I420."""
        return cls.over(np.empty(yuv_bytes(frame_hw), np.uint8), frame_hw, colour, pairs=pairs)

    @classmethod
    def over(cls, data: NDArray[np.uint8], frame_hw: tuple[int, int], colour: Colour, *, pairs: bool = False) -> Yuv:
        """The planes that lie one behind the other in `data`, (bytes,)."""
        luma, (h, w) = frame_hw[0] * frame_hw[1], chroma_hw(frame_hw)
        rest = data[luma : luma + 2 * h * w]
        chroma = (rest.reshape(h, w, 2),) if pairs else (rest[: h * w].reshape(h, w), rest[h * w :].reshape(h, w))
        return cls(data[:luma].reshape(frame_hw), chroma, colour, data)

    @classmethod
    def nv12(cls, data: NDArray[Any], colour: Colour) -> Yuv:
        """(3H/2, W) uint8, luma above pairs of chroma, as pipelines and hardware decoders give it."""
        frame_hw = data.shape[0] * 2 // 3, data.shape[1]
        return cls.over(np.ascontiguousarray(data, np.uint8).reshape(-1), frame_hw, colour, pairs=True)

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width of the frame."""
        return self.y.shape[0], self.y.shape[1]

    @property
    def pairs(self) -> bool:
        """Whether U and V lie in one plane (NV12)."""
        return len(self.chroma) == 1

    @property
    def u(self) -> NDArray[np.uint8]:
        """(h,w), a view."""
        return self.chroma[0][..., 0] if self.pairs else self.chroma[0]

    @property
    def v(self) -> NDArray[np.uint8]:
        """(h,w), a view."""
        return self.chroma[0][..., 1] if self.pairs else self.chroma[1]

    def copy_to(self, out: Yuv) -> None:
        """Copy the values into planes of the same size, I420 or NV12."""
        np.copyto(out.y, self.y)
        np.copyto(out.u, self.u)
        np.copyto(out.v, self.v)

    def copy(self) -> Yuv:
        """The same picture in dense memory of its own."""
        out = Yuv.empty(self.frame_hw, self.colour, pairs=self.pairs)
        self.copy_to(out)
        return out


def chroma_hw(frame_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the chroma planes of a frame."""
    return -(-frame_hw[0] // 2), -(-frame_hw[1] // 2)


def yuv_bytes(frame_hw: tuple[int, int]) -> int:
    """Bytes of a frame's planes without gaps."""
    h, w = chroma_hw(frame_hw)
    return frame_hw[0] * frame_hw[1] + 2 * h * w
