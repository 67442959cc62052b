"""A digest inside each artifact over all that it holds, so that a changed byte is noticed when it is read.

A checkpoint is a zip archive: the digest is its comment, the last bytes of the file. An ONNX file is a protobuf message: the
digest is one more entry of its metadata, likewise the last bytes. Both are of every byte before them, so that one pass gives
this digest and the file's own SHA-256. In JSON it is a field, over all other fields.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tsss_edge.errors import ArtifactError
from tsss_edge.files import as_json_reads, decode_json, edge, read_bytes, write_bytes

T = TypeVar("T", bound=msgspec.Struct)
LOG = logging.getLogger("tsss_edge")

ONNX_DIGEST = "tsss_edge_sha256"
ZIP_SEAL = b"tsss-edge sha256 "
# Field 14 of ModelProto (metadata_props), 84 bytes: key of 16 bytes, value of 64 bytes.
ONNX_SEAL = b"\x72\x54\x0a\x10" + ONNX_DIGEST.encode() + b"\x12\x40"
HEX = 64
ZIP_END = b"PK\x05\x06"
ZIP_END_SIZE = 22


def seal_zip(data: bytes) -> tuple[bytes, str]:
    """A zip archive without a comment -> (the same with its digest as comment, SHA-256 of that)."""
    assert data[-ZIP_END_SIZE:].startswith(ZIP_END) and data.endswith(b"\0\0"), "no zip archive, or one with a comment"
    body = data[:-2] + struct.pack("<H", len(ZIP_SEAL) + HEX)
    sealed, _, sha256 = _sealed(body, ZIP_SEAL)
    return sealed, sha256


def seal_onnx(data: bytes) -> tuple[bytes, str, str]:
    """A serialized ModelProto -> (the same with its digest as last metadata entry, the digest, SHA-256 of all)."""
    return _sealed(data, ONNX_SEAL)


def _sealed(body: bytes, seal: bytes) -> tuple[bytes, str, str]:
    digest = hashlib.sha256(body)
    inside = digest.hexdigest()
    digest.update(end := seal + inside.encode())
    return body + end, inside, digest.hexdigest()


def open_seal(path: Path, data: bytes, seal: bytes, remedy: str) -> tuple[str, bool]:
    """SHA-256 of a whole file, and whether it carries a seal. Raises: ArtifactError: the seal is not that of the bytes."""
    size = len(seal) + HEX
    view = memoryview(data)
    body, end = view[:-size], data[-size:]
    digest = hashlib.sha256(body)
    inside = digest.hexdigest().encode()
    digest.update(end)
    sealed = end.startswith(seal)
    if (sealed and end[len(seal) :] != inside) or (not sealed and _nearly(end, seal)):
        raise _changed(path, remedy)
    return digest.hexdigest(), sealed


def _nearly(end: bytes, seal: bytes) -> bool:
    """Whether the last bytes are a seal with some damage, and not something else."""
    return sum(a == b for a, b in zip(end, seal, strict=False)) > len(seal) // 2


def require_plain_zip(path: Path, data: bytes, remedy: str) -> None:
    """Raise ArtifactError unless an archive without a seal has no comment at all: then an older version made it."""
    if not (data[-ZIP_END_SIZE:].startswith(ZIP_END) and data.endswith(b"\0\0")):
        raise _changed(path, remedy)


def _changed(path: Path, remedy: str) -> ArtifactError:
    return ArtifactError(f"{path}: its bytes are not those that were written (damaged or changed since); {remedy}")


def tell_unsealed(path: Path) -> None:
    """Say that damage of a file could not be noticed."""
    LOG.warning(
        f"{path}: carries no digest (made by an older tsss-edge or another tool), so damage would not be noticed"
    )


# -- JSON


def counted(content: dict[str, Any], *, without: tuple[str, ...] = ("digest",)) -> bytes:
    """What the digest of a record is over, or its signature: the other fields, as canonical JSON."""
    return msgspec.json.encode({k: v for k, v in content.items() if k not in without}, order="sorted")


def write_sealed(path: Path, value: msgspec.Struct) -> None:
    """Write a record (a struct with a field `digest`) as indented JSON with its digest, atomically."""
    content = as_json_reads(value)
    content["digest"] = hashlib.sha256(counted(content)).hexdigest()
    write_bytes(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def read_sealed(path: Path, kind: type[T], remedy: str = "make it again") -> T:
    """Read a record and compare its digest. Raises: ArtifactError: as `read_json`, or a field was changed."""
    data = read_bytes(path, "record")
    value = decode_json(data, kind, path, remedy)
    content = decode_json(data, dict, path, remedy)
    with edge(path, "record", remedy):  # what is nested just not too deeply to be read may be so to be written
        found = hashlib.sha256(counted(content)).hexdigest()
    if not (digest := content.get("digest")):
        tell_unsealed(path)
    elif digest != found:
        raise ArtifactError(f"{path}: was changed after it was written (its digest does not fit); {remedy}")
    return msgspec.structs.replace(value, digest="")  # of the file: two records that say the same are equal
