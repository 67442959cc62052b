"""The live page's server: numbers, pictures, who may see them, and that a browser never slows the loop."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from streamkit import MakeResult
from waiting import wait_for

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.drawing import Drawer
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.status import LiveStatus, Status
from tsss_edge.stream.web import WebSink, open_web, parse_bind, web_token
from tsss_edge.stream.web import painter as painter_module
from tsss_edge.stream.web.app import BOUNDARY, Info, _jpegs, make_app
from tsss_edge.stream.web.painter import MAX_WIDTH, UNKNOWN_BGR, Painter, View, draw_unknown, unknown_mask

CLASSES = Classes(names=("background", "cat", "dog"))
INFO = Info(engine="e.xml", source="0", classes=(("cat", "#800000"),), background=True, objectness=True)
PATIENCE_S = 20.0


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class StubSource:
    """A source that only has facts."""

    live, fps, size_hw, length, state, reconnects = True, 30.0, (48, 64), None, "STREAMING", 2

    def read(self) -> Frame | None:
        return None

    def close(self) -> None:
        pass


class Page:
    """The numbers of a page, fed as the loop feeds them: sinks first, then the recorder."""

    def __init__(self, *, source: StubSource | None = None, clock: Clock | None = None) -> None:
        self.recorder = Recorder(clock=clock) if clock else Recorder()
        self.live = LiveStatus(CLASSES, self.recorder, source)

    def add(self, result: FrameResult) -> None:
        self.live.add(result)
        self.recorder.add(result)

    def status(self) -> Status:
        return self.live.status()


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_rate_drops_and_percentiles(make_result: MakeResult) -> None:
    clock = Clock()
    page = Page(source=StubSource(), clock=clock)
    for n in range(11):  # every second frame of a source: 0, 2, .., 20
        result = make_result(2 * n)
        result.age_ms = float(n)
        page.add(result)
        clock.now += 0.1
    status = page.status()
    assert status.fps == pytest.approx(10.0)
    assert (status.frames, status.dropped, status.reconnects, status.source_fps) == (11, 10, 2, 30.0)
    assert status.age_ms is not None and (status.age_ms.p50, status.age_ms.now) == (5.0, 10.0)
    assert status.latency_ms is not None and status.latency_ms.p99 == 1.5
    assert status.areas == {"background": 0.5, "cat": 0.5}
    assert status.size == (64, 48)


def test_a_stall_shows_as_growing_age_and_no_rate(make_result: MakeResult) -> None:
    clock = Clock()
    page = Page(clock=clock)
    page.add(make_result(0))
    clock.now += 5.0
    status = page.status()
    assert status.fps == 0.0
    assert status.age_ms is not None and status.age_ms.now == 12.0 + 5000.0
    assert status.history.age_ms == [5012.0]
    assert status.history.latency_ms == [1.5]
    clock.now += 2.0
    assert page.status().history.latency_ms == [1.5, None]  # nothing was measured in that second


def test_history_counts_the_drops_of_each_second(make_result: MakeResult) -> None:
    clock = Clock()
    page = Page(clock=clock)
    for index in (0, 3, 10):
        page.add(make_result(index))
        clock.now += 1.0
    status = page.status()
    assert status.dropped == 8
    assert sum(status.history.dropped) == 8
    assert status.history.t == sorted(status.history.t) and status.history.t[-1] <= 0


def test_checks_come_from_the_parity_watch(make_result: MakeResult) -> None:
    page = Page()
    assert page.status().agreement is None
    result = make_result(0)
    result.parity = {"agreement": 0.98, "frame": 0}
    page.add(result)
    page.add(make_result(1))  # no new verdict: the last one stands
    assert (page.status().agreement, page.status().miou) == (0.98, None)


def test_nothing_yet() -> None:
    status = Page().status()
    assert (status.fps, status.age_ms, status.latency_ms, status.areas) == (0.0, None, None, {})


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_unknown_is_object_where_the_class_is_background() -> None:
    spec = Preprocess(size_hw=(64, 64))
    objectness = np.full((8, 8), -4.0, np.float32)
    objectness[:, 4:] = 4.0  # right half
    labels = np.zeros((32, 32), np.uint8)
    labels[:8] = 1  # the top quarter has a class
    mask = unknown_mask(labels, objectness, CLASSES, spec, (128, 128))
    assert not mask[:8].any() and not mask[:, :15].any()
    assert mask[8:, 17:].all()
    assert not unknown_mask(labels, objectness, Classes(names=("a", "b"), background=False), spec, (128, 128)).any()


def test_unknown_follows_the_letterbox() -> None:
    spec = Preprocess(size_hw=(64, 64), fit="letterbox")  # a 2:1 frame fills rows 16 to 48
    objectness = np.full((8, 8), -4.0, np.float32)
    objectness[2:4] = 4.0  # rows 16 to 32: the frame's upper half
    mask = unknown_mask(np.zeros((20, 40), np.uint8), objectness, CLASSES, spec, (100, 200))
    assert mask[1:9].all() and not mask[11:].any()


def test_unknown_outside_of_a_crop_is_not_claimed() -> None:
    spec = Preprocess(size_hw=(64, 64), fit="crop")
    mask = unknown_mask(np.zeros((20, 40), np.uint8), np.full((8, 8), 4.0, np.float32), CLASSES, spec, (100, 200))
    assert mask[:, 10:30].all() and not mask[:, :10].any() and not mask[:, 30:].any()


def test_unknown_is_drawn_in_its_own_colour_and_only_there() -> None:
    image, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    draw_unknown(image, mask)
    assert (image[10:30, 10:30] == UNKNOWN_BGR).all(axis=2).mean() > 0.25
    assert not image[:7].any() and not image[:, 33:].any()


def test_pictures_are_shrunk_to_the_page_and_painted_only_when_watched(make_result: MakeResult) -> None:
    painter = Painter(CLASSES)
    painter.offer(make_result(0, size_hw=(540, 2 * MAX_WIDTH)))
    time.sleep(0.05)
    assert painter.painted == 0
    got: list[bytes] = []
    arrived = threading.Event()
    painter.subscribe(1, lambda jpeg: (got.append(jpeg), arrived.set()))
    assert arrived.wait(PATIENCE_S)
    image = cv2.imdecode(np.frombuffer(got[0], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.shape == (270, MAX_WIDTH, 3)
    painter.close()
    painter.close()
    assert got[-1] == b"" and painter.watchers == 0


def test_a_new_alpha_repaints_the_picture_that_is_there(make_result: MakeResult) -> None:
    """Without names first, then the colours alone, then their names too."""
    painter, got, arrived = Painter(CLASSES), [], threading.Semaphore(0)
    painter.view = View(names=False)
    painter.offer(make_result(0))
    painter.subscribe(1, lambda jpeg: (got.append(jpeg), arrived.release()))
    assert arrived.acquire(timeout=PATIENCE_S)
    for view in (View(alpha=1.0, names=False), View(alpha=1.0)):
        painter.view = view
        assert arrived.acquire(timeout=PATIENCE_S)
    before, after = (cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in got[:2])
    assert before is not None and after is not None
    assert abs(int(before[24, 48, 2]) - 178) < 9 and abs(int(after[24, 48, 2]) - 255) < 9  # the class's red
    assert got[2] != got[1]
    painter.close()


def test_names_are_those_of_the_engine_that_made_the_picture(
    make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promoted engine has other classes: the painter once kept the old names, and died of a class beyond them."""
    drawn: list[tuple[str, ...]] = []

    def drawer(classes: Classes, size_hw: tuple[int, int]) -> Drawer:
        drawn.append(classes.names)
        return Drawer(classes, size_hw)

    monkeypatch.setattr(painter_module, "Drawer", drawer)
    painter, arrived = Painter(CLASSES), threading.Semaphore(0)
    painter.subscribe(1, lambda jpeg: arrived.release())
    wanted = [CLASSES.names, ("background", "cow", "cat", "dog", "horse")]
    for names in wanted:
        result = make_result(0)
        result.classes = Classes(names=names)
        result.labels[:, 32:] = len(names) - 1
        painter._offered_at = float("-inf")
        painter.offer(result)
        assert arrived.acquire(timeout=PATIENCE_S)
    assert drawn == wanted
    painter.close()


def test_the_loop_does_not_wait_for_a_slow_painter(make_result: MakeResult) -> None:
    painter, hold = Painter(CLASSES), threading.Event()
    painter.subscribe(1, lambda jpeg: hold.wait(PATIENCE_S))  # a client that takes nothing
    for n in range(50):
        painter._offered_at = float("-inf")
        painter.offer(make_result(n))  # returns at once, or this test would take 50 x PATIENCE_S
    assert painter.painted <= 2
    hold.set()
    painter.close()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_0_to_1(alpha: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        View(alpha=alpha)


# -- the application ---------------------------------------------------------------------------------------------------


class Client:
    """Asks the application without a network; keeps cookies."""

    def __init__(self, app: FastAPI, host: str) -> None:
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}")

    def get(self, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._client.get(path, **options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._client.post(path, **options))


def client(token: str | None = None, *, host: str = "127.0.0.1:8080") -> tuple[Client, Page, Painter]:
    page, painter = Page(source=StubSource()), Painter(CLASSES)
    return Client(make_app(page.live, painter, INFO, token=token), host), page, painter


def test_page_and_its_files_come_from_here_alone() -> None:
    web, _, _ = client()
    page = web.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    linked = re.findall(r'(?:src|href)="([^":]+)"', page.text)
    assert sorted(linked) == ["app.js", "style.css"]
    for path in [*linked, "charts.js"]:
        answer = web.get(f"/{path}")
        assert answer.status_code == 200
        assert not re.search(
            r"""(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9]+\.""", re.sub(r"// .*", "", answer.text)
        )
    assert web.get("/docs").status_code == 404


def test_info_status_and_view(make_result: MakeResult) -> None:
    web, shown, painter = client()
    shown.add(make_result(0))
    assert web.get("/api/info").json()["classes"] == [["cat", "#800000"]]
    assert web.get("/api/status").json()["areas"] == {"background": 0.5, "cat": 0.5}
    wanted = {"alpha": 0.25, "unknown": False, "names": False}
    assert web.post("/api/view", json=wanted).json() == wanted
    assert painter.view == View(alpha=0.25, unknown=False, names=False) and web.get("/api/view").json()["alpha"] == 0.25


@pytest.mark.parametrize(
    "body",
    ["{}x", '{"alpha": 2}', '{"alpha": "a"}', '{"beta": 1}', "[]", "[" * 2000, b'{"alpha": "\xff"}'],
    ids=range(7),
)
def test_a_bad_view_is_refused(body: str | bytes) -> None:
    web, _, painter = client()
    assert web.post("/api/view", content=body).status_code == 422
    assert painter.view == View()


def test_metrics_are_prometheus_text(make_result: MakeResult) -> None:
    web, shown, _ = client()
    shown.add(make_result(3))
    answer = web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    source = f'camera="{INFO.source}"'
    assert f"tsss_edge_frames_dropped_total{{{source}}} 3.0" in lines
    assert f'tsss_edge_source_state{{{source},state="STREAMING"}} 1.0' in lines
    assert f'tsss_edge_frame_age_seconds_bucket{{{source},engine="",le="0.01"}} 0.0' in lines
    assert f'tsss_edge_frame_age_seconds_bucket{{{source},engine="",le="0.02"}} 1.0' in lines


@pytest.mark.parametrize(("state", "code"), [("STREAMING", 200), ("ENDED", 200), ("FAILED", 503), ("STALLED", 503)])
def test_health(state: str, code: int) -> None:
    web, shown, _ = client()
    shown.live._source.state = state  # type: ignore[union-attr]
    answer = web.get("/healthz")
    assert (answer.status_code, answer.json()) == (code, {"state": state})


def test_without_a_token_only_loopback_names_are_served() -> None:
    for host in ("localhost:1", "127.0.0.1", "[::1]:8080"):
        assert client(host=host)[0].get("/api/info").status_code == 200
    assert client(host="evil.example:8080")[0].get("/api/info").status_code == 403


def test_another_site_cannot_move_the_controls() -> None:
    web, _, painter = client()
    other = web.post("/api/view", json={"alpha": 0.9}, headers={"Origin": "http://evil.example"})
    assert other.status_code == 403 and painter.view == View()
    assert web.post("/api/view", json={"alpha": 0.9}, headers={"Origin": "http://127.0.0.1:8080"}).status_code == 200


def test_with_a_token_everything_but_health_wants_it() -> None:
    web, _, _ = client("s3cret", host="cam.example:8080")
    for path in ("/", "/app.js", "/api/status", "/video.mjpg", "/metrics", "/api/info?token=wrong", "/?token="):
        assert web.get(path).status_code == 401, path
    assert web.post("/api/view", json={"alpha": 1.0}).status_code == 401
    assert web.get("/healthz").status_code == 200
    assert web.get("/metrics", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert web.get("/metrics?token=s3cret").status_code == 200


def test_the_token_moves_from_the_address_into_a_cookie() -> None:
    web, _, _ = client("s3cret", host="cam.example:8080")
    answer = web.get("/?token=s3cret")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"httponly", "samesite=strict"} <= set(answer.headers["set-cookie"].lower().split("; "))
    assert web.get("/").status_code == 200
    assert web.get("/api/status").status_code == 200


def test_two_streams_of_one_host_do_not_take_each_other_s_cookie() -> None:
    """Cookies know no ports."""
    one, two = (client(f"token{port}", host=f"cam.example:{port}")[0] for port in (8080, 8081))
    jar = [web.get(f"/?token=token{port}").headers["set-cookie"] for web, port in ((one, 8080), (two, 8081))]
    kept = {cookie.partition("=")[0]: cookie.partition(";")[0] for cookie in jar}
    both = {"Cookie": "; ".join(kept.values())}
    assert [web.get("/", headers=both).status_code for web in (one, two)] == [200, 200]


def test_a_port_that_is_none_is_refused() -> None:
    assert client("s3cret", host="cam.example:99999")[0].get("/").status_code == 400


@pytest.mark.parametrize("others", ['a={"x": 1}', "a/b=1", "=", "a=b=c"])
def test_cookies_of_other_programs_on_the_host_are_in_nobody_s_way(others: str) -> None:
    web, _, _ = client("s3cret", host="cam.example:8080")
    assert web.get("/", headers={"Cookie": f"{others}; tsss_edge_token_8080=s3cret"}).status_code == 200
    assert web.get("/", headers={"Cookie": others}).status_code == 401


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def web_sink() -> Iterator[WebSink]:
    sink = open_web("0", classes=CLASSES, recorder=Recorder(), source=StubSource(), engine_name="e", source_name="s")
    yield sink
    sink.close()


def test_mjpeg_gives_picture_after_picture(web_sink: WebSink, make_result: MakeResult) -> None:
    stop = threading.Event()

    def produce() -> None:
        for n in range(100_000):
            web_sink.write(make_result(n, value=n % 200))
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        with httpx.stream("GET", f"{web_sink.url}video.mjpg", timeout=PATIENCE_S) as answer:
            assert f"boundary={BOUNDARY}" in answer.headers["content-type"]
            data = b""
            for chunk in answer.iter_raw():
                data += chunk
                if data.count(b"--frame\r\n") >= 4:
                    break
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    parts = data.split(b"--frame\r\n")[1:4]
    jpegs = [part.partition(b"\r\n\r\n")[2][:-2] for part in parts]
    lengths = [int(re.search(rb"Content-Length: (\d+)", part)[1]) for part in parts]  # type: ignore[index]
    assert lengths == [len(jpeg) for jpeg in jpegs]
    assert len({cv2.imdecode(np.frombuffer(j, np.uint8), 1).tobytes() for j in jpegs}) == 3


def test_a_slow_client_gets_the_newest_picture_next(make_result: MakeResult) -> None:
    class Pictures:
        """A painter that paints when told."""

        def subscribe(self, key: int, callback: Callable[[bytes], None]) -> None:
            self.show = callback

        def unsubscribe(self, key: int) -> None:
            self.left = key

    async def watch() -> list[bytes]:
        pictures = Pictures()
        stream = _jpegs(pictures, 7)  # type: ignore[arg-type]
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        pictures.show(b"one")
        got = [await first]
        for jpeg in (b"two", b"three", b"four"):  # while the client is still busy with the first
            pictures.show(jpeg)
        await asyncio.sleep(0)
        got.append(await anext(stream))
        pictures.show(b"")
        assert [part async for part in stream] == [] and pictures.left == 7
        return got

    one, next_one = asyncio.run(watch())
    assert one.endswith(b"\r\n\r\none\r\n") and next_one.endswith(b"\r\n\r\nfour\r\n")


def test_a_client_that_reads_nothing_costs_the_loop_nothing(web_sink: WebSink, make_result: MakeResult) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    port = int(web_sink.url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as lazy:
        lazy.sendall(b"GET /video.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_for(lambda: web_sink.painter.watchers)
        for n in range(60):  # far more than the sockets' buffers hold
            result = make_result(n, size_hw=(480, 640))
            result.frame.picture = noise
            web_sink.painter._offered_at = float("-inf")
            web_sink.write(result)
        assert httpx.get(f"{web_sink.url}api/status", timeout=PATIENCE_S).json()["areas"] == {
            "background": 0.5,
            "cat": 0.5,
        }


def test_a_client_that_leaves_is_forgotten(web_sink: WebSink, make_result: MakeResult) -> None:
    web_sink.write(make_result(0))
    with httpx.stream("GET", f"{web_sink.url}video.mjpg", timeout=PATIENCE_S) as answer:
        chunks = answer.iter_raw()  # held: a dropped generator closes the connection
        next(chunks)
        assert web_sink.painter.watchers == 1
    deadline = time.monotonic() + PATIENCE_S
    while web_sink.painter.watchers and time.monotonic() < deadline:
        web_sink.painter._offered_at = float("-inf")
        web_sink.write(make_result(1))
        time.sleep(0.01)
    assert web_sink.painter.watchers == 0


def test_closing_ends_streams_and_frees_the_port(make_result: MakeResult) -> None:
    sink = open_web("0", classes=CLASSES, recorder=Recorder())
    sink.write(make_result(0))
    port = int(sink.url.rstrip("/").rpartition(":")[2])
    with httpx.stream("GET", f"{sink.url}video.mjpg", timeout=PATIENCE_S) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        sink.close()
        assert b"".join(chunks).count(b"--frame") <= 1
    sink.close()
    assert not sink._server._thread.is_alive()
    open_web(str(port), classes=CLASSES, recorder=Recorder()).close()


def test_a_service_brings_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSSS_EDGE_TOKEN", "0123456789abcdef")
    assert web_token() == "0123456789abcdef"
    for bad in ("", "short", "0123456789 abcdef", "0123456789abcdef&x=1"):
        monkeypatch.setenv("TSSS_EDGE_TOKEN", bad)
        with pytest.raises(DataError, match="16 or more"):
            web_token()


def test_beyond_loopback_a_token_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSSS_EDGE_TOKEN", raising=False)
    sink = open_web("0.0.0.0:0", classes=CLASSES, recorder=Recorder())
    try:
        token = re.fullmatch(r"http://[^/]+:(\d+)/\?token=([\w-]{32})", sink.url)
        assert token is not None
        base = f"http://127.0.0.1:{token[1]}"
        assert httpx.get(f"{base}/api/status", timeout=PATIENCE_S).status_code == 401
        assert httpx.get(f"{base}/api/status?token={token[2]}", timeout=PATIENCE_S).status_code == 200
    finally:
        sink.close()


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy, pytest.raises(DataError, match="choose another port"):
        open_web(str(busy.getsockname()[1]), classes=CLASSES, recorder=Recorder())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("127.0.0.1", 80)),
        ("cam.local:80", ("cam.local", 80)),
    ],
)
def test_bind(text: str, expected: tuple[str, int]) -> None:
    assert parse_bind(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1:2:3", "99999", "host:", "-1"])
def test_bad_bind(text: str) -> None:
    with pytest.raises(DataError, match="PORT or HOST:PORT"):
        parse_bind(text)


def test_without_fastapi_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UnavailableError, match=r"pip install 'tsss-edge\[web\]'"):
        open_web("0", classes=CLASSES, recorder=Recorder())
