"""`--web [HOST:]PORT` -> a page, served from a thread of its own: of one source a sink, of many cameras a wall."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends.triton_client import READY, state_of
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.stream.frames import FrameResult, Source
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.status import LiveStatus
from tsss_edge.stream.web.painter import Painter

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tsss_edge.stream.camera_line import CameraLine
    from tsss_edge.stream.engine_slot import EngineSlot
    from tsss_edge.stream.web.wall import WallCamera, WallPainter


Tls = tuple[Path, Path]  # certificate and key, PEM files


class WebServer:
    """A page on a thread of its own. `url` is what to open; it holds the token where one is needed."""

    def __init__(self, app: FastAPI, sock: socket.socket, url: str, tls: Tls | None = None) -> None:
        import uvicorn

        from tsss_edge.stream.web.limits import PatientProtocol, PatientServer

        self.url = url
        config = uvicorn.Config(
            app,
            log_config=None,  # its own would first close the log handlers of the whole process
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=1,
            server_header=False,
            http=PatientProtocol,
            loop="asyncio",  # uvloop's cannot be told how long a handshake may take
            ws="none",
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
        )
        self._server = PatientServer(config)
        run = {"sockets": [sock]}
        self._thread = threading.Thread(target=self._server.run, kwargs=run, name="web server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        self._server.should_exit = True
        self._thread.join(timeout=5.0)


TOKEN = re.compile(r"[A-Za-z0-9_-]{16,}")


class WebSink:
    """A `Sink` that shows results in browsers."""

    wants_overlay = False  # it paints its own, at page size and with the page's alpha

    def __init__(self, live: LiveStatus, painter: Painter, server: WebServer) -> None:
        self.live = live
        self.painter = painter
        self.url = server.url
        self._server = server

    def write(self, result: FrameResult) -> None:
        """Take the class areas and, now and then, a small copy of the picture; never wait for a browser."""
        self.live.add(result)
        self.painter.offer(result)

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        self.painter.close()  # first, because its last pictures go through the server's event loop
        self._server.close()


def open_web(
    bind: str,
    *,
    classes: Classes,
    recorder: Recorder,
    preprocess: Preprocess | None = None,
    source: Source | None = None,
    engine_name: str = "",
    source_name: str = "",
    objectness: bool = False,
    engine_state: Callable[[], str] = lambda: READY,
    example: Callable[[int], bytes | None] | None = None,
    tls: Tls | None = None,
) -> WebSink:
    """Start the page on `bind` ("8080", "0.0.0.0:8080"; port 0: any free one).

    On a loopback address nobody else can reach it; on any other a token is needed, which `url` holds: a fresh one, or that of
    the environment variable TSSS_EDGE_TOKEN.
    Its numbers are those of `recorder`. `example` gives a frame that drift names, as JPEG. `tls`: certificate and key, PEM
    files, for HTTPS.

    Raises: UnavailableError: FastAPI or uvicorn is not installed. DataError: the address is not one, or is taken, or the
            certificate or its key is unusable.
    """
    web = _import_app()
    live = LiveStatus(classes, recorder, source, engine_state)
    info = _info(web, engine_name, source_name, classes, objectness)
    sock, url, token = listen_on(bind, tls)
    painter = Painter(classes, preprocess)
    app = web.make_app(live, painter, info, token=token, example=example)
    return WebSink(live, painter, WebServer(app, sock, url, tls))


class WallServer:
    """The page of many cameras. `url` is what to open."""

    def __init__(self, cameras: Sequence[WallCamera], wall: WallPainter, server: WebServer) -> None:
        self.url, self._cameras, self._wall, self._server = server.url, cameras, wall, server

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        for camera in self._cameras:
            camera.close()
        self._wall.close()
        self._server.close()


def open_wall(bind: str, lines: Sequence[CameraLine], engine: EngineSlot, *, tls: Tls | None = None) -> WallServer:
    """Start the page of many cameras, as `open_web`. Each camera gets a sink that feeds it."""
    web = _import_app()
    from tsss_edge.stream.web.wall import WallCamera, WallPainter, make_wall

    sock, url, token = listen_on(bind, tls)
    backend, wall = engine.current.backend, WallPainter(len(lines))
    objectness = any(spec.name == "objectness" for spec in backend.outputs)
    cameras = []
    for number, line in enumerate(lines):
        info = _info(web, engine.current.name, line.spec.name, backend.classes, objectness)
        painter = Painter(backend.classes, backend.preprocess)
        live = LiveStatus(backend.classes, line.recorder, line, lambda: state_of(engine.current.backend))
        cameras.append(WallCamera(number, line.spec.name, live, painter, info, wall))
        line.extra.append(cameras[-1])
    app = make_wall(cameras, wall, lambda: engine.current.name, token=token)
    return WallServer(cameras, wall, WebServer(app, sock, url, tls))


def _import_app() -> Any:
    try:
        import uvicorn  # noqa: F401

        from tsss_edge.stream.web import app
    except ModuleNotFoundError as error:
        raise UnavailableError(f"--web needs {error.name}: pip install 'tsss-edge[web]'") from error
    return app


def _info(web: Any, engine: str, source: str, classes: Classes, objectness: bool) -> Any:
    colours = tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in classes.palette)
    return web.Info(
        engine=engine,
        source=source,
        classes=tuple(zip(classes.names, colours, strict=True)),
        background=classes.background,
        objectness=objectness,
    )


def listen_on(bind: str, tls: Tls | None = None) -> tuple[socket.socket, str, str | None]:
    """A listening socket, the address to open, and the token that is needed beyond loopback."""
    host, port = parse_bind(bind)
    if tls is not None:
        require_certificate(*tls)
    token = None if is_loopback(host) else web_token()
    sock = _listen(host, port)
    return sock, _url(host, sock.getsockname()[1], token, "https" if tls else "http"), token


def parse_bind(text: str) -> tuple[str, int]:
    """`8080`, `0.0.0.0:8080`, `[::1]:8080`, `localhost:8080` -> (host, port). Raises: DataError."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise DataError(f"--web {text}: expected PORT or HOST:PORT, for example 8080 or 0.0.0.0:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_certificate(certificate: Path, key: Path) -> None:
    """Raise DataError unless the two PEM files fit each other; the key has no password."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise DataError(
            f"--tls {certificate} {key}: not a certificate and its key ({error}); expected PEM files, the key without a password"
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise DataError(f"--web {host}:{port}: {error.strerror or error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
    except OSError as error:
        sock.close()
        raise DataError(f"--web {host}:{port}: cannot listen there ({error.strerror}); choose another port") from error
    return sock


def web_token() -> str:
    """The environment's TSSS_EDGE_TOKEN, for a service's token must outlive a restart; else a fresh one.

    Raises: DataError: it is too short, or not fit for an address.
    """
    given = os.environ.get("TSSS_EDGE_TOKEN")
    if given is not None and not TOKEN.fullmatch(given):
        raise DataError(
            "TSSS_EDGE_TOKEN: expected 16 or more letters, digits, '-' and '_'; `openssl rand -hex 16` makes one"
        )
    return given or secrets.token_urlsafe(24)


def _url(host: str, port: int, token: str | None, scheme: str) -> str:
    if host in ("0.0.0.0", "::"):  # everywhere: name one address that works
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}/" + (f"?token={token}" if token else "")
