"""Sources that die -> the stream comes back (a camera) or ends in order (a file), and every frame that it gave was whole.

python -m soak.sources --deaths 100 --seed 1

A tenth of the deaths are of an RTSP server (where GStreamer's is installed), the others by turns of an MJPEG server by HTTP that cuts its
connection within a frame, and of a video file that ends at a random byte.
"""

from __future__ import annotations

import argparse
import http.server
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from soak.live import resident_mib, soak_restarts
from soak.world import told
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Source
from tsss_edge.stream.sources import LiveSource, Retry, open_source

GREYS = (40, 120, 200)
SIZE = (64, 48)
SOON = Retry(first_s=0.02, longest_s=0.2, attempts=200)


class Dying(http.server.BaseHTTPRequestHandler):
    """Sends `frames` grey JPEGs, then half of one, and hangs up."""

    frames = 5
    connections = 0

    def do_GET(self) -> None:  # the name that http.server calls
        cls = type(self)
        cls.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
        self.end_headers()
        grey = np.full((SIZE[1], SIZE[0], 3), GREYS[cls.connections % len(GREYS)], np.uint8)
        jpeg = cv2.imencode(".jpg", grey)[1].tobytes()
        head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
        try:
            for _ in range(cls.frames):
                self.wfile.write(head + jpeg + b"\r\n")
                time.sleep(0.01)
            self.wfile.write(head + jpeg[: len(jpeg) // 2])
        except OSError:
            return  # the client was faster

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def grey_frames(source: Source) -> Iterator[bool]:
    """Of each frame, whether it is evenly grey, as all that were sent."""
    while (frame := source.read()) is not None:
        image = frame.image.astype(np.int16)
        yield min(float(np.abs(image - grey).max()) for grey in GREYS) < 12


def http_deaths(deaths: int, draw: random.Random) -> dict[str, Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = open_source(f"http://127.0.0.1:{server.server_address[1]}/cam", retry=SOON)
    assert isinstance(source, LiveSource)
    frames = broken = 0
    memory = [resident_mib()]
    try:
        for whole in grey_frames(source):
            frames, broken = frames + 1, broken + (not whole)
            Dying.frames = draw.randrange(3, 9)
            memory.append(resident_mib())
            if source.reconnects >= deaths:
                break
    finally:
        source.close()
        server.shutdown()
    grown = memory[-1] - memory[len(memory) // 2]
    return {
        "deaths": source.reconnects, "frames": frames, "broken_frames": broken, "grown_mib": round(grown, 2),
        "passed": source.reconnects >= deaths and broken == 0 and grown < 8,
    }  # fmt: skip


def file_deaths(deaths: int, draw: random.Random) -> dict[str, Any]:
    ended = refused = broken = 0
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole.mkv", Path(folder) / "cut.mkv"
        with av.open(str(whole), "w") as container:
            stream: Any = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuvj420p"
            for n in range(20):
                grey = np.full((SIZE[1], SIZE[0], 3), GREYS[n % 3], np.uint8)
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(grey, format="bgr24").reformat(format="yuvj420p"))
                )
            container.mux(stream.encode(None))
        data = whole.read_bytes()
        for _ in range(deaths):
            cut.write_bytes(data[: draw.randrange(len(data))])
            try:
                source = open_source(str(cut))
                broken += sum(not whole_frame for whole_frame in list(grey_frames(source))[:-1])  # the last one is cut
                source.close()
                ended += 1
            except DataError:
                refused += 1
    passed = ended + refused == deaths and broken == 0
    return {"deaths": deaths, "ended": ended, "refused": refused, "broken_frames": broken, "passed": passed}


def has_rtsp() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0')"
    return subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, check=False).returncode == 0


def soak_sources(deaths: int, seed: int) -> dict[str, Any]:
    draw, began = random.Random(seed), time.monotonic()
    rtsp = deaths // 10 if has_rtsp() else 0
    by_http = (deaths - rtsp) // 2
    report: dict[str, Any] = {"seed": seed, "deaths": deaths}
    report["http"] = http_deaths(by_http, draw)
    report["file"] = file_deaths(deaths - rtsp - by_http, draw)
    if rtsp:
        report["rtsp"] = soak_restarts(rtsp)
    kinds = [report[kind]["passed"] for kind in ("http", "file", "rtsp") if kind in report]
    report["passed"] = all(all(p.values()) if isinstance(p, dict) else p for p in kinds)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deaths", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    report = soak_sources(args.deaths, args.seed)
    return told(report, report["passed"])


if __name__ == "__main__":
    sys.exit(main())
