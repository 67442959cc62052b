"""Pictures and masks -> one PNG to look at: picture and picture-with-mask side by side, in rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.artifacts import IGNORE
from tsss_edge.files import atomic_path

TILE = 128  # pixels a side
COLUMNS = 4  # pairs in a row

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def contact_sheet(path: Path, pictures: Sequence[Pair], palette: Sequence[tuple[int, int, int]]) -> None:
    """Write a sheet of (image (H,W,3) RGB, mask (H,W)) pairs; unsure pixels (255) are white."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * 2 * TILE, rows * TILE))
    for number, (image, mask) in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        for side, picture in enumerate((image, blend(image, mask, palette))):
            tile = Image.fromarray(picture).resize((TILE, TILE))
            sheet.paste(tile, ((2 * column + side) * TILE, row * TILE))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def blend(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Half image, half class colour; the background as it is, 255 white."""
    colors = np.full((IGNORE + 1, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    mixed = (image.astype(np.uint16) + colors[mask] + 1) // 2
    return np.where((mask == 0)[..., None], image, mixed.astype(np.uint8))
