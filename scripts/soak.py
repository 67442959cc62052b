"""Soak test of the live side: a 30 fps source on a slowed engine, or an RTSP server killed again and again -> JSON.

python scripts/soak.py --seconds 120                 frame age, memory, drops on a slowed fake engine, page open
python scripts/soak.py --restarts 20                 RTSP server killed and restarted (needs GStreamer's RTSP server)

Exits with 1 when a frame was older than 2 engine times (plus one frame time), memory grew by more than 1 MiB a minute,
or a frame is not accounted for.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.stream.frames import Frame, Result
from tsss_edge.stream.sinks import open_sinks
from tsss_edge.stream.sources import LiveSource, Retry, open_source
from tsss_edge.stream.sources.live import FilePlayer
from tsss_edge.stream.sources.synthetic import SyntheticSource
from tsss_edge.stream.web import open_web

CLASSES = Classes(names=("background", *(f"class {i}" for i in range(1, 21))))
SERVER = Path(__file__).parents[1] / "tests/stream/rtsp_server.py"


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def slope_per_minute(times: list[float], values: list[float]) -> float:
    """Least-squares slope over the second half: the first half fills caches."""
    half = len(times) // 2
    if len(times) - half < 2:
        return 0.0
    return float(np.polyfit(times[half:], values[half:], 1)[0] * 60)


class Viewer:
    """A browser's stand-in: reads the MJPEG of the page as fast as it comes."""

    def __init__(self, url: str) -> None:
        self.bytes = 0
        self._url = f"{url}video.mjpg"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.stream("GET", self._url, timeout=60) as answer:
            for chunk in answer.iter_raw():
                self.bytes += len(chunk)
                if self._stop.is_set():
                    return

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=60)


class Bars:
    """A scene that costs next to nothing, so that the source really keeps its rate: grey bars that wander."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        ramp = np.arange(4 * size_hw[1], dtype=np.int64) // 8 % 2 * 120 + 60
        self._wide = np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (size_hw[0], ramp.size, 3)), np.uint8)
        self._truth = np.zeros(size_hw, np.uint8)

    def frame(self, scene: int, t: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        shift = (scene + int(t * 60)) % (self._wide.shape[1] - self._truth.shape[1])
        return self._wide[:, shift : shift + self._truth.shape[1]], self._truth


def process(backend: FakeBackend, frame: Frame) -> Result:
    """What the loop does with a frame, without its overlap: network input, network, labels at frame size."""
    started = time.monotonic()
    height, width = backend.preprocess.size_hw
    images = np.asarray(cv2.resize(frame.image, (width, height)), np.uint8)[None]
    labels = backend.infer(images)["labels"][0]
    size = (frame.image.shape[1], frame.image.shape[0])
    labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    now = time.monotonic()
    return Result(frame, labels, None, None, {"engine": (now - started) * 1000}, (now - frame.captured) * 1000)


def soak_live(seconds: float, engine_ms: float, fps: float, size: str) -> dict[str, Any]:
    backend = FakeBackend(CLASSES, Preprocess(size_hw=(256, 256)), head="labels", latency_ms=engine_ms)
    width, height = (int(side) for side in size.split("x"))
    scenes = SyntheticSource(Bars((height, width)).frame, size_hw=(height, width), fps=fps, frames=0)
    source = LiveSource(lambda: FilePlayer(scenes), name="bars")
    ages: list[float] = []
    engine_times: list[float] = []
    times: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        sinks = open_sinks([f"{folder}/log.jsonl"], fps=fps, size_hw=source.size_hw, classes=CLASSES)
        web = open_web("0", classes=CLASSES, source=source)
        viewer = Viewer(web.url)
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            frame = source.read()
            assert frame is not None
            result = process(backend, frame)
            for sink in (*sinks, web):
                sink.write(result)
            ages.append(result.age_ms)
            engine_times.append(result.stages_ms["engine"])
            if not times or elapsed - times[-1] >= 1.0:
                gc.collect()
                times.append(elapsed)
                memory.append(resident_mib())
        source.close()
        viewer.close()
        for sink in (*sinks, web):
            sink.close()
        lines = Path(folder, "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    taken, dropped = len(ages), source.dropped
    engine_p50 = float(np.median(engine_times))
    limit = 2 * engine_p50 + 1000 / fps
    arrived = source._index  # what the reader thread counted, apart from both sides of the sum below
    report = {
        "seconds": seconds, "source_fps": fps, "arrived": arrived, "arrived_fps": arrived / seconds, "engine_ms": engine_p50,
        "masks": taken, "dropped": dropped, "dropped_in_log": last["dropped"], "log_lines": len(lines),
        "age_ms": {name: float(np.percentile(ages[5:], q)) for name, q in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100))},
        "age_limit_ms": limit,
        "memory_mib": {"start": memory[0], "middle": memory[len(memory) // 2], "end": memory[-1]},
        "memory_slope_mib_per_minute": slope_per_minute(times, memory),
        "viewer_bytes": viewer.bytes,
    }  # fmt: skip
    report["passed"] = {
        "age": report["age_ms"]["p99"] <= limit,
        "memory": seconds < 30 or report["memory_slope_mib_per_minute"] <= 1.0,
        "drops": 0 <= arrived - taken - dropped <= 1
        and len(lines) == taken
        and last["dropped"] == last["frame"] + 1 - taken,
    }
    return report


def soak_restarts(restarts: int) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    draw = random.Random(0)
    colours = [
        f"{draw.choice((16, 112, 208)):02x}{draw.choice((16, 112, 208)):02x}{n % 2 * 192 + 16:02x}"
        for n in range(restarts + 1)
    ]
    server = start_server(port, colours[0])
    retry = Retry(first_s=0.05, longest_s=0.5, attempts=100)
    source = open_source(f"rtsp://127.0.0.1:{port}/cam", retry=retry)
    assert isinstance(source, LiveSource)
    memory, back_s, frames, wrong = [], [], 0, 0
    threads = threading.active_count()
    try:
        for colour in [*colours[1:], None]:
            for _ in range(25):
                frame = source.read()
                assert frame is not None
                frames += 1
                wrong += not any(off_by(frame, c) < 40 for c in colours)
            memory.append(resident_mib())
            if colour is None:
                break
            server.kill()
            server.wait()
            server = start_server(port, colour)
            started = time.monotonic()
            while (frame := source.read()) is not None and off_by(frame, colour) >= 40:
                frames += 1
                wrong += not any(off_by(frame, c) < 40 for c in colours)
            back_s.append(time.monotonic() - started)
    finally:
        source.close()
        server.kill()
        server.wait()
    report = {
        "restarts": restarts, "reconnects": source.reconnects, "frames_checked": frames, "frames_no_camera_sent": wrong,
        "back_s": {"p50": float(np.median(back_s)), "max": max(back_s)},
        "memory_mib": [round(m, 1) for m in memory], "threads": [threads, threading.active_count() + 1],
    }  # fmt: skip
    report["passed"] = {
        "came_back": source.reconnects == restarts,
        "frames": wrong == 0,
        "memory": memory[-1] - memory[len(memory) // 2] < 8.0,
        "threads": report["threads"][0] == report["threads"][1],
    }
    return report


def start_server(port: int, colour: str) -> subprocess.Popen[bytes]:
    command = ["/usr/bin/python3", str(SERVER), str(port), colour, "320x240"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n", "no RTSP server here"
    server.stdout.close()
    return server


def off_by(frame: Frame, colour: str) -> float:
    """Largest distance of any value of the frame from `colour`."""
    expected = np.array([int(colour[i : i + 2], 16) for i in (4, 2, 0)], np.int16)  # BGR
    return float(np.abs(frame.image.astype(np.int16) - expected).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--engine-ms", type=float, default=100.0, help="time of the fake engine")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--restarts", type=int, default=0, help="instead: restart an RTSP server so many times")
    args = parser.parse_args()
    live = (args.seconds, args.engine_ms, args.fps, args.size)
    report = soak_restarts(args.restarts) if args.restarts else soak_live(*live)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if all(report["passed"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
