"""Addresses of served engines. The rest needs a server: tests/deploy/test_triton_server.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tsss_edge.backends.triton_client import ServedAddress, TritonBackend, _Slot, require_address, served_address
from tsss_edge.errors import ArtifactError, UnavailableError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("triton://pool/road", ServedAddress("pool", 8001, "road", "", False)),
        ("triton://127.0.0.1:9001/road/3", ServedAddress("127.0.0.1", 9001, "road", "3", True)),
        ("triton://localhost/road?shm=0", ServedAddress("localhost", 8001, "road", "", False)),
        ("triton://[::1]:7/road", ServedAddress("[::1]", 7, "road", "", True)),
    ],
)
def test_addresses(text: str, expected: ServedAddress) -> None:
    assert served_address(text) == expected
    assert served_address(Path(text)) == expected  # a path makes one slash of two


@pytest.mark.parametrize(
    "text", ["triton://", "triton://host", "triton://host/m/x", "triton://host:x/m", "triton://h/m?a=1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ArtifactError, match="expected triton://HOST"):
        served_address(text)


def test_files_are_no_addresses() -> None:
    assert served_address(Path("runs/fused.int8.xml")) is None


@pytest.mark.parametrize(("text", "turns"), [("triton://pool/road", True), ("triton://localhost/road", False)])
def test_servers_of_one_name_take_turns_but_not_with_shared_memory(text: str, turns: bool) -> None:
    """Messages stay unlimited: arguments of ours replace those of tritonclient."""
    given: list[Any] = []
    grpc = SimpleNamespace(InferenceServerClient=lambda url, channel_args: given.append(channel_args))
    _Slot(grpc, require_address(text), ())
    unlimited = {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}
    assert given == [list({"grpc.lb_policy_name": "round_robin", **unlimited}.items()) if turns else None]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tritonclient.grpc")
    address = served_address("triton://127.0.0.1:9/road")
    assert address is not None
    with pytest.raises(UnavailableError, match="nobody answers there"):
        TritonBackend(address)
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    with pytest.raises(UnavailableError, match=r"pip install 'tsss-edge\[serve\]'"):
        TritonBackend(address)
