"""Texts -> small pictures to paste: name tags and legends, kept, so that a frame costs copies and no letters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]  # top, left, bottom, right
RGB: TypeAlias = tuple[int, int, int]

DARK, LIGHT = (22, 25, 30), (236, 239, 243)
LINES = 30  # of text in the height of a picture
# Fonts with more than Latin letters, as systems name their files; the first has Chinese, Japanese and Korean signs too.
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
    "arial.ttf",
)


def line_height(frame_hw: tuple[int, int]) -> int:
    """Pixels of a line of text that can be read at this size."""
    return max(15, round(min(frame_hw) / LINES))


def paste(frame: Pixels, patch: Pixels, top: int, left: int) -> Box:
    """Copy what fits of `patch` onto `frame`, both (h,w,3); give where."""
    height, width = min(patch.shape[0], frame.shape[0] - top), min(patch.shape[1], frame.shape[1] - left)
    frame[top : top + height, left : left + width] = patch[:height, :width]
    return top, left, top + height, left + width


@lru_cache(maxsize=512)
def name_tag(name: str, colour: RGB, line: int) -> Pixels:
    """Dark letters on the class's colour: (line,w,3) uint8 BGR, read-only."""
    font = _font(line, latin=_latin(name))
    width = round(font.getlength(name)) + line // 2
    picture = Image.new("RGB", (width, line), colour)
    ImageDraw.Draw(picture).text((width // 2, line // 2), name, DARK, font=font, anchor="mm")
    return _bgr(picture)


@lru_cache(maxsize=64)
def strip(entries: Sequence[tuple[str, RGB]], width: int, line: int) -> Pixels:
    """Swatches with texts, in as many lines as `width` asks for: (h,width,3) uint8 BGR, read-only."""
    font, gap = _font(line, latin=all(_latin(text) for text, _ in entries)), line // 2
    rows: list[list[tuple[str, RGB, int]]] = [[]]
    x = gap
    for text, colour in entries:
        needed = line + round(font.getlength(text)) + gap
        if rows[-1] and x + needed > width:
            rows.append([])
            x = gap
        rows[-1].append((text, colour, x))
        x += needed
    pitch = line + line // 3
    picture = Image.new("RGB", (width, pitch * len(rows) + line // 3), DARK)
    pen = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        middle = line // 3 + number * pitch + line // 2
        for text, colour, left in row:
            half = round(0.35 * line)
            pen.rectangle((left, middle - half, left + 2 * half, middle + half), fill=colour)
            pen.text((left + line, middle), text, LIGHT, font=font, anchor="lm")
    return _bgr(picture)


def caption(text: str, width: int, line: int) -> Pixels:
    """One line of light letters on dark, cut at `width`: (line,width,3) uint8 BGR."""
    picture, font = Image.new("RGB", (width, line), DARK), _font(line, latin=_latin(text))
    ImageDraw.Draw(picture).text((line // 4, line // 2), text, LIGHT, font=font, anchor="lm")
    return _bgr(picture)


@lru_cache(maxsize=16)
def _font(line: int, *, latin: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which has Latin letters alone; for others the first of `WIDE_FONTS` that this machine has."""
    size = max(8, round(0.78 * line))
    for name in () if latin else WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size=size)


def _latin(text: str) -> bool:
    return all(ord(letter) < 0x250 for letter in text)


def _bgr(picture: Image.Image) -> Pixels:
    array = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
    array.flags.writeable = False
    return array
