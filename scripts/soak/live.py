"""Soak test of the live side: a 30 fps source on a slowed engine, or an RTSP server killed again and again -> JSON.

python -m soak.live --seconds 120              frame age, memory, drops on a slowed fake engine, page open
python -m soak.live --seconds 3600 --engine E  the same on a real engine, from frames of its input size
python -m soak.live --restarts 20              RTSP server killed and restarted (needs GStreamer's RTSP server)

Exits with 1 when more than 1% of the masks were older than 2 engine times, memory grew by more than 1 MiB a minute, or a
frame is not accounted for. Masks within a second of a stop of the whole process (suspend, SIGSTOP) are left out and counted.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from soak.world import told
from tsss_edge.artifacts import Classes, Preprocess
from tsss_edge.backends import AsyncBackend
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.opening import open_engine
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sinks import open_sinks
from tsss_edge.stream.sources import LiveSource, Retry, open_source
from tsss_edge.stream.sources.player import FilePlayer
from tsss_edge.stream.sources.recorded import SyntheticSource
from tsss_edge.stream.status import Status
from tsss_edge.stream.web import open_web

CLASSES = Classes(names=("background", *(f"class {i}" for i in range(1, 21))))
SERVER = Path(__file__).parents[2] / "tests/stream/rtsp_server.py"


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def slope_per_minute(
    times: Sequence[float] | NDArray[np.float64], values: Sequence[float] | NDArray[np.float64]
) -> float:
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
        with httpx.stream("GET", self._url, timeout=None) as answer:
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


class Stops:
    """Notices when the whole process was stopped (suspend, SIGSTOP): a thread that only sleeps then oversleeps."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []  # of time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(0.05):
            now = time.monotonic()
            if now - before > 1.0:
                self.spans.append((before, now))
            before = now

    def near(self, moment: float) -> bool:
        """Within a stop, or a second after it."""
        return any(start <= moment <= end + 1.0 for start, end in self.spans)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


class Probe:
    """A sink that notes age, network time and this process's memory, the latter once a second; its own does not grow.

    Args: frames: that the source has.
    """

    wants_overlay = False

    def __init__(self, frames: int) -> None:
        self._seen = np.full((3, frames), np.nan)
        self._samples = np.full((2, frames), np.nan)
        self._count = self._sampled = 0
        self._started = time.monotonic()

    def write(self, result: FrameResult) -> None:
        now = time.monotonic()
        self._seen[:, self._count] = result.age_ms, now, result.stages_ms["network"]
        self._count += 1
        if not self._sampled or now - self._started - self.times[-1] >= 1.0:
            self._samples[:, self._sampled] = now - self._started, resident_mib()
            self._sampled += 1

    @property
    def ages(self) -> NDArray[np.float64]:
        """Milliseconds of each frame."""
        return self._seen[0, : self._count]

    @property
    def at(self) -> NDArray[np.float64]:
        """time.monotonic() of each age."""
        return self._seen[1, : self._count]

    @property
    def network(self) -> NDArray[np.float64]:
        """Milliseconds of each frame in the engine."""
        return self._seen[2, : self._count]

    @property
    def times(self) -> NDArray[np.float64]:
        """Seconds since the start, of each sample of the memory."""
        return self._samples[0, : self._sampled]

    @property
    def memory(self) -> NDArray[np.float64]:
        """MiB, at `times`."""
        return self._samples[1, : self._sampled]

    def close(self) -> None:
        """Nothing."""


def soak_live(
    seconds: float, engine_ms: float, fps: float, size: str, engine: Path | None = None, *, viewer: bool = True
) -> dict[str, Any]:
    backend: AsyncBackend = FakeBackend(CLASSES, Preprocess(size_hw=(256, 256)), latency_ms=engine_ms)
    if engine is not None:
        backend = open_engine(engine, live=True, threads=1)
    width, height = (int(side) for side in size.split("x"))
    frames = round(seconds * fps)
    scenes = SyntheticSource(Bars((height, width)).frame, size_hw=(height, width), fps=fps, frames=frames)
    source = LiveSource(lambda: FilePlayer(scenes), name="bars")
    probe, recorder, stops = Probe(frames), Recorder(), Stops()
    with tempfile.TemporaryDirectory() as folder:
        (log,) = open_sinks([f"{folder}/log.jsonl"], fps=fps, size_hw=source.size_hw, classes=backend.classes)
        web = open_web("0", classes=backend.classes, recorder=recorder, source=source)
        looks = Viewer(web.url) if viewer else None
        run(source, backend, [log, web, probe], recorder)
        page = web.live.status()
        web.close()  # a viewer that waits for the next picture goes away with the page
        if looks is not None:
            looks.close()
        log.close()
        stops.close()
        lines = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return live_report(seconds, source, probe, stops, recorder, lines, page) | {
        "viewer_bytes": looks.bytes if looks else None
    }


def live_report(
    seconds: float,
    source: LiveSource,
    probe: Probe,
    stops: Stops,
    recorder: Recorder,
    lines: list[dict[str, Any]],
    page: Status,
) -> dict[str, Any]:
    engine_ms = float(np.median(probe.network))
    ages = [age for age, at in zip(probe.ages, probe.at, strict=True) if not stops.near(at)]
    masks, late = recorder.frames, source.arrived - source.missed - 1 - lines[-1]["frame"]
    slope = slope_per_minute(probe.times, probe.memory)
    grown = 100 * slope * 60 / float(probe.memory[-1])
    percents = (("p50", 50), ("p95", 95), ("p99", 99), ("p99.9", 99.9), ("max", 100))
    return {
        "seconds": seconds,
        "engine_ms": engine_ms,
        "arrived": source.arrived,  # those included that the player was too late for
        "masks": masks,
        "dropped": recorder.dropped,
        "after_last_mask": late,
        "stopped_s": [round(end - start, 1) for start, end in stops.spans],
        "masks_around_stops": masks - len(ages),
        "cpu_seconds": round(time.process_time(), 1),
        "age_ms": {name: float(np.percentile(ages, q)) for name, q in percents},
        "age_limit_ms": 2 * engine_ms,
        "older_than_limit": int(sum(age > 2 * engine_ms for age in ages)),
        "memory_mib": {
            "start": float(probe.memory[0]),
            "middle": float(probe.memory[len(probe.memory) // 2]),
            "end": float(probe.memory[-1]),
        },
        "memory_slope_mib_per_minute": slope,
        "memory_slope_percent_per_hour": round(grown, 3),
        "passed": {
            "age": float(np.percentile(ages, 99)) <= 2 * engine_ms,
            "memory": seconds < 30 or slope <= 1.0,
            "drops": source.arrived == masks + recorder.dropped + late
            and source.dropped == recorder.dropped + late
            and len(lines) == masks == page.frames
            and lines[-1]["dropped"] == recorder.dropped == page.dropped
            and sorted({line["frame"] for line in lines}) == [line["frame"] for line in lines],
        },
    }


class Restarter:
    """A sink that kills the server after 25 frames of its colour and starts another with the next colour."""

    wants_overlay = False

    def __init__(self, port: int, colours: list[str]) -> None:
        self.frames = self.wrong = self._seen = 0
        self.memory: list[float] = []
        self.back_s: list[float] = []
        self._port, self._colours, self._at = port, colours, 0
        self._restarted = 0.0
        self.server = start_server(port, colours[0])

    def write(self, result: FrameResult) -> None:
        self.frames += 1
        self.wrong += all(off_by(result.frame, colour) >= 40 for colour in self._colours)
        if off_by(result.frame, self._colours[self._at]) >= 40:
            return  # still a picture of the server before
        self._seen += 1
        if self._seen == 1 and self._at:
            self.back_s.append(time.monotonic() - self._restarted)
        if self._seen == 25:
            self.memory.append(resident_mib())
            self._restart()

    def _restart(self) -> None:
        if self._at == len(self._colours) - 1:
            raise KeyboardInterrupt  # ends the stream, as closing its window would
        self.close()
        self._at, self._seen = self._at + 1, 0
        self.server = start_server(self._port, self._colours[self._at])
        self._restarted = time.monotonic()

    def close(self) -> None:
        self.server.kill()
        self.server.wait()


def soak_restarts(restarts: int) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    restarter, recorder = Restarter(port, different_colours(restarts + 1)), Recorder()
    threads = threading.active_count()
    try:
        retry = Retry(first_s=0.05, longest_s=0.5, attempts=100)
        source = open_source(f"rtsp://127.0.0.1:{port}/cam", retry=retry)
        assert isinstance(source, LiveSource)
        run(source, FakeBackend(CLASSES, Preprocess(size_hw=(256, 256)), latency_ms=10), [restarter], recorder)
    finally:
        restarter.close()
    memory = restarter.memory
    return {
        "restarts": restarts,
        "reconnects": source.reconnects,
        "masks": recorder.frames,
        "dropped": recorder.dropped,
        "frames_no_camera_sent": restarter.wrong,
        "back_s": {"p50": float(np.median(restarter.back_s)), "max": max(restarter.back_s)},
        "memory_mib": [round(m, 1) for m in memory],
        "threads": [threads, threading.active_count()],
        "passed": {
            "came_back": source.reconnects >= restarts == len(restarter.back_s),
            "frames": restarter.wrong == 0,
            "memory": memory[-1] - memory[len(memory) // 2] < 8.0,
            "threads": threads == threading.active_count(),
        },
    }


def different_colours(count: int) -> list[str]:
    """RRGGBB, each far from its neighbour in the list."""
    draw = random.Random(0)
    levels = (16, 112, 208)
    return [f"{draw.choice(levels):02x}{draw.choice(levels):02x}{n % 2 * 192 + 16:02x}" for n in range(count)]


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
    parser.add_argument("--engine", type=Path, help="a real engine instead of the fake one")
    parser.add_argument("--engine-ms", type=float, default=100.0, help="time of the fake engine")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--no-viewer", action="store_true", help="nobody looks at the page")
    parser.add_argument("--restarts", type=int, default=0, help="instead: restart an RTSP server so many times")
    args = parser.parse_args()
    live = (args.seconds, args.engine_ms, args.fps, args.size, args.engine)
    viewer = not args.no_viewer
    report = soak_restarts(args.restarts) if args.restarts else soak_live(*live, viewer=viewer)
    return told(report, all(report["passed"].values()))


if __name__ == "__main__":
    sys.exit(main())
