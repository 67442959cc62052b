"""Hardware decoders behind stand-ins: which is chosen and why, GStreamer's own parser on our pipelines, PyNvVideoCodec by its API."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from test_planes import video

from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.stream.av_reader import VideoReader
from tsss_edge.stream.encoders import HARDWARE, encoder_opens, h264_encoder
from tsss_edge.stream.sources import capture, hardware
from tsss_edge.stream.sources.capture import Nv12Capture, csi_pipeline
from tsss_edge.stream.sources.hardware import (
    DecoderChoice,
    decoder_for,
    decoder_here,
    jetson_pipeline,
    open_reader,
)
from tsss_edge.stream.uris import parse_source

NVDEC = DecoderChoice("nvdec", "NVDEC, by PyNvVideoCodec")
JETSON = DecoderChoice("jetson", "a Jetson's decoder, by GStreamer (nvv4l2decoder)")
SYSTEM_PYTHON = "/usr/bin/python3"  # has GStreamer's bindings where python3-gi is installed


@pytest.fixture
def h264(tmp_path: Path) -> Path:
    """Eight frames of H.264 in MP4."""
    with av.open(str(video(tmp_path / "a.mkv"))) as source, av.open(str(tmp_path / "a.mp4"), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"crf": "5", "profile": "baseline"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for n, frame in enumerate(source.decode(video=0)):
            frame.pts, frame.time_base = n, Fraction(1, 25)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return tmp_path / "a.mp4"


def planes(path: Path) -> list[Yuv]:
    reader, found = VideoReader(str(path)), []
    while (picture := reader.read()) is not None:
        assert isinstance(picture, Yuv)
        found.append(picture)
    return found


def as_nv12(picture: Yuv) -> np.ndarray:
    """(3H/2, W), as decoders give it."""
    out = Yuv.empty(picture.frame_hw, picture.colour, pairs=True)
    picture.copy_to(out)
    return out.owner.reshape(-1, picture.frame_hw[1])


# ---------------------------------------------------------------------------------------------------------------------
# The choice


@pytest.mark.parametrize(
    ("jetson", "gstreamer", "driver", "module", "way", "words"),
    [
        (False, False, "no driver", False, "cpu", "no CUDA GPU"),
        (False, False, "", False, "cpu", "pip install PyNvVideoCodec"),
        (False, False, "", True, "nvdec", "NVDEC"),
        (True, False, "", True, "cpu", "no GStreamer"),
        (True, True, "", False, "jetson", "nvv4l2decoder"),
    ],
)
def test_the_decoder_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, jetson: bool, gstreamer: bool, driver: str, module: bool, way: str, words: str
) -> None:
    monkeypatch.setattr(hardware, "is_jetson", lambda: jetson)
    monkeypatch.setattr(hardware, "has_gstreamer", lambda: gstreamer)
    monkeypatch.setattr(hardware, "driver_problem", lambda: driver)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if module else None)
    choice = decoder_here()
    assert choice.way == way and words in choice.why


def test_files_that_hardware_does_not_take_go_to_the_cpu(tmp_path: Path, h264: Path) -> None:
    assert decoder_for(VideoReader(str(h264)), str(h264), NVDEC) == NVDEC
    assert decoder_for(VideoReader(str(h264)), str(h264), DecoderChoice("cpu", "x")) == DecoderChoice("cpu", "x")
    ffv1 = video(tmp_path / "b.mkv")
    assert decoder_for(VideoReader(str(ffv1)), str(ffv1), NVDEC).way == "cpu"
    deep = video(tmp_path / "c.mkv", pixels="yuv420p10le")
    assert "10 bits" in decoder_for(VideoReader(str(deep)), str(deep), JETSON).why
    other = h264.rename(tmp_path / "a.ts")
    assert "no demuxer for .ts" in decoder_for(VideoReader(str(other)), str(other), JETSON).why


# ---------------------------------------------------------------------------------------------------------------------
# PyNvVideoCodec: CreateDemuxer, CreateDecoder, Decode and DLPack frames, as its programming guide records them


class FakeFrame:
    """A frame in the decoder's own memory, which is written again for the next one."""

    def __init__(self, data: np.ndarray) -> None:
        self._data = data

    def __dlpack__(self, **options: Any) -> Any:
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()


def fake_codec(frames: list[Yuv], calls: list[Any], *, fails: str = "") -> ModuleType:
    memory = np.zeros_like(as_nv12(frames[0]))

    def create_decoder(**options: Any) -> Any:
        calls.append(options)
        if fails:
            raise RuntimeError(fails)

        def decode(packet: int) -> Iterator[FakeFrame]:
            memory[...] = as_nv12(frames[packet])
            return iter([FakeFrame(memory)])

        return SimpleNamespace(Decode=decode)

    class Demuxer:
        def __init__(self, filename: str) -> None:
            calls.append(filename)

        def GetNvCodecId(self) -> int:
            return 4

        def __iter__(self) -> Iterator[int]:
            return iter(range(len(frames)))

    module = ModuleType("PyNvVideoCodec")
    module.__dict__.update(CreateDemuxer=Demuxer, CreateDecoder=create_decoder)
    return module


def test_nvdec_gives_every_frame_of_the_file(monkeypatch: pytest.MonkeyPatch, h264: Path) -> None:
    frames, calls = planes(h264), list[Any]()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", fake_codec(frames, calls))
    reader, seen = open_reader(str(h264), name="a", threads=1, here=NVDEC), list[Yuv]()
    while (picture := reader.read()) is not None:
        assert isinstance(picture, Yuv) and picture.pairs
        assert reader.time_s == pytest.approx(len(seen) / 25)
        seen.append(picture)
    reader.require_whole()
    reader.close()
    reader.close()
    assert calls == [str(h264), {"gpuid": 0, "codec": 4, "cudacontext": 0, "cudastream": 0, "usedevicememory": False}]
    for got, want in zip(seen, frames, strict=True):
        for one, other in ((got.y, want.y), (got.u, want.u), (got.v, want.v)):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("fails", ["no NVDEC session is free", ""])
def test_where_nvdec_does_not_start_the_cpu_decodes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, h264: Path, fails: str
) -> None:
    frames = planes(h264)
    other = [Yuv.empty((32, 32), Colour())]  # a decoder that gives another size is not believed either
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", fake_codec(frames if fails else other, [], fails=fails))
    with caplog.at_level(logging.WARNING, "tsss_edge"):
        reader = open_reader(str(h264), name="a", threads=1, here=NVDEC)
    assert isinstance(reader, VideoReader)
    assert "decoded by FFmpeg on the CPU" in caplog.text and (fails or "frames of (32, 32)") in caplog.text
    first = reader.read()
    assert isinstance(first, Yuv)
    np.testing.assert_array_equal(first.y, frames[0].y)


# ---------------------------------------------------------------------------------------------------------------------
# GStreamer


class FakeCapture:
    """OpenCV's capture of a pipeline that ends in NV12."""

    def __init__(self, frames: list[Yuv], *, opens: bool = True) -> None:
        self._frames, self._opens, self._at, self.released = frames, opens, -1, 0

    def isOpened(self) -> bool:
        return self._opens

    def get(self, key: int) -> float:
        return 25.0

    def grab(self) -> bool:
        self._at += 1
        return self._at < len(self._frames)

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, as_nv12(self._frames[self._at])

    def read(self) -> tuple[bool, np.ndarray | None]:
        return self.retrieve() if self.grab() else (False, None)

    def release(self) -> None:
        self.released += 1


def test_a_jetsons_decoder_gives_every_frame(monkeypatch: pytest.MonkeyPatch, h264: Path) -> None:
    frames, asked = planes(h264), list[Any]()
    fake = FakeCapture(frames)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: asked.append(arguments) or fake)
    reader, count = open_reader(str(h264), name="a", threads=1, here=JETSON), 0
    while (picture := reader.read()) is not None:
        assert isinstance(picture, Yuv)
        np.testing.assert_array_equal(picture.v, frames[count].v)
        count += 1
    reader.close()
    assert count == 8 and fake.released == 1
    assert asked == [(jetson_pipeline(str(h264), "h264"), cv2.CAP_GSTREAMER)]


def test_a_csi_camera_gives_planes(h264: Path) -> None:
    frames = planes(h264)
    shot = Nv12Capture(FakeCapture(frames)).read()  # type: ignore[arg-type]
    assert shot is not None and isinstance(shot.picture, Yuv) and shot.picture.pairs
    np.testing.assert_array_equal(shot.picture.y, frames[0].y)
    np.testing.assert_array_equal(Yuv.nv12(as_nv12(frames[1]), Colour()).u, frames[1].u)


def in_software(pipeline: str) -> str:
    """The same pipeline with software elements in the hardware's place."""
    stand_ins = (
        (r"nvarguscamerasrc sensor-id=\d+", "videotestsrc num-buffers=3"),
        (r"\(memory:NVMM\)", ""),
        (r"nvvidconv( flip-method=\d)?", "videoconvert"),
        ("nvv4l2decoder", "openh264dec"),
    )
    for hard, soft in stand_ins:
        pipeline = re.sub(hard, soft, pipeline)
    return pipeline


PLAYER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import Gst, GstApp
Gst.init(None)
missing = [name for name in ("videotestsrc", "videoconvert", "openh264dec", "qtdemux", "h264parse", "appsink")
           if Gst.ElementFactory.find(name) is None]
if missing:
    print("missing", *missing)
    sys.exit()
pipeline = Gst.parse_launch(sys.argv[1] + " name=end")
end = pipeline.get_by_name("end")
pipeline.set_state(Gst.State.PLAYING)
count = 0
while (sample := end.emit("try-pull-sample", 20 * Gst.SECOND)) is not None:
    caps = sample.get_caps().get_structure(0)
    print(caps.get_value("format"), caps.get_value("width"), caps.get_value("height"), sample.get_buffer().get_size())
    count += 1
if (message := pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)) is not None:
    sys.exit(message.parse_error().gerror.message)
pipeline.set_state(Gst.State.NULL)
"""


def played(pipeline: str) -> list[str]:
    """Format and size of each frame that the pipeline gives."""
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"no {SYSTEM_PYTHON}")
    command = [SYSTEM_PYTHON, "-c", PLAYER, pipeline]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={"PATH": "/usr/bin"})
    if "No module named 'gi'" in done.stderr or "Namespace Gst" in done.stderr or done.stdout.startswith("missing"):
        pytest.skip(f"no GStreamer to parse with: {(done.stdout or done.stderr).strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_gstreamer_takes_the_pipeline_of_a_file(h264: Path) -> None:
    """Parsed and played by GStreamer itself: every frame, NV12."""
    place = h264.rename(h264.with_name('a "b".mp4'))
    assert played(in_software(jetson_pipeline(str(place), "h264"))) == ["NV12 64 48 4608"] * 8


def test_gstreamer_takes_the_pipeline_of_a_camera() -> None:
    text = csi_pipeline(parse_source("csi://0?size=640x480&fps=15"))
    assert "videoconvert" not in text and "NVMM" in text, "nothing is converted on the CPU"
    frames = played(in_software(text))
    assert frames and set(frames) == {"NV12 640 480 460800"}


# ---------------------------------------------------------------------------------------------------------------------
# Encoders


def test_the_encoder_that_opens_is_taken() -> None:
    assert h264_encoder("auto", opens=lambda codec: codec == "h264_v4l2m2m").codec == "h264_v4l2m2m"
    nvenc = h264_encoder("hardware", opens=lambda codec: True)
    assert (nvenc.codec, nvenc.options) == ("h264_nvenc", HARDWARE["h264_nvenc"])
    soft = h264_encoder("auto", opens=lambda codec: False)
    assert soft.options["preset"] == "ultrafast" and "no hardware encoder" in soft.why
    assert h264_encoder("veryfast", opens=lambda codec: True).options["preset"] == "veryfast"


def test_doctor_tells_the_same_as_the_loop() -> None:
    from tsss_edge.doctor.checks import video_checks

    (check,) = video_checks()
    assert decoder_here().why in check.found and h264_encoder().why in check.found
    assert capture.is_jetson(Path("/nowhere")) is False


def test_which_encoders_open() -> None:
    assert encoder_opens("mpeg4")  # FFmpeg's own, in every build
    assert not encoder_opens("no-such-encoder")
