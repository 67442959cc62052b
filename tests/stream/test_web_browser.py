"""The live page in a real browser (headless Chromium): the picture moves, the controls work, the numbers change."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from streamkit import gray_image
from waiting import wait_for

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.web import WebSink, open_web

CLASSES = Classes(names=("background", "cat", "<b id=evil>dog</b>"))
PATIENCE_MS = 20_000
PATIENCE_S = PATIENCE_MS / 1000


class Producer:
    """Feeds the page: frame n is grey of a value that walks, right half cat, upper left quarter an unknown object."""

    def __init__(self, sink: WebSink, recorder: Recorder) -> None:
        self.sink, self.recorder = sink, recorder
        self.stop = threading.Event()
        self.gray: int | None = None  # a fixed grey, else it walks
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        labels = np.zeros((96, 128), np.uint8)
        labels[:, 64:] = 1
        objectness = np.full((8, 8), -5.0, np.float32)
        objectness[:4, :4] = 5.0
        for n in range(0, 1_000_000, 2):  # every other frame is dropped
            image = gray_image(60 + n % 60 if self.gray is None else self.gray, (96, 128))
            frame = Frame(image, n, time.monotonic())
            times, verdict = {"infer": 2.0, "post": 1.0}, {"agreement": 0.99}
            result = FrameResult(frame, labels, objectness, None, times, 20.0, verdict)
            self.sink.write(result)
            self.recorder.add(result)
            if self.stop.wait(0.03):
                return

    def close(self) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def producer() -> Iterator[Producer]:
    recorder = Recorder()
    sink = open_web(
        "0",
        classes=CLASSES,
        recorder=recorder,
        preprocess=Preprocess(size_hw=(64, 64)),
        engine_name="e.xml",
        source_name="0",
        objectness=True,
    )
    made = Producer(sink, recorder)
    yield made
    made.close()
    sink.close()


@pytest.fixture
def page(browser: Any, producer: Producer) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1360, "height": 900})
    opened.set_default_timeout(PATIENCE_MS)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on(
        "request", lambda request: request.url.startswith((producer.sink.url, "data:")) or problems.append(request.url)
    )
    opened.goto(producer.sink.url)
    wait_for_js(opened, "document.getElementById('video').naturalWidth > 0")
    yield opened
    opened.close()
    assert problems == []


def pixel(page: Any, x: int, y: int) -> list[int]:
    """RGB of the shown picture at (x, y), in picture pixels."""
    found = page.evaluate(
        """([x, y]) => {
            const canvas = document.createElement("canvas"), shown = document.querySelector("#video:not([hidden]), #still");
            canvas.width = shown.naturalWidth || shown.width; canvas.height = shown.naturalHeight || shown.height;
            const context = canvas.getContext("2d");
            context.drawImage(shown, 0, 0);
            return [...context.getImageData(x, y, 1, 1).data];
        }""",
        [x, y],
    )
    return [int(v) for v in found[:3]]


def wait_for_js(page: Any, expression: str) -> None:
    """Not Playwright's own waiting: that needs `eval`, which the page's content security policy forbids."""
    wait_for(lambda: bool(page.evaluate(expression)))


def near(got: list[int], expected: tuple[int, int, int]) -> bool:
    return all(abs(a - b) <= 8 for a, b in zip(got, expected, strict=True))


def test_the_picture_moves_and_pausing_stops_it(page: Any) -> None:
    first = pixel(page, 30, 80)
    wait_for(lambda: pixel(page, 30, 80) != first)
    page.click("#pause")
    still = pixel(page, 30, 80)
    page.wait_for_timeout(300)
    assert pixel(page, 30, 80) == still
    assert page.inner_text("#notice") == "Paused"
    page.click("#pause")
    wait_for(lambda: pixel(page, 30, 80) != still)


def test_pausing_closes_the_video_connection(page: Any, producer: Producer) -> None:
    assert producer.sink.painter.watchers == 1
    page.click("#pause")
    wait_for(lambda: producer.sink.painter.watchers == 0)


def test_the_slider_blends(page: Any, producer: Producer) -> None:
    producer.gray = 100
    color = CLASSES.palette[1]
    half = tuple((channel + 100) // 2 for channel in color)
    wait_for(lambda: near(pixel(page, 100, 80), half))
    page.focus("#alpha")
    page.keyboard.press("End")
    wait_for(lambda: near(pixel(page, 100, 80), color))
    assert page.inner_text("#alpha-value") == "100%"
    page.keyboard.press("Home")
    wait_for(lambda: near(pixel(page, 100, 80), (100, 100, 100)))


def test_the_unknown_layer_can_be_switched(page: Any, producer: Producer) -> None:
    producer.gray = 100

    def magenta() -> bool:  # somewhere on one line through the unknown quarter
        return any(r > 150 and g < 140 and b > 150 for r, g, b in (pixel(page, x, 20) for x in range(4, 40, 3)))

    wait_for(magenta)
    page.uncheck("#unknown")
    wait_for(lambda: not magenta())


def test_the_numbers_change(page: Any) -> None:
    wait_for_js(page, "parseFloat(document.getElementById('fps').textContent) > 1")
    first = page.inner_text("#dropped")
    wait_for_js(page, f"document.getElementById('dropped').textContent !== '{first}'")
    assert page.inner_text("#agreement") == "99.0%"
    assert page.inner_text("#size") == "128 x 96"
    assert page.inner_text("#engine") == "e.xml"
    wait_for_js(page, "document.querySelectorAll('.chart path.line').length >= 4")
    assert "infer" in page.inner_text("#stages") and "2.00" in page.inner_text("#stages")


def test_the_legend_shows_areas_and_names_are_only_text(page: Any) -> None:
    wait_for_js(page, "document.querySelectorAll('#classes li')[1].textContent.includes('50.0%')")
    assert page.inner_text("#classes li:nth-child(3) .label") == "<b id=evil>dog</b>"
    assert page.query_selector("#evil") is None
    assert page.query_selector("#classes li.absent:nth-child(3)") is not None


def test_light_and_dark(page: Any) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = background()
    page.click("#theme")
    assert background() != before
    page.click("#theme")
    assert background() == before


def test_a_server_that_goes_away_is_said(browser: Any) -> None:
    sink = open_web("0", classes=CLASSES, recorder=Recorder())
    opened = browser.new_page()
    opened.goto(sink.url)
    wait_for_js(opened, "document.getElementById('state').textContent === 'STREAMING'")
    sink.close()
    wait_for_js(opened, "document.getElementById('state').textContent === 'OFFLINE'")
    opened.close()


def test_the_wall_leads_to_one_camera(browser: Any) -> None:
    from contextlib import closing

    from loopkit import fake

    from tsss_edge.stream.cameras import CameraSpec
    from tsss_edge.stream.many import Many
    from tsss_edge.stream.web import open_wall

    cameras = [
        CameraSpec(uri=f"synthetic://?size=64x48&fps=50&frames=100000&live=1&seed={n}", name=f"cam-{n}")
        for n in range(3)
    ]
    with closing(Many(fake(slots=2, latency_ms=1), cameras, engine="e.xml")) as many:
        wall = open_wall("0", many.lines, many.engine)
        for worker in many._workers:
            worker.start()
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(wall.url)
        wait_for_js(page, "document.getElementById('picture').naturalWidth > 0")
        wait_for_js(page, "document.getElementById('cameras').textContent === '3 of 3 streaming'")
        assert page.locator(".tile-link").count() == 3
        boxes = [page.locator(".tile-link").nth(n).bounding_box() for n in range(3)]
        assert boxes[0]["x"] < boxes[1]["x"] and boxes[2]["y"] > boxes[0]["y"]
        page.locator(".tile-link").nth(1).click()
        page.wait_for_url("**/camera/cam-1/")
        wait_for_js(page, "document.getElementById('video').naturalWidth > 0")
        assert page.inner_text("#source") == "cam-1"
        page.close()
        wall.close()
    assert problems == []
