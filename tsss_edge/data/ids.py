"""Names that a file gives (image ids, lists, pictures of an annotation) -> names that cannot leave their folder."""

from __future__ import annotations

from pathlib import Path
from typing import NewType

from tsss_edge.errors import DataError

ImageId = NewType("ImageId", str)  # made by `check_id` alone, at the door where a list, table or annotation is read
LONGEST = 200  # bytes of one part: file systems take 255, and suffixes are added


def check_id(text: str, where: str) -> ImageId:
    """The id itself, when it is a plain relative name; `where` names the file that gave it.

    Raises: DataError: it is empty, absolute, hidden, too long, climbs with `..`, or holds a backslash or a control character.
    """
    if not _plain(text):
        raise DataError(
            f"{where}: {text[:LONGEST]!r} is no image id; expected a plain name such as street_0001, without `..`, `:` or backslash"
        )
    return ImageId(text)


def _plain(text: str) -> bool:
    parts = text.split("/")
    if "\\" in text or ":" in parts[0] or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in text):
        return False
    return all(p and not p.startswith(".") and p == p.strip() and len(p.encode()) <= LONGEST for p in parts)


def check_list_name(text: str, where: str) -> str:
    """The name of a list (train, val), when it is one part of a path. Raises: DataError: as `check_id`."""
    if "/" in text or not _plain(text):
        raise DataError(f"{where}: {text[:LONGEST]!r} is no name of a list; expected one such as train or val")
    return text


def place(folder: Path, image_id: str, suffix: str) -> Path:
    """`folder`/ID.suffix: the one way from an id to a path, for reading and writing.

    Raises: DataError: as `check_id`, or a link between them leads out of `folder` (the file itself may be one).
    """
    path = folder / f"{check_id(image_id, str(folder))}{suffix}"
    if "/" in image_id and not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path.parent}: is a link that leads out of {folder}; put the folder itself there")
    return path


def inside(root: Path, name: str, where: str) -> Path:
    """`root`/`name` for a file name that an annotation gives. Raises: DataError: it is absolute or climbs out with `..`."""
    relative = Path(name.replace("\\", "/"))
    if (
        relative.is_absolute()
        or ".." in relative.parts
        or "\0" in name
        or not relative.parts
        or len(name) > 4 * LONGEST
    ):
        raise DataError(
            f"{where}: file name {name[:LONGEST]!r} leaves the folder of the set; expected a name inside it"
        )
    return root / relative
