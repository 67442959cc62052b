"""The wall: all cameras on one page, painted into one picture, so that a browser needs one connection for any number of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse, Response
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.kernels.overlay import overlay
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.prometheus import Metrics
from tsss_edge.stream.status import LiveStatus
from tsss_edge.stream.web.app import Info, add_camera, add_metrics, add_static, add_video, as_json, guarded
from tsss_edge.stream.web.broadcast import Broadcast, jpeg_of
from tsss_edge.stream.web.painter import Painter

WALL = {
    "/": ("wall.html", "text/html; charset=utf-8"),
    "/wall.js": ("wall.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
WALL_FPS = 5.0  # of a tile and of the whole picture
WIDTHS = ((4, 640), (9, 480), (16, 360), (36, 240))  # pixels of a tile, by how many there are at most
LEAST_WIDTH = 160
JPEG_QUALITY = 75
EMPTY_BGR = (34, 28, 24)


class Layout(Struct, frozen=True):
    """Where tiles lie, in pixels of the whole picture."""

    columns: int
    rows: int
    tile_wh: tuple[int, int]

    @classmethod
    def of(cls, count: int) -> Layout:
        """For `count` cameras: about as many columns as rows, tiles of 16:9."""
        columns = max(1, math.ceil(math.sqrt(count)))
        width = next((width for most, width in WIDTHS if count <= most), LEAST_WIDTH)
        return cls(columns=columns, rows=math.ceil(count / columns), tile_wh=(width, width * 9 // 16))


class WallPainter(Broadcast):
    """The newest result of every camera in one picture. It costs a camera nothing while nobody looks.

    `offer` is called by the cameras' threads. Subscribers are called, on a thread of its own, with each new JPEG.
    """

    def __init__(self, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.layout = Layout.of(count)
        self._clock = clock
        width, height = self.layout.tile_wh
        self._picture = np.full((self.layout.rows * height, self.layout.columns * width, 3), EMPTY_BGR, np.uint8)
        self._painted_at = [float("-inf")] * count
        super().__init__("wall painter", pause_s=1 / WALL_FPS)

    def offer(self, number: int, result: FrameResult, classes: Classes) -> None:
        """Paint a result into its tile, a few times a second while somebody looks."""
        now = self._clock()
        if not self._subscribers or now - self._painted_at[number] < 1 / WALL_FPS:
            return
        self._painted_at[number] = now
        tile = self._tile(result, classes)
        row, column = divmod(number, self.layout.columns)
        width, height = self.layout.tile_wh
        with self._changed:
            self._picture[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
            self._touch()

    def _tile(self, result: FrameResult, classes: Classes) -> NDArray[np.uint8]:
        """(h,w,3) BGR: the whole frame with its masks, black beside it where it is narrower."""
        width, height = self.layout.tile_wh
        frame_h, frame_w = result.labels.shape
        scale = min(width / frame_w, height / frame_h)
        size = max(1, round(frame_w * scale)), max(1, round(frame_h * scale))
        image = cv2.resize(result.frame.image, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(result.labels, size, interpolation=cv2.INTER_NEAREST)
        tile = np.zeros((height, width, 3), np.uint8)
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        tile[top : top + size[1], left : left + size[0]] = overlay(
            np.asarray(image, np.uint8), np.asarray(labels, np.uint8), classes.palette, shown=classes.objects
        )
        return tile

    def _begin(self) -> Callable[[], bytes]:
        return partial(jpeg_of, self._picture.copy(), JPEG_QUALITY)


class WallCamera:
    """A `Sink`: what the page shows of one camera."""

    wants_overlay = False

    def __init__(
        self, number: int, name: str, live: LiveStatus, painter: Painter, info: Info, wall: WallPainter
    ) -> None:
        self.number, self.name, self.live, self.painter, self.info = number, name, live, painter, info
        self._wall = wall

    def write(self, result: FrameResult) -> None:
        """Take areas and small pictures; never wait for a browser."""
        assert result.classes is not None
        self.live.add(result)
        self.painter.offer(result)
        self._wall.offer(self.number, result, result.classes)

    def close(self) -> None:
        self.painter.close()


class WallTile(Struct, frozen=True):
    """One camera in numbers. `age_ms` is of the newest mask and grows while no other comes."""

    name: str
    state: str
    fps: float
    source_fps: float
    age_ms: float | None
    frames: int
    dropped: int


class WallInfo(Struct, frozen=True):
    """The whole wall as of now. `fps` is of all cameras together."""

    engine: str
    layout: Layout
    fps: float
    cameras: tuple[WallTile, ...]


def make_wall(
    cameras: Sequence[WallCamera], wall: WallPainter, engine: Callable[[], str], *, token: str | None = None
) -> FastAPI:
    """The application: wall, one page a camera under /camera/NAME/, numbers, Prometheus text, health."""
    app = guarded(token)
    metrics = Metrics()
    add_static(app, WALL)
    add_video(app, "/wall.mjpg", wall)
    add_metrics(app, metrics)
    for camera in cameras:
        metrics.add(camera.name, camera.live)
        page = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.mount(f"/camera/{camera.name}", add_camera(page, camera.live, camera.painter, camera.info))
        app.get(f"/camera/{camera.name}", include_in_schema=False)(_to(f"/camera/{camera.name}/"))
    _add_wall(app, cameras, wall, engine)
    return app


def _to(path: str) -> Callable[[], Response]:
    def redirect() -> Response:
        return RedirectResponse(path)

    return redirect


def _add_wall(app: FastAPI, cameras: Sequence[WallCamera], wall: WallPainter, engine: Callable[[], str]) -> None:
    @app.get("/api/wall")
    def get_wall() -> Response:
        tiles = tuple(_tile_of(camera) for camera in cameras)
        fps = round(sum(tile.fps for tile in tiles), 2)
        return as_json(WallInfo(engine=engine(), layout=wall.layout, fps=fps, cameras=tiles))

    @app.get("/healthz")
    def healthz() -> Response:
        """Well while one camera is: a restart brings no other back, and would stop this one."""
        states: dict[str, Any] = {camera.name: camera.live.state for camera in cameras}
        well = any(state in ("STREAMING", "OPEN", "ENDED") for state in states.values())
        return JSONResponse(states, status_code=200 if well else 503)


def _tile_of(camera: WallCamera) -> WallTile:
    status = camera.live.status()
    return WallTile(
        name=camera.name,
        state=status.state,
        fps=status.fps,
        source_fps=status.source_fps,
        age_ms=status.age_ms.now if status.age_ms else None,
        frames=status.frames,
        dropped=status.dropped,
    )
