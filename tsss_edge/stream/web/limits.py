"""What one client may take of the page's server: time for its headers, bytes of body, requests at once.

Who has sent no whole request yet costs a socket and nothing else: he has `HEADER_S` seconds, and where `MOST_SILENT` of them wait,
the one that waited longest goes. So silent clients lock nobody out. With TLS a handshake has as long, and `MOST_SHAKING` may
be under way. Requests are counted after the token was checked;
/healthz and /metrics are answered whatever the load.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi.responses import PlainTextResponse
from uvicorn import Server
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER_S = 5.0  # from connecting, or from the first byte of a further request, to its last header
BODY_S = 5.0
MOST_SILENT = 64
MOST_SHAKING = 512  # TLS handshakes at once: half of the files that a process may usually have open
MOST_BODY = 4096  # bytes; the settings of the view take about 60
PER_ADDRESS = 32  # requests at once; a browser has six, and a proxy stands for many
MOST_VIDEOS = 16  # each is a JPEG a picture
OUTSIDE = ("/healthz", "/metrics")


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with an end to its patience."""

    _patience: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Raises: ConnectionRefusedError: too many are shaking hands (TLS) already; asyncio drops the connection."""
        super().__init__(*args, **options)
        if self.config.is_ssl:  # else hands are shaken already
            if len(self._shaking) >= MOST_SHAKING:
                raise ConnectionRefusedError("too many TLS handshakes at once")
            self._shaking.add(self)
            self.loop.call_later(HEADER_S, self._shaking.discard, self)  # it is over by then, well or not

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._shaking.discard(self)
        super().connection_made(transport)
        while len(self._silent) >= MOST_SILENT:
            next(iter(self._silent))._give_up()
        self._wait()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._patience is None and (before is None or before.response_complete):
            self._wait()
        super().data_received(data)
        if self.cycle is not before:
            self._heard()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    @property
    def _shaking(self) -> set[PatientProtocol]:
        """Connections of this server whose hands are not shaken yet."""
        shaking: set[PatientProtocol] = vars(self.server_state).setdefault("shaking", set())
        return shaking

    @property
    def _silent(self) -> dict[PatientProtocol, None]:
        """Of this server, in the order in which they began to wait."""
        silent: dict[PatientProtocol, None] = vars(self.server_state).setdefault("silent", {})
        return silent

    def _wait(self) -> None:
        self._silent[self] = None
        self._patience = self.loop.call_later(HEADER_S, self._give_up)

    def _heard(self) -> None:
        self._silent.pop(self, None)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._heard()
        self.transport.abort()


class PatientServer(Server):
    """uvicorn's server, with an end to its patience for a TLS handshake too."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        if self.config.is_ssl:
            loop.create_server = partial(loop.create_server, ssl_handshake_timeout=HEADER_S)  # type: ignore[method-assign]
        await super().startup(sockets=sockets)


class Limits:
    """Refuses large bodies, and more requests at once than `PER_ADDRESS` from one address or `MOST_VIDEOS` of the video."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._busy: Counter[str] = Counter()
        self._videos = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OUTSIDE:
            await self._app(scope, receive, send)
            return
        host, video = (scope.get("client") or ("",))[0], scope["path"].endswith(".mjpg")
        if self._busy[host] >= PER_ADDRESS or (video and self._videos >= MOST_VIDEOS):
            await refusal("too many at once; close other pages", 503, {"Retry-After": "5"})(scope, receive, send)
            return
        self._busy[host] += 1
        self._videos += video
        try:
            await self._bounded(scope, receive, send)
        finally:
            self._videos -= video
            self._busy[host] -= 1
            self._busy += Counter()  # forgets addresses that are at zero

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(_body(scope, receive), BODY_S)
        except asyncio.TimeoutError:
            await refusal("the body did not come", 408)(scope, receive, send)
            return
        if body is None:
            await refusal(f"a body has at most {MOST_BODY} bytes here", 413)(scope, receive, send)
            return
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, again, send)


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body; None when it is, or says that it will be, larger than `MOST_BODY`."""
    said = dict(scope["headers"]).get(b"content-length", b"0")
    if not said.isdigit() or int(said) > MOST_BODY:
        return None
    body = bytearray()
    while True:
        message: dict[str, Any] = dict(await receive())
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return bytes(body)


def refusal(text: str, status: int, headers: dict[str, str] | None = None) -> PlainTextResponse:
    """A line that ends the connection: whatever else its client sends is not read."""
    return PlainTextResponse(f"{text}\n", status_code=status, headers={"Connection": "close", **(headers or {})})
