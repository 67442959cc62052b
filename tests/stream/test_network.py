"""Network cameras that die and come back: a real RTSP server and an MJPEG server, both on loopback only."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import waiting
from numpy.typing import NDArray
from streamkit import MakeVideo, gray_image

from tsss_edge.errors import DataError
from tsss_edge.stream import av_reader
from tsss_edge.stream.av_writer import VideoWriter
from tsss_edge.stream.frames import Frame, Source
from tsss_edge.stream.sources import Retry, capture, live_opener, open_source
from tsss_edge.stream.sources import rtsp as rtsp_source
from tsss_edge.stream.uris import parse_source

PATIENCE_S = 30.0
wait_for = partial(waiting.wait_for, patience_s=PATIENCE_S)
PYTHON = "/usr/bin/python3"
BACK_SOON = Retry(first_s=0.05, longest_s=0.2, attempts=150, stall_s=0.5)
COLOURS = {"c01010": (192, 16, 16), "10c010": (16, 192, 16), "1010c0": (16, 16, 192), "c0c010": (192, 192, 16)}


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        capture, "NETWORK_TIMEOUT_MS", 20_000
    )  # first openings are not tried again, and this machine may be slow


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def colour_of(frame: Frame) -> tuple[str, float]:
    """The nearest of COLOURS to the frame, and the largest distance of any pixel from it."""
    rgb: NDArray[np.int16] = frame.image[..., ::-1].astype(np.int16)
    name = min(COLOURS, key=lambda key: float(np.abs(rgb.mean((0, 1)) - COLOURS[key]).sum()))
    return name, float(np.abs(rgb - np.array(COLOURS[name])).max())


def read_until(source: Source, colour: str) -> int:
    """Read up to the first frame of `colour`; every frame before must be a whole one of some colour. Frames read."""
    deadline = time.monotonic() + PATIENCE_S
    for count in range(1, 10_000):
        frame = source.read()
        assert frame is not None
        name, error = colour_of(frame)
        assert error < 40, f"a frame that no camera sent: {name} but off by {error}"
        if name == colour:
            return count
        assert time.monotonic() < deadline, f"no {colour} frame"
    raise AssertionError("unreachable")


class RtspServer:
    """The server of rtsp_server.py as a process of its own, to be killed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.process: subprocess.Popen[str] | None = None

    def start(self, colour: str, size: str = "160x96", *more: str) -> None:
        script = Path(__file__).with_name("rtsp_server.py")
        command = [PYTHON, str(script), str(self._port), colour, size, *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def rtsp(port: int) -> Iterator[RtspServer]:
    test = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer, Gst; "
    test += "Gst.init(None); assert Gst.ElementFactory.find('x264enc')"
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", test], capture_output=True, check=False).returncode:
        pytest.skip(
            "no RTSP server (apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base "
            "gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly)"
        )
    server = RtspServer(port)
    yield server
    server.kill()


def test_rtsp_comes_back_after_every_restart_without_an_invented_frame(rtsp: RtspServer, port: int) -> None:
    colours = [*COLOURS]
    rtsp.start(colours[0])
    source = open_source(f"rtsp://127.0.0.1:{port}/cam", retry=BACK_SOON)
    threads = set(threading.enumerate())
    try:
        assert (source.live, source.size_hw) == (True, (96, 160))
        read_until(source, colours[0])
        for colour in colours[1:]:
            rtsp.kill()
            wait_for(lambda: source.state == "RECONNECTING")
            rtsp.start(colour)
            read_until(source, colour)
            wait_for(lambda: source.state == "STREAMING")
        assert source.reconnects == 3  # type: ignore[attr-defined]
        assert not set(threading.enumerate()) - threads
    finally:
        source.close()


def test_a_camera_that_never_answers_keeps_no_other_waiting(
    rtsp: RtspServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "NETWORK_TIMEOUT_MS", 60_000)
    rtsp.start(next(iter(COLOURS)))
    errors: list[DataError] = []

    def ask(silent: int) -> None:
        try:
            live_opener(parse_source(f"rtsp://127.0.0.1:{silent}/cam"))()
        except DataError as error:
            errors.append(error)

    with socket.create_server(("127.0.0.1", 0)) as server:
        waits = threading.Thread(target=ask, args=(server.getsockname()[1],))
        waits.start()
        connection, _ = server.accept()  # it asks, and nobody answers
        camera = live_opener(parse_source(f"rtsp://127.0.0.1:{port}/cam"))()
        assert camera.read() is not None and waits.is_alive()
        camera.release()
        connection.close()
    waits.join(PATIENCE_S)
    assert "cannot be opened (check the address" in str(errors[0])


def test_rtsp_with_another_size_after_a_restart(rtsp: RtspServer, port: int) -> None:
    first, second = [*COLOURS][:2]
    rtsp.start(first)
    source = open_source(f"rtsp://127.0.0.1:{port}/cam", retry=BACK_SOON)
    try:
        read_until(source, first)
        rtsp.kill()
        rtsp.start(second, "320x192")
        read_until(source, second)
        assert source.size_hw == (192, 320)
    finally:
        source.close()


def test_an_rtsp_server_that_hangs_is_stalled_then_left(
    rtsp: RtspServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "NETWORK_TIMEOUT_MS", 3000)
    first = next(iter(COLOURS))
    rtsp.start(first)
    source = open_source(f"rtsp://127.0.0.1:{port}/cam", retry=BACK_SOON)
    try:
        read_until(source, first)
        assert rtsp.process is not None
        rtsp.process.send_signal(signal.SIGSTOP)  # the connection stays, nothing comes
        wait_for(lambda: source.state == "STALLED")
        wait_for(lambda: source.state == "RECONNECTING")
        rtsp.process.send_signal(signal.SIGCONT)
        wait_for(lambda: source.state == "STREAMING")
    finally:
        source.close()


def test_a_damaged_packet_is_no_lost_camera(make_video: MakeVideo) -> None:
    """One is passed over; nothing but damaged ones is a lost camera."""

    class Packet:
        def __init__(self, whole: bool) -> None:
            self._whole = whole

        def decode(self) -> list[av.VideoFrame]:
            if not self._whole:
                raise av.error.InvalidDataError(1094995529, "Invalid data")
            return [av.VideoFrame.from_ndarray(gray_image(9), format="bgr24")]

    source = rtsp_source.RtspCapture(av.open(str(make_video())))
    source._packets = iter([Packet(True), Packet(False), Packet(True), *([Packet(False)] * 200)])  # type: ignore[assignment, list-item]
    assert source.read() is not None and source.read() is not None
    assert source.read() is None
    source.release()


def test_an_rtsp_server_that_stays_away(rtsp: RtspServer, port: int) -> None:
    first = next(iter(COLOURS))
    rtsp.start(first)
    source = open_source(f"rtsp://127.0.0.1:{port}/cam", retry=Retry(first_s=0.01, attempts=3))
    read_until(source, first)
    rtsp.kill()
    with pytest.raises(DataError, match=r"not back after 3 attempts .*cannot be opened"):
        while source.read() is not None:
            pass
    assert source.state == "FAILED"
    source.close()


def test_a_stream_is_sent_to_a_server_that_takes_it(rtsp: RtspServer, port: int, tmp_path: Path) -> None:
    """RTSP out: the frames arrive at a server that accepts RECORD while the stream runs. What is under way when the sender
    says goodbye is the server's to keep or drop."""
    taken = tmp_path / "taken.h264"
    rtsp.start("c01010", "160x96", str(taken))
    writer = VideoWriter(f"rtsp://127.0.0.1:{port}/record", kind="rtsp", fps=10, size_hw=(96, 160))
    for value in range(10, 210, 10):
        writer.write(np.full((96, 160, 3), value, np.uint8), None)
    grays: list[int] = []

    def nearly_all_there() -> bool:
        if taken.exists() and taken.stat().st_size:
            with av.open(str(taken)) as file:
                grays[:] = [round(float(frame.to_ndarray(format="gray").mean())) for frame in file.decode(video=0)]
        return len(grays) >= 15

    wait_for(nearly_all_there)
    writer.close()
    assert np.abs(np.array(grays) - np.arange(10, 10 + 10 * len(grays), 10)).max() < 6


class MjpegServer:
    """One colour after another as multipart JPEG, to one client at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, colour: str) -> None:
        self._stop.clear()
        image = np.empty((96, 160, 3), np.uint8)
        image[:] = COLOURS[colour][::-1]
        jpeg = cv2.imencode(".jpg", image)[1].tobytes()
        listener = socket.create_server(("127.0.0.1", self._port), reuse_port=False)
        listener.settimeout(0.05)
        self._thread = threading.Thread(target=self._serve, args=(listener, jpeg))
        self._thread.start()

    def _serve(self, listener: socket.socket, jpeg: bytes) -> None:
        part = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
        with listener:
            while not self._stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    self._talk(connection, part)

    def _talk(self, connection: socket.socket, part: bytes) -> None:
        try:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
            while not self._stop.wait(0.02):
                connection.sendall(part)
        except OSError:
            return  # the client went; the next one may come

    def kill(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
            self._thread = None


@pytest.fixture
def mjpeg(port: int) -> Iterator[MjpegServer]:
    server = MjpegServer(port)
    yield server
    server.kill()


def test_http_mjpeg_comes_back_after_every_restart(mjpeg: MjpegServer, port: int) -> None:
    colours = [*COLOURS]
    mjpeg.start(colours[0])
    source = open_source(f"http://127.0.0.1:{port}/video.mjpg", retry=BACK_SOON)
    try:
        read_until(source, colours[0])
        for colour in colours[1:]:
            mjpeg.kill()
            wait_for(lambda: source.state == "RECONNECTING")
            mjpeg.start(colour)
            read_until(source, colour)
        assert source.reconnects == 3  # type: ignore[attr-defined]
    finally:
        source.close()


def test_a_file_after_a_network_stream_still_has_its_last_frame(
    mjpeg: MjpegServer, port: int, make_video: MakeVideo
) -> None:
    mjpeg.start(next(iter(COLOURS)))
    open_source(f"http://127.0.0.1:{port}/video.mjpg").close()
    video = open_source(str(make_video(frames=10)))
    assert sum(1 for _ in iter(video.read, None)) == 10


def test_a_video_whose_server_goes_silent_ends_with_the_reason(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once waited for ever, and Ctrl-C with it."""
    monkeypatch.setattr(av_reader, "SERVER_S", 0.5)
    data = make_video("v.avi", frames=200).read_bytes()
    over = threading.Event()

    def answer(server: socket.socket) -> None:
        while not over.is_set():
            client, _ = server.accept()
            held.append(client)
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data[: len(data) // 2])

    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,), daemon=True)
        thread.start()
        with pytest.raises(DataError, match=r"the server has not answered for 0.5 s \(\d+ frames came before\)"):
            source = open_source(f"http://127.0.0.1:{server.getsockname()[1]}/v.avi")
            while source.read() is not None:
                pass
        over.set()
        socket.create_connection(server.getsockname()[:2]).close()  # wakes the thread
        thread.join(PATIENCE_S)
    for client in held:
        client.close()


def test_http_that_is_no_video(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DataError, match="cannot be opened"):
            open_source(f"http://127.0.0.1:{port}/video.mjpg")
        thread.join(PATIENCE_S)


def test_our_own_page_is_a_source(port: int) -> None:
    """What one machine shows, another may stream: the page's MJPEG through `http://`."""
    from tsss_edge.artifacts import Classes
    from tsss_edge.stream.frames import FrameResult
    from tsss_edge.stream.recorder import Recorder
    from tsss_edge.stream.web import open_web

    sink, stop = (
        open_web(str(port), classes=Classes(names=("background", "cat")), recorder=Recorder()),
        threading.Event(),
    )

    def produce() -> None:
        labels = np.zeros((96, 160), np.uint8)
        for n in range(100_000):
            sink.write(FrameResult(Frame(gray_image(120, (96, 160)), n, time.monotonic()), labels, None, None))
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        source = open_source(f"{sink.url}video.mjpg")
        frame = source.read()
        source.close()
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        sink.close()
    assert frame is not None and frame.image.shape == (96, 160, 3) and abs(float(frame.image.mean()) - 120) < 4
