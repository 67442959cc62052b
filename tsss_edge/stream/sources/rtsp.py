"""`rtsp://` -> a `Capture`, by PyAV. OpenCV opens network cameras of one process one after the other, each for seconds: 16 took
40 s, and one that does not answer kept the others waiting."""

from __future__ import annotations

import math
import os
import time

import av

from tsss_edge.errors import DataError
from tsss_edge.stream.av_reader import FAULTS
from tsss_edge.stream.process import as_bgr
from tsss_edge.stream.sources import capture
from tsss_edge.stream.sources.live import Shot
from tsss_edge.stream.uris import Uri

# RTSP over TCP, without FFmpeg's input buffer. The rate is guessed from 3 frames; from 20, its default, at 5 frames/s it takes 4 s.
LOW_DELAY = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay|fpsprobesize;3"

MOST_DAMAGED = 100  # packets without a picture between them, then the camera counts as lost


class RtspCapture:
    """A `Capture` over a PyAV container. The time stamp is taken before decoding."""

    def __init__(self, container: av.container.InputContainer) -> None:
        self._container = container
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # several threads would each hold a frame back
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self.fps: float = rate if math.isfinite(rate) and 0 < rate <= 1000 else 0.0
        self._packets = container.demux(stream)

    def read(self) -> Shot | None:
        damaged = 0
        while damaged <= MOST_DAMAGED:
            try:
                packet = next(self._packets)
                captured = time.monotonic()
                if frames := packet.decode():
                    return Shot(as_bgr(frames[-1].to_ndarray(format="bgr24")), captured)
            except av.error.InvalidDataError:
                damaged += 1
            except (StopIteration, *FAULTS):
                return None
        return None

    def release(self) -> None:
        self._container.close()


def open_rtsp(uri: Uri) -> RtspCapture:
    """An open RTSP stream. FFmpeg's options are those of `LOW_DELAY`, or the user's in OPENCV_FFMPEG_CAPTURE_OPTIONS.

    Raises: DataError: nobody answers, or it is no video.
    """
    asked = os.environ.get(capture.FFMPEG_OPTIONS, LOW_DELAY)
    if asked == capture.HTTP_OPTIONS:  # nobody's wish: a camera beside this one is being opened
        asked = LOW_DELAY
    options = dict(pair.split(";", 1) for pair in asked.split("|") if ";" in pair)
    patience_s = capture.NETWORK_TIMEOUT_MS / 1000
    try:
        container = av.open(uri.text, options=options, timeout=(patience_s, patience_s))
    except FAULTS as error:
        raise DataError(f"{uri.shown}: cannot be opened ({capture.NETWORK_HINT})") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{uri.shown}: cannot be opened (no video in it)")
    return RtspCapture(container)
