"""The page's server under clients that mean no good: silent ones, slow ones, large bodies, many at once; and by HTTPS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from waiting import wait_for

from tsss_edge.artifacts import Classes
from tsss_edge.errors import DataError, masked
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.uris import parse_source
from tsss_edge.stream.web import WebSink, is_loopback, limits, open_web
from tsss_edge.stream.web.limits import Limits

CLASSES = Classes(names=("background", "cat", "dog"))


@pytest.fixture
def page() -> Iterator[WebSink]:
    web = open_web("0", classes=CLASSES, recorder=Recorder())
    wait_for(lambda: answers(web))
    yield web
    web.close()


def answers(web: WebSink) -> bool:
    try:
        return httpx.get(f"{web.url}api/info", timeout=20).status_code == 200
    except httpx.TransportError:
        return False


def connected(web: WebSink) -> socket.socket:
    host, port = web.url.removeprefix("http://").strip("/").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def said(web: WebSink, request: bytes) -> bytes:
    with connected(web) as client:
        client.sendall(request)
        return client.recv(4096)


def test_silent_clients_lock_nobody_out(page: WebSink) -> None:
    silent = [connected(page) for _ in range(200)]
    try:
        assert answers(page)
        assert httpx.get(f"{page.url}healthz", timeout=20).status_code in (200, 503)
        assert silent[0].recv(1) == b"", "the first ones had to go"
    finally:
        for client in silent:
            client.close()


def test_headers_that_trickle_come_to_an_end(page: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_S", 3.0)
    with connected(page) as fresh:
        fresh.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert fresh.recv(1) == b"", "cut off within its headers"
    with connected(page) as again:
        again.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = again.recv(4096)
        while not answer.endswith(b"}") and (more := again.recv(4096)):  # headers and body may come apart
            answer += more
        assert answer.startswith(b"HTTP/1.1 ")
        # The second request of a connection has no more time than the first.
        again.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        assert again.recv(1) == b""


def test_a_large_body_is_refused_by_its_length_and_by_its_bytes(page: WebSink) -> None:
    head = b"POST /api/view HTTP/1.1\r\nHost: localhost\r\n"
    assert said(page, head + b"Content-Length: 1073741824\r\n\r\n").startswith(b"HTTP/1.1 413")
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    assert said(page, head + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * chunk).startswith(b"HTTP/1.1 413")
    assert httpx.post(f"{page.url}api/view", content=json.dumps({"alpha": 2}), timeout=20).status_code == 422


def test_a_body_that_does_not_come(page: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_S", 0.2)
    late = said(page, b"POST /api/view HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{")
    assert late.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("host", "status"),
    [("[", 400), ("127.0.0.1", 200), ("127.8.8.8:80", 200), ("[::1]", 200), ("localhost", 200), ("a.example", 403)],
)
def test_hosts(page: WebSink, host: str, status: int) -> None:
    answer = said(page, f"GET /api/info HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status}".encode())


def test_loopback_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("10.0.0.1", "0.0.0.0", "localhost.example", ""))


def statuses(path: str, inner: str, monkeypatch: pytest.MonkeyPatch, **caps: int) -> tuple[int, int]:
    """Status of a request, and of another one that is made while it runs."""
    for name, value in caps.items():
        monkeypatch.setattr(limits, name, value)
    app, seen = FastAPI(), list[int]()
    app.add_middleware(Limits)

    async def ask(path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return (await client.get(path)).status_code

    async def answer() -> dict[str, int]:
        if not seen:
            seen.append(0)
            seen[0] = await ask(inner)
        return {}

    for route in {path, inner}:
        app.get(route)(answer)
    outer = asyncio.run(ask(path))
    return outer, seen[0]


def test_caps_by_address_and_for_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statuses("/video.mjpg", "/video.mjpg", monkeypatch, MOST_VIDEOS=1) == (200, 503)
    assert statuses("/video.mjpg", "/api/info", monkeypatch, MOST_VIDEOS=1) == (200, 200)
    assert statuses("/api/info", "/api/info", monkeypatch, PER_ADDRESS=1) == (200, 503)
    assert statuses("/api/info", "/metrics", monkeypatch, PER_ADDRESS=1) == (200, 200)
    assert statuses("/api/info", "/healthz", monkeypatch, PER_ADDRESS=1) == (200, 200)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key]
    try:
        subprocess.run(
            [*line, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


def test_https(certificate: tuple[Path, Path]) -> None:
    web = open_web("0", classes=CLASSES, recorder=Recorder(), tls=certificate)
    try:
        assert web.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate[0]))
        wait_for(lambda: httpx.get(f"{web.url}api/info", verify=context, timeout=20).status_code == 200)
    finally:
        web.close()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # asyncio leaves a refused socket to be collected
def test_silent_handshakes_come_to_an_end(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_S", 1.0)
    monkeypatch.setattr(limits, "MOST_SHAKING", 20)
    web = open_web("0", classes=CLASSES, recorder=Recorder(), tls=certificate)
    port = int(web.url.strip("/").rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(certificate[0]))
    silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(60)]
    try:
        for client in silent:  # the first twenty after a second, the others at once
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        wait_for(lambda: httpx.get(f"{web.url}api/info", verify=context, timeout=20).status_code == 200)
    finally:
        for client in silent:
            client.close()
        web.close()


def test_a_certificate_without_its_key(certificate: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="not a certificate and its key"):
        open_web("0", classes=CLASSES, recorder=Recorder(), tls=(certificate[0], certificate[0]))


def test_passwords_are_masked_everywhere() -> None:
    url = "http://user:hunter2@cam/axis?resolution=1&pwd=hunter2&api_key=hunter2&user=u"
    assert masked(url) == "http://user:***@cam/axis?resolution=1&pwd=***&api_key=***&user=u"
    assert parse_source(url).shown == masked(url)
    assert "hunter2" not in str(DataError(f"{url}: cannot be opened (tried {url})"))
    dvr = "rtsp://10.0.0.7:554/user=admin_password=hunter2_channel=1_stream=0.sdp"
    assert masked(dvr) == "rtsp://10.0.0.7:554/user=admin_password=***_channel=1_stream=0.sdp"
    assert (
        masked("http://h/stream.cgi?loginuse=admin&loginpas=hunter_2")
        == "http://h/stream.cgi?loginuse=admin&loginpas=***"
    )
    plain = "a.mp4: what? key=value, 50% of http://cam/x"
    assert masked(plain) == plain
