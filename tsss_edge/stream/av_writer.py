"""Pictures -> a video file or stream by PyAV, such that what is written plays, whatever ends the process.

H.264 in fragmented MP4 (or MOV, MKV): a keyframe each second closes a fragment, and every packet is flushed. VP9 in WebM,
GIF, MJPEG in AVI, H.264 over RTSP and as HLS likewise come from FFmpeg.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from tsss_edge.errors import DataError
from tsss_edge.files import reason
from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.stream.av_reader import FAULTS, FULL_RANGE, plane_rows
from tsss_edge.stream.encoders import Preset, h264_encoder
from tsss_edge.stream.frames import Picture, bgr_of

MOST_PARTS = 10_000  # of a second, that a rate is told in: 239.651 and 30000/1001 alike
DEFAULT_COLOUR = Colour()  # BT.601, limited: as every player reads untagged small video, and as OpenCV reads all of it
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
MATRIX_CODES = {"bt601": 6, "bt709": 1}  # H.273
SEEK_BEFORE_S = 1.0  # of a sound's beginning: pictures and sound of one time stand that near to each other
MOST_SKIPPED = 60_000  # frames that FFmpeg leaves out of an AVI at once


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How one kind of file is written: FFmpeg's names and options."""

    format: str
    codec: str
    pixels: str
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)


H264 = "h264"  # stands for the encoder that `encoders.h264_encoder` chooses
BUFFERS = 8  # frames of planes that go round: more than may wait for the encoder
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
CLUSTERS = {
    "cluster_time_limit": "1000",
    "flush_packets": "1",
}  # of Matroska and WebM: at most a second waits in memory
# FFmpeg waits for an RTSP server with Python's lock held: meanwhile no other camera, page or signal is served.
SERVER_PATIENCE_US = 2_000_000

ENCODINGS: dict[str, Encoding] = {
    ".mp4": Encoding(format="mp4", codec=H264, pixels="yuv420p", container=FRAGMENTS),
    ".mov": Encoding(format="mov", codec=H264, pixels="yuv420p", container=FRAGMENTS),
    ".mkv": Encoding(format="matroska", codec=H264, pixels="yuv420p", container=CLUSTERS),
    ".webm": Encoding(
        format="webm",
        codec="libvpx-vp9",
        pixels="yuv420p",
        options={"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "32", "b": "0"},
        container=CLUSTERS,
    ),
    ".avi": Encoding(format="avi", codec="mjpeg", pixels="yuvj420p", options={"qmin": "3", "qmax": "6"}),
    ".gif": Encoding(format="gif", codec="gif", pixels="rgb8"),
    ".m3u8": Encoding(
        format="hls",
        codec=H264,
        pixels="yuv420p",
        container={"hls_time": "1", "hls_list_size": "0", "hls_flags": "append_list"},
    ),
    "rtsp": Encoding(
        format="rtsp", codec=H264, pixels="yuv420p",
        container={"rtsp_transport": "tcp", "timeout": str(SERVER_PATIENCE_US)},
    ),
}  # fmt: skip
WRITABLE = tuple(kind for kind in ENCODINGS if kind.startswith("."))


class VideoWriter:
    """One video being written. The size is that of the first picture's arguments; odd sides repeat their last line."""

    def __init__(
        self,
        target: str,
        *,
        kind: str,
        fps: float,
        size_hw: tuple[int, int],
        audio_from: str | None = None,
        threads: int | None = 1,
        colour: Colour = DEFAULT_COLOUR,
        aspect: Fraction | None = None,
        preset: Preset = "auto",
    ) -> None:
        """Open a file or address.

        Args:   kind: a key of ENCODINGS. audio_from: a file whose first sound track is copied. threads: of the encoder.
                colour: of the planes that come, and of what is written; BGR is turned into it. aspect: of a pixel, None: square.
        Raises: DataError: it cannot be opened or written. UnavailableError: as `h264_encoder`.
        """
        self.target, self._encoding, self._colour = target, ENCODINGS[kind], colour
        self.encoder = h264_encoder(preset) if self._encoding.codec == H264 else None
        self._buffers: list[av.VideoFrame] = []
        self._even_hw = (size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2)
        self._step = Fraction(1) / Fraction(fps).limit_denominator(MOST_PARTS)
        self._start_s: float | None = None  # when the first frame is shown, by its source's clock
        self._next_s, self._last_tick = Fraction(0), -1
        self._key_tick: int | None = None  # of the last keyframe
        self.frames = 0
        self._container: Any = None
        self._audio: _Audio | None = None
        try:
            self._open(fps, threads, audio_from, aspect)
        except DataError:
            self._abandon()
            raise
        except FAULTS as error:
            self._abandon()
            raise DataError(
                f"{target}: cannot write a {size_hw[1]}x{size_hw[0]} video at {fps:g} frames a second there ({error})"
            ) from error

    def _open(self, fps: float, threads: int | None, audio_from: str | None, aspect: Fraction | None) -> None:
        encoding = self._encoding
        self._container = av.open(self.target, "w", format=encoding.format, container_options=encoding.container)
        rate = Fraction(fps).limit_denominator(MOST_PARTS)
        codec, options = encoding.codec, encoding.options
        if self.encoder is not None:
            codec, options = self.encoder.codec, self.encoder.options
        stream = self._container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = self._even_hw
        stream.pix_fmt = encoding.pixels
        context = stream.codec_context
        context.time_base = 1 / rate if encoding.format in ("gif", "avi") else _clock(rate)
        context.gop_size = max(1, round(fps))  # where an encoder does not take our word for keyframes
        context.max_b_frames = 0
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if threads:
            context.thread_count = threads
        if encoding.pixels == "yuv420p":
            context.colorspace = MATRIX_CODES[self._colour.matrix]
            context.color_range = FULL_RANGE if self._colour.full else LIMITED_RANGE
        self._stream = stream
        if audio_from is not None:
            self._audio = _Audio(audio_from, self._container, f"{self.target}: {encoding.format}")
        self._container.start_encoding()  # writes the header now: a place that takes no file shows itself before the first frame

    def write(self, picture: Picture, time_s: float | None = None) -> None:
        """Append a picture. `time_s`: when its source shows it; the video begins with the first (default: the rate's next time).

        Raises: DataError: it cannot be written (for one, a full disk).
        """
        self.encode(self.prepare(picture), time_s)

    def prepare(self, picture: Picture) -> av.VideoFrame:
        """Copy a picture into a frame for `encode`, which holds until `BUFFERS` more were prepared. Safe beside `encode`."""
        if isinstance(picture, Yuv) and picture.colour == self._colour and self._takes_planes:
            frame = self._filled(picture)
            return frame if frame.format.name == self._encoding.pixels else frame.reformat(format=self._encoding.pixels)
        frame = av.VideoFrame.from_ndarray(self._even(bgr_of(picture)), format="bgr24")
        if self._encoding.pixels != "yuv420p":
            return frame.reformat(format=self._encoding.pixels)
        space = av.video.reformatter.Colorspace[self._colour.matrix.replace("bt", "itu")]
        reach = FULL_RANGE if self._colour.full else LIMITED_RANGE
        return frame.reformat(format="yuv420p", dst_colorspace=space, dst_color_range=reach)

    @property
    def _takes_planes(self) -> bool:
        """Whether who plays it will know what the planes mean: MJPEG is BT.601, whatever the source was."""
        return self._encoding.codec != "mjpeg" or self._colour.matrix == "bt601"

    def _filled(self, picture: Yuv) -> av.VideoFrame:
        """The next buffer with the planes in it; odd sides repeat their last line."""
        rows, columns = self._even_hw
        if len(self._buffers) < BUFFERS:
            frame = av.VideoFrame(columns, rows, "yuv420p")
            frame.colorspace = MATRIX_CODES[self._colour.matrix]
            frame.color_range = FULL_RANGE if self._colour.full else LIMITED_RANGE
        else:
            frame = self._buffers.pop(0)
            frame.make_writable()  # an encoder that still reads it keeps its own
        self._buffers.append(frame)
        y, u, v = (plane_rows(plane, plane.height, plane.width) for plane in frame.planes)
        height, width = picture.frame_hw
        np.copyto(y[:height, :width], picture.y)
        y[height:, :width] = picture.y[-1]
        y[:, width:] = y[:, width - 1 : width]
        np.copyto(u, picture.u)
        np.copyto(v, picture.v)
        return frame

    def encode(self, frame: av.VideoFrame, time_s: float | None = None) -> None:
        """Append a frame of `prepare`. Raises: as `write`."""
        now, base = self._next_s, self._stream.codec_context.time_base
        if time_s is not None:
            now = Fraction(time_s - self._start(time_s))
        tick = max(self._last_tick + 1, round(now / base))  # times that stand still or go back would be refused
        if self._encoding.format == "avi":  # after a longer gap the next frames catch up
            tick = min(tick, self._last_tick + MOST_SKIPPED)
        frame.pts, frame.time_base = tick, base
        due = self._key_tick is None or (tick - self._key_tick) * base >= 1
        frame.pict_type = PictureType.I if due else PictureType.NONE  # a keyframe each second, however few frames come
        if due:
            self._key_tick = tick
        self._last_tick, self._next_s = tick, tick * base + self._step
        try:
            self._container.mux(self._stream.encode(frame))
            if self._audio is not None:
                self._audio.copy_until(float(tick * base))
        except FAULTS as error:
            raise DataError(f"{self.target}: cannot be written on ({error}); is the disk full?") from error
        self.frames += 1

    def _start(self, time_s: float) -> float:
        """When the first frame is shown, which is at `time_s` where there was none."""
        if self._start_s is None:
            self._start_s = time_s
            if self._audio is not None:
                self._audio.begin(time_s)
        return self._start_s

    def _even(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[:2] == self._even_hw:
            return np.ascontiguousarray(image)
        bottom, right = (even - odd for even, odd in zip(self._even_hw, image.shape[:2], strict=True))
        return np.asarray(cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)

    def close(self) -> None:
        """Finish the file. Safe to call twice. Raises: DataError: the end of it cannot be written."""
        container, self._container = self._container, None
        if container is None:
            return
        try:
            if self.frames:
                container.mux(self._stream.encode(None))
                if self._audio is not None:
                    self._audio.copy_until(float(self._next_s))
            container.close()
        except FAULTS as error:
            raise DataError(f"{self.target}: its end cannot be written ({error}); is the disk full?") from error
        finally:
            if self._audio is not None:
                self._audio.close()

    def _abandon(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None


def _clock(rate: Fraction) -> Fraction:
    """Seconds a tick: a frame of `rate` takes a whole number of them, and a camera's times are told to 0.1 ms."""
    return Fraction(1, rate.numerator * max(1, MOST_PARTS // rate.numerator))


class _Audio:
    """Packets of a file's first sound track, copied as they are, from where the pictures begin as far as they have come."""

    def __init__(self, path: str, target: Any, name: str) -> None:
        """name: of `target`, for messages. Raises: DataError: a track that `target` does not take."""
        self._source = av.open(path)
        try:
            self._open(target)
        except DataError:
            self.close()
            raise
        except FAULTS as error:
            self.close()
            raise DataError(f"{name} does not take the sound of {path} ({reason(error)}); leave --audio out") from error

    def _open(self, target: Any) -> None:
        self._target = target
        self._packets: Iterator[Any] = iter(())
        self._stream: Any = None
        self._held: Any = None
        self._unwrap: Any = None
        self._start_s = 0.0
        for track in self._source.streams.audio[:1]:
            self._packets = self._source.demux(track)
            self._stream = target.add_stream_from_template(track)
            if track.codec_context.name == "aac" and not track.codec_context.extradata:
                self._held = next(self._packets, None)
                self._stream.codec_context.extradata = _aac_header(bytes(self._held or b""))
                self._unwrap = av.bitstream.BitStreamFilterContext("aac_adtstoasc", track)

    def begin(self, start_s: float) -> None:
        """The pictures begin at `start_s` of the file: sound that ends earlier is left out."""
        self._start_s = start_s
        if start_s > SEEK_BEFORE_S:
            with suppress(*FAULTS):  # a file without an index is read from its beginning
                self._source.seek(int((start_s - SEEK_BEFORE_S) * av.time_base))

    def copy_until(self, time_s: float) -> None:
        """Write the packets that start before `time_s`, counted from the beginning of the pictures."""
        while (packet := self._held or next(self._packets, None)) is not None:
            self._held = packet
            if packet.dts is not None:
                begin = round(Fraction(self._start_s) / packet.time_base)
                if (packet.dts - begin) * packet.time_base > time_s:
                    return
                if packet.dts + (packet.duration or 0) >= begin:
                    self._write(packet, begin)
            self._held = None

    def _write(self, packet: av.Packet[Any], begin: int) -> None:
        assert packet.dts is not None
        packet.pts = (packet.dts if packet.pts is None else packet.pts) - begin
        packet.dts -= begin
        base = packet.time_base  # the filter takes the packet and leaves an empty one
        for bare in self._unwrap.filter(packet) if self._unwrap is not None else (packet,):
            bare.stream, bare.time_base = self._stream, base
            self._target.mux(bare)

    def close(self) -> None:
        self._source.close()


def _aac_header(packet: bytes) -> bytes:
    """What a file says once of its AAC, from a packet of a transport stream, which says it each time (ISO 14496-3, 1.6.2.1 and 1.A.3)."""
    if len(packet) < 4 or packet[0] != 0xFF or packet[1] & 0xF0 != 0xF0:
        raise DataError("the AAC sound of the source has no header that can be read; leave --audio out")
    kind, rate, channels = (packet[2] >> 6) + 1, packet[2] >> 2 & 0xF, (packet[2] & 1) << 2 | packet[3] >> 6
    return (kind << 11 | rate << 7 | channels << 3).to_bytes(2, "big")


def kind_of(target: str) -> str | None:
    """The key of ENCODINGS for a path or address, None where it names no video."""
    if target.lower().startswith(("rtsp://", "rtsps://")):
        return "rtsp"
    suffix = Path(target).suffix.lower()
    return suffix if suffix in ENCODINGS else None
