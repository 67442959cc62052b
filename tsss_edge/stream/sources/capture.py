"""USB, CSI and HTTP cameras -> a `Capture`, through OpenCV (V4L2, GStreamer, FFmpeg)."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.stream.frames import Picture
from tsss_edge.stream.process import as_bgr, quiet
from tsss_edge.stream.sources.live import Shot
from tsss_edge.stream.uris import Uri

FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # OpenCV's only way to set them; it holds for the whole process
HTTP_OPTIONS = "fflags;nobuffer|flags;low_delay"  # ours, while an `http://` camera is opened
NETWORK_HINT = "check the address, and that the camera runs"
_OPENING = threading.Lock()  # the options belong to the process: no other camera may take them away in between
NETWORK_TIMEOUT_MS = 5000  # FFmpeg's own default is 30 s: too long for a live camera


class CvCapture:
    """A `Capture` over `cv2.VideoCapture`. The time stamp is taken before decoding where the driver allows it."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self.capture = capture
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps: float = fps if math.isfinite(fps) and 0 < fps <= 1000 else 0.0

    def read(self) -> Shot | None:
        if not self.capture.grab():
            return None
        captured = time.monotonic()
        ok, image = self.capture.retrieve()
        return Shot(self._picture(image), captured) if ok and image is not None else None

    def _picture(self, image: NDArray[Any]) -> Picture:
        return as_bgr(image)

    def release(self) -> None:
        self.capture.release()


class Nv12Capture(CvCapture):
    """A pipeline that ends in NV12, which OpenCV hands out as (3H/2, W). Its colours are read as BT.601, limited."""

    def _picture(self, image: NDArray[Any]) -> Picture:
        return Yuv.nv12(image, Colour())


def open_camera(uri: Uri) -> CvCapture:
    """`0`, `/dev/video0`, `v4l2:///dev/video0?size=1280x720&fps=30` -> an open camera.

    Raises: DataError: no such camera, or it is in use.
    """
    uri.allow("size", "fps")
    match = re.fullmatch(r"(?:/dev/video)?(\d{1,3})", uri.path)
    if match is None:
        raise DataError(f"{uri.shown}: expected a camera number or /dev/videoN")
    device = Path(f"/dev/video{match[1]}")
    if os.name == "posix" and Path("/dev").is_dir() and Path("/proc").is_dir() and not device.exists():
        have = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
        raise DataError(f"{device}: no such camera; this machine has {have}")
    with quiet():
        capture = cv2.VideoCapture(int(match[1]), cv2.CAP_ANY, _size_options(uri))
    return _opened(capture, uri, "in use by another program, or no permission (group `video`)")


def _size_options(uri: Uri) -> list[int]:
    """Settings of a USB camera: MJPG first, because uncompressed video does not fit USB 2 above 640x480."""
    size = uri.size_hw(None)
    options = []
    if size is not None:
        fourcc = cv2.VideoWriter.fourcc(*"MJPG")
        options += [cv2.CAP_PROP_FOURCC, fourcc, cv2.CAP_PROP_FRAME_WIDTH, size[1], cv2.CAP_PROP_FRAME_HEIGHT, size[0]]
    if "fps" in uri.query:
        options += [cv2.CAP_PROP_FPS, round(uri.number("fps", 30, minimum=1))]
    return options


def open_csi(uri: Uri) -> Nv12Capture:
    """`csi://0?size=1280x720&fps=30` -> a Jetson camera through GStreamer.

    Raises: UnavailableError: OpenCV was built without GStreamer. DataError: the pipeline does not start.
    """
    if not has_gstreamer():
        raise UnavailableError(
            f"{uri.shown}: this OpenCV has no GStreamer, which CSI cameras need; use the system's OpenCV "
            "(on Jetson `sudo apt install python3-opencv` and a venv with --system-site-packages)"
        )
    with quiet():
        capture = cv2.VideoCapture(csi_pipeline(uri), cv2.CAP_GSTREAMER)
    return Nv12Capture(_opened(capture, uri, "check with `nvgstcapture-1.0`").capture)


def csi_pipeline(uri: Uri) -> str:
    """The GStreamer pipeline of a CSI camera in NVMM memory, to NV12; nothing is converted on the CPU. The sink keeps one
    frame and drops older ones. Raises: DataError."""
    uri.allow("size", "fps", "flip")
    if not uri.path.isdecimal():
        raise DataError(f"{uri.shown}: expected csi://NUMBER")
    height, width = uri.size_hw((720, 1280)) or (720, 1280)
    fps = uri.whole("fps", 30, minimum=1)
    flip = uri.whole("flip", 0)
    return (
        f"nvarguscamerasrc sensor-id={uri.path} ! "
        f"video/x-raw(memory:NVMM), width={width}, height={height}, framerate={fps}/1, format=NV12 ! "
        f"nvvidconv flip-method={flip} ! video/x-raw, format=NV12 ! appsink drop=true max-buffers=1 sync=false"
    )


def open_network(uri: Uri) -> CvCapture:
    """`http://` (MJPEG) -> an open stream, without FFmpeg's input buffer.

    Raises: DataError: nobody answers, or it is no video.
    """
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, NETWORK_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, NETWORK_TIMEOUT_MS]
    with _OPENING, quiet(), _low_delay():
        capture = cv2.VideoCapture(uri.text, cv2.CAP_FFMPEG, timeouts)
    return _opened(capture, uri, NETWORK_HINT)


@contextmanager
def _low_delay() -> Iterator[None]:
    """Options for captures opened within the block, unless the user set some. Only there: a file would lose its last frame."""
    if FFMPEG_OPTIONS in os.environ:
        yield
        return
    os.environ[FFMPEG_OPTIONS] = HTTP_OPTIONS
    try:
        yield
    finally:
        del os.environ[FFMPEG_OPTIONS]


def _opened(capture: cv2.VideoCapture, uri: Uri, hint: str) -> CvCapture:
    if not capture.isOpened():
        capture.release()
        raise DataError(f"{uri.shown}: cannot be opened ({hint})")
    return CvCapture(capture)


def is_jetson(release: Path = Path("/etc/nv_tegra_release")) -> bool:
    """Whether this is a Jetson, by the file that its Linux brings."""
    return release.is_file()


@cache
def has_gstreamer() -> bool:
    """Whether this OpenCV was built with GStreamer."""
    return re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None
