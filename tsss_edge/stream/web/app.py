"""Live numbers and painter -> the web application: page, MJPEG, JSON, Prometheus text, health."""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tsss_edge.artifacts import Struct
from tsss_edge.files import parse_json
from tsss_edge.stream.prometheus import CONTENT_TYPE, Metrics
from tsss_edge.stream.status import ENGINE_LOST, LiveStatus
from tsss_edge.stream.web import is_loopback
from tsss_edge.stream.web.limits import Limits, refusal
from tsss_edge.stream.web.painter import Painter, View

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

Example = Callable[[int], "bytes | None"]

BOUNDARY = "frame"
COOKIE = "tsss_edge_token"
HEADERS = {
    # Nothing from elsewhere, nothing inline: a class name from a dataset cannot become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}


class Info(Struct, frozen=True):
    """What does not change while the stream runs."""

    engine: str
    source: str
    classes: tuple[tuple[str, str], ...]  # name, "#rrggbb"
    background: bool
    objectness: bool


def make_app(
    live: LiveStatus, painter: Painter, info: Info, *, token: str | None = None, example: Example | None = None
) -> FastAPI:
    """The application. With a `token` every path but /healthz wants it; without, only loopback host names are served."""
    app = guarded(token)
    metrics = Metrics()
    metrics.add(info.source, live)
    add_metrics(app, metrics)
    return add_camera(app, live, painter, info, example)


def guarded(token: str | None) -> FastAPI:
    """An application without a path."""
    app = FastAPI(title="tsss-edge", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Limits)  # inside the guard: who has no token is refused before he is counted
    app.add_middleware(Guard, token=token)
    return app


def add_camera(app: FastAPI, live: LiveStatus, painter: Painter, info: Info, example: Example | None = None) -> FastAPI:
    """The page of one camera, which asks for everything by relative addresses."""
    add_static(app, STATIC)
    add_video(app, "/video.mjpg", painter)
    _add_numbers(app, live, painter, info)
    _add_examples(app, example)
    return app


def add_metrics(app: FastAPI, metrics: Metrics) -> None:
    """Path /metrics."""

    @app.get("/metrics")
    def get_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def add_static(app: FastAPI, files: dict[str, tuple[str, str]]) -> None:
    """Files of the package by path: name, content type."""
    for path, (name, kind) in files.items():
        app.get(path)(_static(name, kind))


def _static(name: str, kind: str) -> Callable[[], Response]:
    content = resources.files("tsss_edge.stream.web").joinpath("static", name).read_bytes()

    def serve() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return serve


def _add_numbers(app: FastAPI, live: LiveStatus, painter: Painter, info: Info) -> None:
    @app.get("/api/info")
    def get_info() -> Response:
        return as_json(info)

    @app.get("/api/status")
    def get_status() -> Response:
        return as_json(live.status())

    @app.get("/api/view")
    def get_view() -> Response:
        return as_json(painter.view)

    @app.post("/api/view")
    async def set_view(request: Request) -> Response:
        try:
            painter.view = parse_json(await request.body(), View)
        except (msgspec.DecodeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, status_code=422)
        return as_json(painter.view)

    @app.get("/healthz")
    def healthz() -> Response:
        state = live.state
        return JSONResponse(
            {"state": state}, status_code=503 if state in ("FAILED", "RECONNECTING", "STALLED", ENGINE_LOST) else 200
        )


def _add_examples(app: FastAPI, example: Example | None) -> None:
    @app.get("/api/drift/{frame}.jpg")
    def get_example(frame: int) -> Response:
        jpeg = example(frame) if example is not None else None
        if jpeg is None:
            return refusal("that frame is gone", 404)
        return Response(jpeg, media_type="image/jpeg", headers=HEADERS)


def as_json(value: Any) -> Response:
    """Any of our records, not to be cached."""
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"Cache-Control": "no-store"})


class Paints(Protocol):
    """What gives pictures to those who look."""

    def subscribe(self, key: int, callback: Callable[[bytes], None]) -> None: ...
    def unsubscribe(self, key: int) -> None: ...


def add_video(app: FastAPI, path: str, painter: Paints) -> None:
    """An MJPEG stream of what `painter` paints."""
    keys = itertools.count()

    @app.get(path)
    async def video() -> Response:
        stream = _jpegs(painter, next(keys))
        return StreamingResponse(stream, media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}", headers=HEADERS)


async def _jpegs(painter: Paints, key: int) -> AsyncIterator[bytes]:
    """Parts of the MJPEG stream of one client. Its slot holds the newest picture only: a slow client skips pictures."""
    loop = asyncio.get_running_loop()
    slot: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)

    def put(jpeg: bytes) -> None:
        if slot.full():
            slot.get_nowait()
        slot.put_nowait(jpeg)

    def hand_over(jpeg: bytes) -> None:  # on the painter's thread
        loop.call_soon_threadsafe(put, jpeg)

    painter.subscribe(key, hand_over)
    try:
        while jpeg := await slot.get():
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            yield head.encode() + jpeg + b"\r\n"
    finally:
        painter.unsubscribe(key)


class Guard:
    """Checks the token. Without a token it checks for a loopback host name, so that no other site's name leads here."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = self._refusal(Request(scope))
        await (response or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        try:
            parts, origin = urlsplit(f"//{host}"), urlsplit(request.headers.get("origin") or f"//{host}").netloc
            cookie = f"{COOKIE}_{parts.port or request.url.scheme}"  # a browser keeps one jar for all ports of a host
        except ValueError:  # `Host: [`
            return refusal("not a host name", 400)
        if self._token is None and not is_loopback(parts.hostname or ""):
            return refusal("unknown host name", 403)
        if request.method == "POST" and origin != host:
            return refusal("request from another site", 403)
        if self._token is None or request.url.path == "/healthz":
            return None
        return self._check_token(request, self._token, cookie)

    def _check_token(self, request: Request, token: str, cookie: str) -> Response | None:
        in_url = parse_qs(request.url.query).get("token", [""])[0]
        if request.url.path == "/" and _same(in_url, token):  # once in the address, from then on in a cookie
            response = Response(status_code=303, headers={"Location": "/", **HEADERS})
            secure = request.url.scheme == "https"
            response.set_cookie(cookie, token, httponly=True, samesite="strict", secure=secure)
            return response
        kept = request.cookies.get(cookie, "")  # skips malformed cookies that other programs on this host set
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if any(_same(given, token) for given in (in_url, kept, bearer)):
            return None
        return refusal("a token is needed: open the address that tsss-edge printed", 401)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
