"""Pictures and masks on any file system that pyarrow knows (`s3://`, `gs://`, `hdfs://`, `file://`), beside plain paths."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tsss_edge.backends.base import import_extra
from tsss_edge.data.pictures import is_picture
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.segment import plan

OBJECT_STORES = ("s3", "gcs", "abfs")  # as PyArrow calls them

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(text: str) -> bool:
    """Whether it names a file system: `s3://bucket/folder`."""
    return _URI.match(text) is not None


def file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system of an address, and the path on it. Raises: UnavailableError: no pyarrow, or none of that kind."""
    fs = import_extra("pyarrow.fs", "scale")
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, NotImplementedError) as error:
        raise UnavailableError(f"{uri}: no such file system here ({error})") from error
    return found


def plan_anywhere(inputs: Sequence[str], out: str) -> dict[str, str]:
    """Picture -> mask to write, paths or addresses, in a fixed order. Raises: DataError: as `plan`; a folder is empty."""
    base = Path("out") if is_uri(out) else Path(out).resolve()
    local = plan([text for text in inputs if not is_uri(text)], base)
    masks = {str(p.resolve()): m.relative_to(base).as_posix() for p, m in local.items()}
    for uri in filter(is_uri, inputs):
        masks.update(_pictures_at(uri))
    owners: dict[str, str] = {}
    for picture, mask in masks.items():
        if mask in owners:
            raise DataError(f"{picture} and {owners[mask]} would both write {mask}; segment them into two folders")
        owners[mask] = picture
    return {picture: joined(out, mask) for picture, mask in masks.items()}


def joined(folder: str, name: str) -> str:
    """A file below a folder: a path, or an address in which the name's blanks and signs are quoted."""
    if not is_uri(folder):
        return str(Path(folder).resolve() / name)
    # A store of its own is named after the question mark: `s3://bucket/day1?endpoint_override=...`
    before, mark, query = folder.partition("?")
    return f"{before.rstrip('/')}/{quote(name)}{mark}{query}"


def _pictures_at(uri: str) -> dict[str, str]:
    """Address of a picture or a folder -> picture addresses, each with the mask's place below the output folder."""
    system, path = file_system(uri)
    fs = import_extra("pyarrow.fs", "scale")
    try:
        if system.get_file_info(path).type == fs.FileType.File:
            return {uri: posixpath.splitext(posixpath.basename(path))[0] + ".png"}
        found = [i.path for i in system.get_file_info(fs.FileSelector(path, recursive=True)) if i.is_file]
    except OSError as error:
        raise DataError(f"{uri}: cannot be listed ({error})") from error
    pictures = sorted(p for p in found if is_picture(Path(p)))
    if not pictures:
        raise DataError(f"{uri}: no pictures there (.jpg, .png, .webp, .tif, ...)")
    names = [posixpath.relpath(p, path) for p in pictures]
    return {joined(uri, name): posixpath.splitext(name)[0] + ".png" for name in names}


def finished(out: str, masks: Sequence[str]) -> set[str]:
    """Those of `masks` that are there already: one listing of the folder, however many."""
    if not is_uri(out):
        return {mask for mask in masks if Path(mask).is_file()}
    system, path = file_system(out)
    fs = import_extra("pyarrow.fs", "scale")
    infos = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    there = {posixpath.relpath(info.path, path) for info in infos if info.is_file}
    return {mask for mask in masks if posixpath.relpath(file_system(mask)[1], path) in there}


def fetch(picture: str, folder: Path) -> Path:
    """A picture as a local file: itself, or a copy in `folder`. Raises: DataError: it is not there."""
    if not is_uri(picture):
        return Path(picture)
    system, path = file_system(picture)
    copy = folder / posixpath.basename(path)
    try:
        with system.open_input_stream(path) as source:
            copy.write_bytes(source.read())
    except OSError as error:
        raise DataError(f"{picture}: cannot be read ({error})") from error
    return copy


def put(file: Path, target: str) -> None:
    """Copy a local file to an address; under another name first where that is a file system with folders, so that it is whole."""
    system, path = file_system(target)
    folders = not system.type_name.startswith(OBJECT_STORES)  # those show an object when it is whole
    if folders:
        system.create_dir(posixpath.dirname(path), recursive=True)
    written = f"{path}.part" if folders else path
    with system.open_output_stream(written) as stream:
        stream.write(file.read_bytes())
    if folders:
        system.move(written, path)
