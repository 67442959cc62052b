"""Video files decoded by the GPU's own decoder: NVDEC by PyNvVideoCodec, a Jetson's by GStreamer. Frames come as NV12 planes.

The decoder writes to the GPU's memory; the planes then come to the host once, for loop, sinks and checks alike (on a Jetson both are
one memory). What of it has run is told in docs/gpu.md: stand-ins only.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends.base import import_extra
from tsss_edge.backends.cuda.gpus import driver_problem
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.stream.av_reader import VideoReader
from tsss_edge.stream.frames import Picture
from tsss_edge.stream.process import quiet
from tsss_edge.stream.sources.capture import has_gstreamer, is_jetson

LOG = logging.getLogger("tsss_edge")

Way = Literal["cpu", "nvdec", "jetson"]
PARSERS = {"h264": "h264parse", "hevc": "h265parse"}  # GStreamer's, before nvv4l2decoder
DEMUXERS = {".mp4": "qtdemux", ".m4v": "qtdemux", ".mov": "qtdemux", ".mkv": "matroskademux"}
APPSINK = "appsink sync=false max-buffers=2"


class DecoderChoice(NamedTuple):
    """How a file is decoded, and why, for one line of output."""

    way: Way
    why: str


def decoder_here() -> DecoderChoice:
    """The decoder of this machine. `doctor` tells the same."""
    if is_jetson():
        if has_gstreamer():
            return DecoderChoice("jetson", "a Jetson's decoder, by GStreamer (nvv4l2decoder)")
        return DecoderChoice("cpu", "FFmpeg on the CPU: this OpenCV has no GStreamer, which a Jetson's decoder needs")
    if driver_problem():
        return DecoderChoice("cpu", "FFmpeg on the CPU: no CUDA GPU")
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        return DecoderChoice("cpu", "FFmpeg on the CPU: NVDEC needs `pip install PyNvVideoCodec`")
    return DecoderChoice("nvdec", "NVDEC, by PyNvVideoCodec")


def decoder_for(reader: VideoReader, path: str, here: DecoderChoice) -> DecoderChoice:
    """How this file is decoded here: hardware takes 8 bits of 4:2:0, upright, in H.264 or HEVC."""
    if here.way == "cpu":
        return here
    if reader.colour is None or reader.bits != 8 or reader.codec not in PARSERS:
        return DecoderChoice(
            "cpu",
            f"FFmpeg on the CPU: {reader.codec} of {reader.bits} bits, turned or not 4:2:0, is not for {here.why}",
        )
    if reader.variable_rate:
        return DecoderChoice("cpu", f"FFmpeg on the CPU: its rate varies, and {here.why} does not tell times")
    if here.way == "jetson" and Path(path).suffix.lower() not in DEMUXERS:
        return DecoderChoice("cpu", f"FFmpeg on the CPU: no demuxer for {Path(path).suffix}")
    return here


def jetson_pipeline(path: str, codec: str) -> str:
    """A file through a Jetson's decoder in NVMM memory; nvvidconv brings NV12 to where the CPU and the GPU reach it."""
    quoted = path.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f'filesrc location="{quoted}" ! {DEMUXERS[Path(path).suffix.lower()]} ! {PARSERS[codec]} ! nvv4l2decoder ! '
        f"nvvidconv ! video/x-raw, format=NV12 ! {APPSINK}"
    )


def nvdec_planes(path: str, colour: Colour) -> Iterator[Yuv]:
    """Frames by NVDEC. Raises: UnavailableError: PyNvVideoCodec or the GPU cannot."""
    codec = import_extra("PyNvVideoCodec", "cuda")
    try:
        demuxer = codec.CreateDemuxer(filename=path)
        decoder = codec.CreateDecoder(
            gpuid=0, codec=demuxer.GetNvCodecId(), cudacontext=0, cudastream=0, usedevicememory=False
        )
    except RuntimeError as error:
        raise UnavailableError(f"NVDEC does not open {path}: {error}") from error
    for packet in demuxer:
        for frame in decoder.Decode(packet):
            yield Yuv.nv12(np.array(np.from_dlpack(frame), copy=True), colour)  # the decoder uses its memory again


def jetson_planes(pipeline: str, colour: Colour) -> Iterator[Yuv]:
    """Frames of a GStreamer pipeline that ends in NV12. Raises: UnavailableError: it does not start."""
    with quiet():
        capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        capture.release()
        raise UnavailableError(f"GStreamer does not start `{pipeline}`; try it with gst-launch-1.0")
    try:
        while True:
            ok, data = capture.read()
            if not ok:
                return
            yield Yuv.nv12(data, colour)
    finally:
        capture.release()


class HardwareReader:
    """What `VideoReader` is, with another decoder behind it: FFmpeg opened the file and told its facts."""

    def __init__(self, reader: VideoReader, frames: Callable[[], Iterator[Yuv]]) -> None:
        """Raises: UnavailableError: no first frame comes, or one of another size than the file's."""
        self._reader, self._frames = reader, frames()
        self.name, self.fps, self.length, self.size_hw = reader.name, reader.fps, reader.length, reader.size_hw
        self.colour, self.aspect, self.decoded = reader.colour, reader.aspect, 0
        self._start_s = reader.time_s or 0.0
        self.time_s: float | None = None
        self._first = next(self._frames, None)
        if self._first is None or self._first.frame_hw != self.size_hw:
            got = "nothing" if self._first is None else f"frames of {self._first.frame_hw}"
            raise UnavailableError(f"{self.name}: the hardware decoder gives {got}, expected frames of {self.size_hw}")

    def read(self, out: NDArray[np.uint8] | None = None) -> Picture | None:
        """The next frame, None at the end."""
        first, self._first = self._first, None
        frame = next(self._frames, None) if first is None else first
        if frame is not None:
            self.time_s = self._start_s + self.decoded / self.fps if self.fps else None
            self.decoded += 1
        return frame

    def require_whole(self) -> None:
        """As `VideoReader`'s, by the count of frames."""
        self._reader.decoded = self.decoded
        self._reader.require_whole()

    def close(self) -> None:
        """Safe to call twice."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()
        self._reader.close()


def open_reader(
    path: str, *, name: str, threads: int | None, here: DecoderChoice | None = None
) -> VideoReader | HardwareReader:
    """Open a file with the decoder that fits it and this machine; said in one line (-v). Raises: as `VideoReader`.

    A hardware decoder that does not start is told in a warning, and the CPU decodes.
    """
    reader = VideoReader(path, name=name, threads=threads)
    choice = decoder_for(reader, path, here or decoder_here())
    colour = reader.colour
    if choice.way != "cpu" and colour is not None:
        try:
            if choice.way == "nvdec":
                opened = HardwareReader(reader, lambda: nvdec_planes(path, colour))
            else:
                pipeline = jetson_pipeline(path, reader.codec)
                opened = HardwareReader(reader, lambda: jetson_planes(pipeline, colour))
            LOG.info("%s: decoded by %s", name, choice.why)
            return opened
        except UnavailableError as error:
            LOG.warning("%s: decoded by FFmpeg on the CPU: %s", name, error)
            return reader
    LOG.info("%s: decoded by %s", name, choice.why)
    return reader
