"""`review DIR`: image-level labels for collected frames, on a page of this machine, until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tsss_edge.errors import UnavailableError
from tsss_edge.review.session import ReviewSession
from tsss_edge.stream.web import is_loopback, listen, page_url, parse_bind, quiet_server

if TYPE_CHECKING:
    import uvicorn


class ReviewServer:
    """A page that is being served. `url` is what to open."""

    def __init__(self, session: ReviewSession, server: uvicorn.Server, sock: socket.socket, url: str) -> None:
        self.session, self.url = session, url
        self._server = server
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="review", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it is closed, or Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        self._server.should_exit = True
        self._thread.join(timeout=5.0)


def open_review(folder: Path, bind: str) -> ReviewServer:
    """Serve the page of `folder` on `bind` ("8090", "127.0.0.1:0"); on another host than loopback with a token.

    Raises: DataError: no collected frames there, or the address is taken. UnavailableError: FastAPI is not installed.
    """
    session = ReviewSession(folder)
    session.state()  # says now what is wrong with the folder
    try:
        import uvicorn  # noqa: F401  `quiet_server` wants it, and its absence is told before a port is taken

        from tsss_edge.review.pages import make_review_app
    except ModuleNotFoundError as error:
        raise UnavailableError(f"review needs {error.name}: pip install 'tsss-edge[web]'") from error
    host, port = parse_bind(bind)
    sock = listen(host, port)
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    server = quiet_server(make_review_app(session, token=token))
    return ReviewServer(session, server, sock, page_url(host, sock.getsockname()[1], token))
