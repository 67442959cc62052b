"""`--web [HOST:]PORT` -> a sink whose results are shown on a page, served from a thread of its own."""

from __future__ import annotations

import os
import re
import secrets
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.stream.frames import FrameResult, Source
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.status import LiveStatus
from tsss_edge.stream.web.painter import Painter

if TYPE_CHECKING:
    import uvicorn


TOKEN = re.compile(r"[A-Za-z0-9_-]{16,}")


class WebSink:
    """A `Sink` that shows results in browsers. `url` is what to open; it holds the token where one is needed."""

    wants_overlay = False  # it paints its own, at page size and with the page's alpha

    def __init__(
        self, live: LiveStatus, painter: Painter, server: uvicorn.Server, sock: socket.socket, url: str
    ) -> None:
        self.live = live
        self.painter = painter
        self.url = url
        self._server = server
        self._closed = False
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="web server", daemon=True)
        self._thread.start()

    def write(self, result: FrameResult) -> None:
        """Take the class areas and, now and then, a small copy of the picture; never wait for a browser."""
        self.live.add(result)
        self.painter.offer(result)

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.painter.close()  # first, because its last pictures go through the server's event loop
        self._server.should_exit = True
        self._thread.join(timeout=5.0)


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
    tls: tuple[Path, Path] | None = None,
) -> WebSink:
    """Start the page on `bind` ("8080", "0.0.0.0:8080"; port 0: any free one).

    On a loopback address nobody else can reach it; on any other a token is needed, which `url` holds: a fresh one, or that of
    the environment variable TSSS_EDGE_TOKEN.
    Its numbers are those of `recorder`. `tls`: certificate and key, PEM files, for HTTPS.

    Raises: UnavailableError: FastAPI or uvicorn is not installed. DataError: the address is not one, or is taken, or the
            certificate or its key is unusable.
    """
    try:
        import uvicorn

        from tsss_edge.stream.web.app import Info, is_loopback, make_app
        from tsss_edge.stream.web.limits import PatientProtocol
    except ModuleNotFoundError as error:
        raise UnavailableError(f"--web needs {error.name}: pip install 'tsss-edge[web]'") from error
    host, port = parse_bind(bind)
    if tls is not None:
        require_certificate(*tls)
    sock = _listen(host, port)
    token = None if is_loopback(host) else web_token()
    live, painter = LiveStatus(classes, recorder, source), Painter(classes, preprocess)
    colours = tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in classes.palette)
    info = Info(
        engine=engine_name,
        source=source_name,
        classes=tuple(zip(classes.names, colours, strict=True)),
        background=classes.background,
        objectness=objectness,
    )
    config = uvicorn.Config(
        make_app(live, painter, info, token=token),
        log_config=None,  # its own would first close the log handlers of the whole process
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
        server_header=False,
        http=PatientProtocol,
        ws="none",
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    return WebSink(
        live,
        painter,
        uvicorn.Server(config),
        sock,
        _url(host, sock.getsockname()[1], token, "https" if tls else "http"),
    )


def parse_bind(text: str) -> tuple[str, int]:
    """`8080`, `0.0.0.0:8080`, `[::1]:8080`, `localhost:8080` -> (host, port). Raises: DataError."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise DataError(f"--web {text}: expected PORT or HOST:PORT, for example 8080 or 0.0.0.0:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


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
