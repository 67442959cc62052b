"""The one reader of JSON: whatever is wrong with a text, it is one kind of error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tsss_edge.artifacts import Engine
from tsss_edge.errors import ArtifactError
from tsss_edge.files import as_json_reads, parse_json

DAMAGED = (b"[" * 5000, b'{"a":' * 5000, b'"\xff"', b"", b"{}x", b"1e999999")


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_json_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        parse_json(data)


@pytest.mark.parametrize(
    "data", [*DAMAGED, b'{"files": {"%s.xml": ""}}' % (b"a" * 5000), b'{"files": 1}'], ids=range(8)
)
def test_a_damaged_record_is_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "net.xml").write_bytes(b"<net/>")
    (tmp_path / "net.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"net\.json"):
        Engine.load(tmp_path / "net.xml")


def test_values_come_back_as_json_has_them() -> None:
    assert as_json_reads({"a": (1, 2), "b": float("nan")}) == {"a": [1, 2], "b": None}
