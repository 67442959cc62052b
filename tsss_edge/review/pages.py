"""A review session -> the web application: page, pictures, masks, answers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

import cv2
import msgspec
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, Struct
from tsss_edge.data.pictures import read_mask
from tsss_edge.errors import DataError, TsssEdgeError
from tsss_edge.files import parse_json
from tsss_edge.review.session import LabelAnswer, ReviewSession
from tsss_edge.stream.web.app import HEADERS, as_json, guarded

T = TypeVar("T")
FILES = {
    "/": ("review.html", "text/html; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
}


class NewCategory(Struct, frozen=True):
    """What the page sends when a name is typed."""

    name: str


def make_review_app(session: ReviewSession, *, token: str | None = None) -> FastAPI:
    """The application, guarded as the live page is."""
    app = guarded(token)
    for path, (name, kind) in FILES.items():
        app.get(path)(_static(name, kind))
    _add_pictures(app, session)
    _add_answers(app, session)
    return app


def _static(name: str, kind: str) -> Callable[[], Response]:
    content = resources.files("tsss_edge.review").joinpath("static", name).read_bytes()

    def serve() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return serve


def _add_pictures(app: FastAPI, session: ReviewSession) -> None:
    @app.get("/picture/{image_id:path}")
    def picture(image_id: str) -> Response:
        try:
            return FileResponse(session.picture(image_id), headers=HEADERS)
        except DataError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)

    @app.get("/mask/{image_id:path}")
    def mask(image_id: str) -> Response:
        try:
            path = session.mask_path(image_id)
        except DataError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)
        if path is None:
            return PlainTextResponse("no mask\n", status_code=404)
        return Response(tinted(read_mask(path), session.classes), media_type="image/png", headers=HEADERS)


def _add_answers(app: FastAPI, session: ReviewSession) -> None:
    @app.get("/api/state")
    def state() -> Response:
        return as_json(session.state())

    @app.post("/api/answer")
    async def answer(request: Request) -> Response:
        return await _post(request, LabelAnswer, session.answer)

    @app.post("/api/category")
    async def category(request: Request) -> Response:
        return await _post(request, NewCategory, lambda given: {"id": session.add_category(given.name)})

    @app.post("/api/undo")
    def undo() -> Response:
        return as_json({"id": session.undo()})


async def _post(request: Request, kind: type[T], act: Callable[[T], Any]) -> Response:
    try:
        return as_json(act(parse_json(await request.body(), kind)))
    except (msgspec.DecodeError, TsssEdgeError) as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    except OSError as error:
        return JSONResponse({"error": f"the answer could not be written ({error.strerror or error})"}, status_code=507)


def tinted(mask: NDArray[np.uint8], classes: Classes) -> bytes:
    """(H,W) ids -> a PNG of the objects' colours, half transparent; background and 255 are clear."""
    table = np.zeros((256, 4), np.uint8)
    for i in classes.objects:
        table[i] = (*classes.palette[i][::-1], 128)
    table[IGNORE] = 0
    ok, data = cv2.imencode(".png", table[mask])
    assert ok
    return data.tobytes()
