"""A small TOML file -> which class of a foreign set becomes which of ours: renaming, merging, leaving out.

[classes]                       # ids in this order; "background" first, where the set shall have one
background = []
road = ["Road", "LaneMkgsDriv"]
ignore = ["Void"]               # become 255, not a class
[rest]                          # classes that the file does not name: "ignore" or "background"
to = "ignore"
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, Struct
from tsss_edge.data.importers.found import UNLABELLED, VOID, Found, named
from tsss_edge.data.voc import is_background
from tsss_edge.errors import DataError
from tsss_edge.files import edge


class Rest(Struct, frozen=True):
    """Where classes go that the file does not name."""

    to: Literal["ignore", "background"]


class ClassFile(Struct, frozen=True):
    """The file as it is written."""

    classes: dict[str, tuple[str, ...]]
    rest: Rest | None = None


@dataclass(frozen=True)
class ClassMap:
    """Our classes, and the id of ours for each name of theirs."""

    classes: Classes
    ids: dict[str, int]

    def table(self, names: tuple[str, ...]) -> NDArray[np.uint8]:
        """Lookup for masks of a foreign set: index + 2 -> our id (entries 0 and 1 are VOID and UNLABELLED)."""
        table = np.full(len(names) + 2, IGNORE, np.uint8)
        table[UNLABELLED - VOID] = 0 if self.classes.background else IGNORE
        table[2:] = [self.ids[name] for name in names]
        return table


def shipped(name: str) -> Path:
    """A palette or class file that comes with the package."""
    return Path(str(resources.files("tsss_edge.data.importers"))) / "palettes" / name


def class_map(found: Found, path: Path | None) -> ClassMap:
    """The map of a file, or, without one, every class under its own name, and one called background as id 0.

    Raises: DataError: the file is not readable, names unknown classes, or leaves some out without a [rest].
    """
    if path is None:
        return _own_names(found)
    if not path.is_file() and shipped(f"{path}.toml").is_file():
        path = shipped(f"{path}.toml")
    return _from_file(found, path)


def _own_names(found: Found) -> ClassMap:
    if not found.background:
        return ClassMap(_classes(found.names, "the set"), {name: i for i, name in enumerate(found.names)})
    objects = [name for name in found.names if not is_background(name)]  # some sets name it as a class
    ids = dict.fromkeys(found.names, 0) | {name: i for i, name in enumerate(objects, start=1)}
    return ClassMap(_classes(("background", *objects), "the set"), ids)


def _from_file(found: Found, path: Path) -> ClassMap:
    with edge(path, "class file", "expected TOML with [classes] and name = [their names]", DataError):
        file = msgspec.toml.decode(path.read_bytes(), type=ClassFile)
    ours = [name for name in file.classes if name != "ignore"]
    theirs = [(name, to) for to, names in file.classes.items() for name in names]
    target = {name: IGNORE if to == "ignore" else ours.index(to) for name, to in theirs}
    if len(target) < len(theirs):
        raise DataError(f"{path}: a class stands there twice; each of theirs becomes one of ours")
    if unknown := [name for name in target if name not in found.names]:
        raise DataError(f"{path}: the set has no class {named(unknown)}; it has {', '.join(found.names)}")
    if left := [name for name in found.names if name not in target]:
        target |= dict.fromkeys(left, _rest(file, ours, left, path))
    return ClassMap(_classes(tuple(ours), str(path)), target)


def _rest(file: ClassFile, ours: list[str], left: list[str], path: Path) -> int:
    if file.rest is None:
        raise DataError(f'{path}: does not name {named(left)}; add them, or [rest] with to = "ignore" or "background"')
    if file.rest.to == "ignore":
        return IGNORE
    if not ours or ours[0] != "background":
        raise DataError(f'{path}: [rest] goes to "background", but "background" is not the first of [classes]')
    return 0


def _classes(names: tuple[str, ...], where: str) -> Classes:
    try:
        return Classes(names=names, background=bool(names) and is_background(names[0]))
    except ValueError as error:
        raise DataError(f"{where}: {error}; merge or choose classes with `--classes FILE`") from error
