"""`review DIR`: image-level labels for collected frames, on a page of this machine, until Ctrl-C."""

from __future__ import annotations

import threading
from pathlib import Path

from tsss_edge.errors import UnavailableError
from tsss_edge.review.session import ReviewSession
from tsss_edge.stream.web import WebServer, listen_on


class ReviewServer:
    """A page that is being served. `url` is what to open."""

    def __init__(self, session: ReviewSession, server: WebServer) -> None:
        self.session, self.url = session, server.url
        self._server, self._closed = server, threading.Event()

    def wait(self) -> None:
        """Until it is closed, or Ctrl-C."""
        while not self._closed.wait(0.5):
            pass

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        self._closed.set()
        self._server.close()


def open_review(folder: Path, bind: str) -> ReviewServer:
    """Serve the page of `folder` on `bind` ("8090", "127.0.0.1:0"); on another host than loopback with a token.

    Raises: DataError: no collected frames there, or the address is taken. UnavailableError: FastAPI is not installed.
    """
    session = ReviewSession(folder)
    session.state()  # says now what is wrong with the folder
    try:
        import uvicorn  # noqa: F401  `WebServer` wants it, and its absence is told before a port is taken

        from tsss_edge.review.pages import make_review_app
    except ModuleNotFoundError as error:
        raise UnavailableError(f"review needs {error.name}: pip install 'tsss-edge[web]'") from error
    sock, url, token = listen_on(bind)
    return ReviewServer(session, WebServer(make_review_app(session, token=token), sock, url))
