"""Files: SHA-256, atomic writes, typed JSON."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tsss_edge.errors import ArtifactError

T = TypeVar("T")


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data`, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; it becomes `path` when the block ends well and vanishes when it does not.

    The sibling keeps the suffix of `path`, because some writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes 0600; an artifact is as readable as any other file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, with the folders above it."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` (builtins or msgspec structs) as indented JSON, atomically, with a final newline."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[T], remedy: str = "make it again") -> T:
    """Read a JSON file as `kind`. Raises: ArtifactError: the file is missing, or as `decode_json`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    return decode_json(data, kind, path, remedy)


class _Header(msgspec.Struct):
    format: int = 1  # version 1 did not write it


def decode_json(data: bytes | str, kind: type[T], path: Path, remedy: str = "make it again") -> T:
    """JSON of `path` as `kind`. Where `kind` has a `format`, its default is the one that this version reads.

    Args:    remedy: what to do about a file that cannot be read, as it stands in the error.
    Raises:  ArtifactError: not JSON, other fields or types than `kind`, an older or a newer format.
    """
    fields = msgspec.structs.fields(kind) if issubclass(kind, msgspec.Struct) else ()
    current = next((field.default for field in fields if field.name == "format"), None)
    try:
        if current is not None and (found := msgspec.json.decode(data, type=_Header).format) != current:
            age, way = ("an older", remedy) if found < current else ("a newer", "update tsss-edge")
            raise ArtifactError(f"{path}: made by {age} tsss-edge (format {found}, this one reads {current}); {way}")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not a valid {kind.__name__}: {error}; {remedy}") from error
