"""Picture and mask files -> arrays, by one strict reader: what it cannot read right is refused in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from tsss_edge.errors import DataError
from tsss_edge.files import edge

AnyPixel = TypeVar("AnyPixel", bound=np.generic)
LOG = logging.getLogger("tsss_edge")

# Every ending that Pillow opens by itself. A test compares the two lists with Pillow's own table.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".flc",
    ".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".iim", ".im", ".j2c", ".j2k", ".jfif", ".jp2",
    ".jpc", ".jpe", ".jpf", ".jpx", ".msp", ".mpo", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".pnm", ".ppm", ".psd", ".pxr",
    ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
)  # fmt: skip
# Endings that Pillow knows but that are no pictures for us: videos, data formats, and PostScript, which runs a program.
OTHER_SUFFIXES = (
    ".bufr", ".emf", ".eps", ".fit", ".fits", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".ps", ".wmf",
)  # fmt: skip

_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_said: set[str] = set()


def read_image(path: Path, *, upright: bool = True) -> NDArray[np.uint8]:
    """One picture of any Pillow format -> (H,W,3) uint8 RGB.

    16-bit values are divided by 256 (as Pillow does for colour), alpha is composed on white (said once), the first
    view of an MPO is taken. With `upright` the EXIF rotation is applied; without, pixels come as stored.

    Raises: DataError: missing, truncated, not a picture, an animation, or of a value range that nobody knows.
    """
    with opened(path) as picture:
        _refuse_animation(path, picture)
        turned = (ImageOps.exif_transpose(picture) or picture) if upright else picture
        return np.ascontiguousarray(np.asarray(_to_rgb(path, turned)))


def _refuse_animation(path: Path, picture: Image.Image) -> None:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format not in ("MPO", "PSD", "ICNS", "ICO"):
        raise DataError(
            f"{path}: holds {frames} frames or pages; expected one picture, so split it or stream it as a video"
        )


def _to_rgb(path: Path, picture: Image.Image) -> Image.Image:
    if picture.mode in _GREY16 or (
        picture.mode == "I" and picture.format == "PNG"
    ):  # Pillow < 11.1 says I for 16-bit PNG
        values = np.asarray(picture).astype(np.int64)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise DataError(
            f"{path}: {'floating point' if picture.mode == 'F' else '32-bit'} pixels have no known range; "
            "save it with 8 or 16 bits a channel"
        )
    if picture.mode in _ALPHA or "transparency" in picture.info:
        return _on_white(path, picture)
    return picture.convert("RGB")


def _on_white(path: Path, picture: Image.Image) -> Image.Image:
    rgba = picture.convert("RGBA")
    lowest = rgba.getchannel("A").getextrema()[0]
    if lowest != 255:
        say_once("alpha", f"{path}: has transparent pixels; they are composed on white, here and in further pictures")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def say_once(key: str, text: str) -> None:
    """Log a warning, the first time that `key` is met in this process."""
    if key not in _said:
        _said.add(key)
        LOG.warning(text)


def read_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """(height, width) of a picture, from its header; as stored, or as EXIF turns it. Raises: DataError: as `read_image`."""
    with opened(path) as picture:
        turned = upright and _orientation(picture) in _SWAPPED
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def orientation(path: Path) -> int:
    """EXIF orientation of a picture, 1 (upright) to 8. Raises: DataError: as `read_image`."""
    with opened(path) as picture:
        return _orientation(picture)


def _orientation(picture: Image.Image) -> int:
    value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def as_stored(drawn: NDArray[AnyPixel], turn: int) -> NDArray[AnyPixel]:
    """A map (H,W) drawn on a picture as EXIF turns it -> the same map on the stored pixels. `turn` is EXIF's 1 to 8."""
    backwards: dict[int, Callable[[NDArray[AnyPixel]], NDArray[AnyPixel]]] = {
        2: np.fliplr, 3: lambda m: np.rot90(m, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
        7: lambda m: np.rot90(m, 2).T, 8: lambda m: np.rot90(m, -1),
    }  # fmt: skip
    return np.ascontiguousarray(backwards[turn](drawn)) if turn in backwards else drawn


def upright_fits(path: Path, mask_hw: tuple[int, int]) -> bool:
    """Whether a mask of this size was made on the picture as EXIF turns it.

    Where the turn does not change the size (180 degrees, mirrors, squares) the mask is taken as made on the stored pixels;
    `data check` names such pictures.
    """
    return read_size(path) != mask_hw and read_size(path, upright=True) == mask_hw


@contextmanager
def opened(path: Path, what: str = "picture") -> Iterator[Image.Image]:
    """A picture (or `what` else), open in Pillow. Raises: DataError: for whatever Pillow raises, inside the block too."""
    with edge(path, what, "save it again, or take it off the list", DataError):
        try:
            with Image.open(path) as picture:
                yield picture
        except Image.DecompressionBombError as error:
            raise DataError(f"{path}: too large ({error}); scale it down") from error


def read_mask(path: Path) -> NDArray[np.uint8]:
    """An index picture (palette, 8-bit grey, 1 bit, or 16-bit grey with ids to 255) -> (H,W) uint8.

    Raises: DataError: unreadable, a colour picture, or ids above 255.
    """
    with opened(path, "mask") as picture:
        if picture.mode in ("P", "L", "1"):
            return np.asarray(picture).astype(np.uint8)
        if picture.mode in _GREY16 or picture.mode == "I":
            return _small_ids(path, np.asarray(picture))
        raise DataError(
            f"{path}: a {picture.mode} picture; a mask is an index PNG (palette or 8-bit grey). Colour masks become one by "
            "`tsss-edge data import rgb SRC --palette FILE --out DIR`"
        )


def _small_ids(path: Path, values: NDArray[np.integer]) -> NDArray[np.uint8]:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255:
        raise DataError(
            f"{path}: ids from {values.min()} to {values.max()}; a mask holds class ids from 0 to 254, and 255"
        )
    return values.astype(np.uint8)


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a picture. Hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
