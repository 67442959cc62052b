"""Files: SHA-256, readers' one edge, the one reader of JSON, writes of whole files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from tsss_edge.disk import atomic_path
from tsss_edge.errors import ArtifactError, TsssEdgeError

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
def edge(
    path: Path, what: str, remedy: str = "make it again", kind: type[TsssEdgeError] = ArtifactError
) -> Iterator[None]:
    """The one edge of a reader: within the block, whatever a library raises over `path` becomes an error of ours.

    Args:    what: the file in words ("checkpoint"); remedy: what to do about it.
    Raises:  kind: with the file, the library's own reason and the remedy. Errors of ours, and missing modules, pass.
    """
    try:
        yield
    except (TsssEdgeError, ImportError):
        raise
    except FileNotFoundError as error:
        raise kind(f"{path}: no such {what}") from error
    except (
        Exception
    ) as error:  # libraries raise whatever they like over damaged bytes, MemoryError and RecursionError too
        raise kind(f"{path}: not a readable {what} ({reason(error)}); {remedy}") from error


def reason(error: BaseException, longest: int = 300) -> str:
    """What a library said, in one line; the kind of error where it said nothing."""
    told = " ".join(str(error).split())
    return f"{told[:longest]}..." if len(told) > longest else told or type(error).__name__


def read_bytes(path: Path, what: str, kind: type[TsssEdgeError] = ArtifactError) -> bytes:
    """The bytes of a file. Raises: kind: missing, a folder, or not readable."""
    with edge(path, what, "check its path and rights", kind):
        return path.read_bytes()


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path` atomically, with the folders above it. `durable`: as `atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` (builtins or msgspec structs) as indented JSON, atomically, with a final newline."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[T], remedy: str = "make it again") -> T:
    """Read a JSON file as `kind`. Raises: ArtifactError: the file is missing, or as `decode_json`."""
    return decode_json(read_bytes(path, "file"), kind, path, remedy)


@overload
def parse_json(data: bytes | str) -> Any: ...
@overload
def parse_json(data: bytes | str, kind: type[T]) -> T: ...
def parse_json(data: bytes | str, kind: Any = Any) -> Any:
    """JSON as `kind` (builtins by default): the one place where this package decodes any, wherever it came from.

    Raises: msgspec.DecodeError: not JSON of that kind, not UTF-8, nested deeper than Python goes, or larger than memory.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise msgspec.DecodeError(reason(error)) from error


def as_json_reads(value: Any) -> Any:
    """`value` (builtins or msgspec structs) as builtins, the way that a reader of its JSON finds it: lists for tuples."""
    return parse_json(msgspec.json.encode(value))


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
        if current is not None and (found := parse_json(data, _Header).format) != current:
            age, way = ("an older", remedy) if found < current else ("a newer", "update tsss-edge")
            raise ArtifactError(f"{path}: made by {age} tsss-edge (format {found}, this one reads {current}); {way}")
        return parse_json(data, kind)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path}: not a valid {kind.__name__}: {reason(error)}; {remedy}") from error
