"""The wall of cameras: layout, pictures, numbers, the way to one camera, health, and the whole command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import httpx
import msgspec
import numpy as np
import pytest
from loopkit import CLASSES, fake
from streamkit import MakeResult, MakeVideo
from tiny import tiny_onnx

from tsss_edge.config import load_target
from tsss_edge.export.build import build_engine
from tsss_edge.stream.cameras import CameraSpec
from tsss_edge.stream.many import Many
from tsss_edge.stream.web import WallServer, open_wall
from tsss_edge.stream.web.wall import Layout, WallPainter

PATIENCE_S = 20.0
CAMERAS = tuple(
    CameraSpec(uri=f"synthetic://?size=64x48&frames=100000&fps=50&live=1&seed={n}", name=name)
    for n, name in enumerate(("gate", "yard", "door"))
)


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (16, 4, 4), (17, 5, 4), (64, 8, 8)]
)
def test_layout(count: int, columns: int, rows: int) -> None:
    layout = Layout.of(count)
    assert (layout.columns, layout.rows) == (columns, rows) and columns * rows >= count
    assert layout.columns * layout.tile_wh[0] <= 1600


def test_nothing_is_painted_while_nobody_looks(make_result: MakeResult) -> None:
    with closing(WallPainter(1)) as wall:
        wall.offer(0, make_result(size_hw=(48, 64)), CLASSES)
        assert wall._painted_at == [float("-inf")]


def test_a_tile_lies_in_its_place_and_holds_the_whole_frame(make_result: MakeResult) -> None:
    """Labels of `make_result`: background on the left half, class 1 on the right."""
    pictures: list[bytes] = []
    got = threading.Event()

    def take(jpeg: bytes) -> None:
        pictures.append(jpeg)
        got.set()

    with closing(WallPainter(4)) as wall:
        wall.subscribe(0, take)
        wall.offer(3, make_result(size_hw=(90, 160), value=100), CLASSES)
        deadline = time.monotonic() + PATIENCE_S
        while not (pictures and abs(int(decode(pictures[-1])[540, 800, 0]) - 100) < 12):
            assert time.monotonic() < deadline
            got.wait(0.1)
        picture = decode(pictures[-1])
    width, height = wall.layout.tile_wh
    assert picture.shape == (2 * height, 2 * width, 3)
    blended = (100 + np.array(CLASSES.palette[1][::-1])) / 2
    assert np.allclose(picture[height + height // 2, width + 3 * width // 4], blended, atol=12)
    assert np.allclose(picture[height // 2, width // 2], (34, 28, 24), atol=8)


def test_who_comes_sees_the_wall_at_once_though_no_camera_sends() -> None:
    pictures: list[bytes] = []
    got = threading.Event()
    with closing(WallPainter(2)) as wall:
        wall.subscribe(0, lambda jpeg: (pictures.append(jpeg), got.set()))  # type: ignore[func-returns-value]
        assert got.wait(PATIENCE_S) and pictures[0]


def decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))


@pytest.fixture
def wall() -> Iterator[WallServer]:
    """Three live cameras on a fake engine, with the page."""
    with closing(Many(fake(slots=2, latency_ms=1), CAMERAS, engine="e.xml")) as many:
        page = open_wall("0", many.lines, many.engine)
        for worker in many._workers:
            worker.start()
        yield page
        page.close()


get = partial(httpx.get, timeout=PATIENCE_S)


def wait_for(url: str, condition: Any) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not condition(answer := get(url)):
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)
    return answer


def test_numbers_pages_and_pictures(wall: WallServer) -> None:
    url = wall.url
    told = wait_for(f"{url}api/wall", lambda a: all(c["frames"] > 2 for c in a.json()["cameras"])).json()
    assert told["engine"] == "e.xml"
    assert [(c["name"], c["state"]) for c in told["cameras"]] == [(c.name, "STREAMING") for c in CAMERAS]
    page = get(url)
    for linked in re.findall(r'(?:src|href)="([^":]+)"', page.text):
        assert get(url + linked).status_code == 200
    assert get(f"{url}camera/gate", follow_redirects=True).url == f"{url}camera/gate/"
    for path in ("", "app.js", "api/info", "api/status"):
        assert get(f"{url}camera/yard/{path}").status_code == 200
    info = get(f"{url}camera/yard/api/info").json()
    assert info["source"] == "yard" and not info["objectness"]  # this engine has one output
    assert get(f"{url}camera/nobody/").status_code == 404
    assert (get(f"{url}healthz").status_code, get(f"{url}healthz").json()["door"]) == (200, "STREAMING")
    metrics = get(f"{url}metrics").text
    assert all(f'tsss_edge_frames_total{{camera="{c.name}",engine="e.xml"}}' in metrics for c in CAMERAS)
    for path in ("wall.mjpg", "camera/gate/video.mjpg"):
        with httpx.stream("GET", url + path, timeout=PATIENCE_S) as answer:
            assert b"\xff\xd8" in next(answer.iter_raw())


def test_health_is_bad_only_when_no_camera_is_well(wall: WallServer) -> None:
    for camera in wall._cameras[:2]:
        camera.live._source.source.close()  # type: ignore[union-attr]
        camera.live._source.source._state = "FAILED"  # type: ignore[union-attr]
    assert get(f"{wall.url}healthz").status_code == 200
    wall._cameras[2].live._source.source.close()  # type: ignore[union-attr]
    wall._cameras[2].live._source.source._state = "RECONNECTING"  # type: ignore[union-attr]
    assert get(f"{wall.url}healthz").status_code == 503


def test_the_command(tmp_path: Path, make_video: MakeVideo) -> None:
    """An engine of a free batch on OpenVINO, in batches and one by one: the same lines, and a report that adds up."""
    target = msgspec.structs.replace(load_target("cpu"), batch=(1, 4, 8))
    model = tiny_onnx(tmp_path / "tiny.onnx", objectness=True, batch=0)
    engine = build_engine(model.path, target, tmp_path / "tiny.xml", precision="fp32").path
    videos = [make_video(f"{n}.mp4", frames=12) for n in range(3)]
    text = "".join(f'[[camera]]\nname = "v{n}"\nuri = "{video}"\n' for n, video in enumerate(videos))
    areas: list[list[str]] = []
    for name, options in (("single", ()), ("batched", ("--batch-wait-ms", "5"))):
        (tmp_path / "cameras.toml").write_text(f'[defaults]\nsinks = ["{tmp_path}/{name}-{{name}}.jsonl"]\n{text}')
        command = [sys.executable, "-m", "tsss_edge", "stream", str(engine), "--sources", "cameras.toml", "--json", "-"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["frames"], report["dropped"], [c["frames"] for c in report["cameras"]]) == (36, 0, [12, 12, 12])
        assert ("batches up to 4 within 5 ms" in report["runs_on"]) == bool(options)
        lines = [(tmp_path / f"{name}-v{n}.jsonl").read_text().splitlines() for n in range(3)]
        areas.append([json.dumps(json.loads(line)["areas"]) for file in lines for line in file])
    assert areas[0] == areas[1] and len(areas[0]) == 36


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give either a SOURCE or --sources"),
        (["0", "--sources", "c.toml"], "give either a SOURCE or --sources"),
        (["0", "--batch-wait-ms", "5"], "are for --sources, many cameras"),
        (["--sources", "c.toml", "--policy", "latest"], "--policy is for one SOURCE"),
        (["--sources", "c.toml", "--audio"], "--audio is for one SOURCE"),
        (["--sources", "c.toml", "--shadow", "new.xml"], "--shadow is for one SOURCE"),
        (["--sources", "c.toml", "--collect", "field"], "--collect is for one SOURCE"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], told: str) -> None:
    from typer.testing import CliRunner

    from tsss_edge.cli import app

    result = CliRunner().invoke(app, ["stream", "e.xml", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and told in result.output


def test_batching_needs_an_engine_of_a_free_batch(tmp_path: Path) -> None:
    from tsss_edge.errors import ArtifactError
    from tsss_edge.stream.opening import open_engine

    engine = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("cpu"), tmp_path / "t", precision="fp32")
    with pytest.raises(
        ArtifactError, match="takes 1 picture at a time; --batch-wait-ms needs an engine of a free batch"
    ):
        open_engine(engine.path, live=False, threads=None, batch_wait_ms=5)
