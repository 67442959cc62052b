"""Pictures and masks in colours, with a palette (a file, CVAT's labelmap.txt, or `camvid`) -> `Found`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.data.importers.classmap import shipped
from tsss_edge.data.importers.found import UNLABELLED, VOID, Found, Item, ids_of
from tsss_edge.data.importers.pairs import find_pairs
from tsss_edge.data.pictures import opened
from tsss_edge.data.voc import read_text
from tsss_edge.errors import DataError

VOIDS = ("void", "unlabelled", "unlabeled", "ignore")
Palette = dict[int, str]  # 24-bit colour -> name


def read_rgb(source: Path, palette: str | None, *, images: str | None = None, masks: str | None = None) -> Found:
    """Read pairs of pictures and colour masks. A colour that the palette lacks is an error.

    Raises: DataError: no palette, no pairs, or (when drawn) a mask with unknown colours.
    """
    colours = read_palette(_palette_path(source, palette))
    pairs = find_pairs(source, images, masks)
    taken = [n for n in dict.fromkeys(colours.values()) if n.lower() not in VOIDS and n.lower() != "background"]
    background = any(name.lower() == "background" for name in colours.values())
    ids = ids_of(pairs.masks, source)
    items = [
        Item(
            id=ids[picture],
            picture=picture,
            mask=functools.partial(_draw, mask, colours, tuple(taken)),
            split=pairs.splits[picture],
            group=str(picture.parent.relative_to(source)),
        )
        for picture, mask in pairs.masks.items()
    ]
    return Found(names=tuple(taken), background=background, items=tuple(items), notes=pairs.notes)


def _palette_path(source: Path, palette: str | None) -> Path:
    if palette is None:
        if (source / "labelmap.txt").is_file():
            return source / "labelmap.txt"
        raise DataError(f"{source}: colour masks need --palette FILE (lines `red green blue name`) or --palette camvid")
    path = Path(palette)
    return shipped(f"{palette}.txt") if not path.is_file() and shipped(f"{palette}.txt").is_file() else path


def read_palette(path: Path) -> Palette:
    """Lines `red green blue name`, `name,r,g,b`, or CVAT's `name:r,g,b:parts:actions`. Raises: DataError: others."""
    if not path.is_file():
        raise DataError(f"{path}: no such palette; expected lines `red green blue name`, or the name camvid")
    palette: Palette = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.split("#")[0].strip()
        if not text or text.lower().replace(" ", "") == "name,r,g,b":
            continue
        name, colour = _entry(text, f"{path}, line {number}")
        if colour in palette and palette[colour] != name:
            raise DataError(f"{path}, line {number}: {name} has the colour of {palette[colour]}")
        palette[colour] = name
    return palette


def _entry(text: str, where: str) -> tuple[str, int]:
    if ":" in text:
        name, colour = text.split(":")[:2]
        numbers = colour.split(",")
    elif "," in text:
        name, *numbers = text.split(",")
    else:
        *numbers, name = text.split(maxsplit=3)
    try:
        red, green, blue = (int(value) for value in numbers)
        colour_bytes = bytes((red, green, blue))
    except ValueError as error:
        raise DataError(f"{where}: expected `red green blue name` with 0 to 255, got {text!r}") from error
    return name.strip(), int.from_bytes(colour_bytes, "big")


def _draw(path: Path, palette: Palette, names: tuple[str, ...]) -> NDArray[np.int32]:
    with opened(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    colours, places = np.unique(packed, return_inverse=True)
    unknown = [colour for colour in colours.tolist() if colour not in palette]
    if unknown:
        count = int(np.isin(packed, unknown).sum())
        text = " ".join(str(part) for part in int(unknown[0]).to_bytes(3, "big"))
        lossy = (
            "; masks must not be JPEG files" if path.suffix.lower() in (".jpg", ".jpeg") else "; add it to the palette"
        )
        raise DataError(f"{path}: {count} pixels in {len(unknown)} colours that the palette lacks, as {text}{lossy}")
    ids = np.array([_index(palette[colour], names) for colour in colours.tolist()], np.int32)
    return ids[places].reshape(packed.shape)


def _index(name: str, names: tuple[str, ...]) -> int:
    if name.lower() in VOIDS:
        return VOID
    return UNLABELLED if name.lower() == "background" else names.index(name)
