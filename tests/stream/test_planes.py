"""Frames that stay in the decoder's planes: reader, loop, overlay, writer."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from loopkit import CLASSES, fake

from tsss_edge.kernels.overlay_yuv import YuvOverlayPlan
from tsss_edge.kernels.yuv import Colour, Yuv
from tsss_edge.stream.av_reader import VideoReader
from tsss_edge.stream.av_writer import VideoWriter
from tsss_edge.stream.frames import FrameResult, bgr_of
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sources import open_source
from tsss_edge.stream.video_sink import VideoSink


def video(path: Path, *, pixels: str = "yuv420p", matrix: int = 6, size_hw: tuple[int, int] = (48, 64)) -> Path:
    """Eight lossless frames of a ramp; frame n has the luma n * 4 added."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        (stream.height, stream.width), stream.pix_fmt = size_hw, pixels
        stream.codec_context.colorspace = matrix
        for n in range(8):
            y, x = np.mgrid[0 : size_hw[0], 0 : size_hw[1]]
            image = np.stack([40 + x, 60 + 2 * y, 30 + x + y], -1).clip(0, 200).astype(np.uint8) + np.uint8(4 * n)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("pixels", "matrix", "colour"),
    [
        ("yuv420p", 6, Colour()),
        ("yuv420p", 1, Colour("bt709")),
        ("yuv420p", 2, Colour()),
        ("yuv420p10le", 1, Colour("bt709")),
        ("yuv444p", 1, None),
        ("yuv420p", 9, None),
    ],
)
def test_reader_gives_planes_of_420_and_bgr_of_the_rest(
    tmp_path: Path, pixels: str, matrix: int, colour: Colour | None
) -> None:
    """BT.2020 and 4:4:4 are FFmpeg's to convert."""
    reader = VideoReader(str(video(tmp_path / "a.mkv", pixels=pixels, matrix=matrix)))
    picture = reader.read()
    assert reader.colour == colour
    assert isinstance(picture, np.ndarray if colour is None else Yuv)
    reader.close()


def test_planes_are_the_decoders_own_values(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mkv", size_hw=(47, 63))
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    reader, seen = VideoReader(str(path)), []
    while (picture := reader.read()) is not None:
        assert isinstance(picture, Yuv) and picture.frame_hw == (47, 63) and picture.u.shape == (24, 32)
        seen.append(picture)
    reader.close()
    assert len(seen) == 8, "all of them still hold after the decoder is gone"
    for n, picture in enumerate(seen):
        assert int(picture.y[20, 20]) - int(seen[0].y[20, 20]) == pytest.approx(4 * n * 219 / 255, abs=1.5)
        from tsss_edge.kernels.preprocess_yuv import yuv_to_bgr

        assert np.abs(yuv_to_bgr(picture).astype(int) - frames[n]).mean() < 2


class Kept:
    """A sink that copies."""

    wants_overlay = True

    def __init__(self) -> None:
        self.seen: list[tuple[Yuv, np.ndarray, Yuv]] = []

    def write(self, result: FrameResult) -> None:
        assert isinstance(result.frame.picture, Yuv) and isinstance(result.painted, Yuv)
        self.seen.append((result.frame.picture.copy(), result.labels.copy(), result.painted.copy()))

    def close(self) -> None:
        pass


def test_the_loop_paints_the_planes_and_leaves_the_frame(tmp_path: Path) -> None:
    sink, source = Kept(), open_source(str(video(tmp_path / "a.mkv", size_hw=(47, 63))))
    assert run(source, fake(), [sink], Recorder()) == "source"
    reader = VideoReader(str(tmp_path / "a.mkv"))
    for picture, labels, painted in sink.seen:
        original = reader.read()
        assert isinstance(original, Yuv)
        want = picture.copy()
        YuvOverlayPlan((47, 63), CLASSES.palette, Colour(), shown=CLASSES.objects)(want, labels)
        for got, expected, before, now in zip(
            (painted.y, painted.u, painted.v),
            (want.y, want.u, want.v),
            (original.y, original.u, original.v),
            (picture.y, picture.u, picture.v),
            strict=True,
        ):
            np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(now, before)
    assert len(sink.seen) == 8


@pytest.mark.parametrize("matrix", [6, 1])
@pytest.mark.parametrize("size_hw", [(48, 64), (47, 63)])
def test_a_recording_has_the_sources_colours(tmp_path: Path, matrix: int, size_hw: tuple[int, int]) -> None:
    """Planes go to the encoder as they are, with their matrix; nothing is BGR on the way."""
    path = video(tmp_path / "a.mkv", matrix=matrix, size_hw=size_hw)
    source = open_source(str(path))
    colour = source.colour  # type: ignore[attr-defined]
    sink = VideoSink(str(tmp_path / "out.mp4"), fps=25, size_hw=size_hw, colour=colour)
    while (frame := source.read()) is not None:
        result = FrameResult(frame, np.zeros(size_hw, np.uint8), None, frame.picture)
        sink.write(result)
        assert result._bgr is None and frame._bgr is None
    sink.close()
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 8
    assert (frames[0].colorspace, frames[0].color_range) == (matrix, 1)
    assert (frames[0].height, frames[0].width) == (48, 64)
    reader = VideoReader(str(path))
    first = reader.read()
    assert isinstance(first, Yuv)
    back = frames[0].to_ndarray()[:48, :64]
    assert np.abs(back[: size_hw[0], : size_hw[1]].astype(int) - first.y).mean() < 3
    np.testing.assert_allclose(back[-1, :-1].mean(), first.y[-1].mean(), atol=3)


@pytest.mark.parametrize("colour", [Colour("bt709"), Colour("bt709", full=True), Colour(full=True)])
def test_an_avi_has_the_colours_of_its_planes(tmp_path: Path, colour: Colour) -> None:
    """MJPEG is read as BT.601, whatever the planes were."""
    y, u, v = (round(float(value)) for value in colour.from_rgb(np.array([[200.0, 30.0, 30.0]]))[0])
    planes = Yuv.empty((48, 64), colour)
    planes.y[...], planes.u[...], planes.v[...] = y, u, v
    writer = VideoWriter(str(tmp_path / "a.avi"), kind=".avi", fps=25, size_hw=(48, 64), colour=colour)
    for _ in range(3):
        writer.write(planes)
    writer.close()
    picture = VideoReader(str(tmp_path / "a.avi")).read()
    assert picture is not None
    np.testing.assert_allclose(bgr_of(picture)[24, 32, ::-1], (200, 30, 30), atol=6)  # JPEG's own loss


def test_other_kinds_of_video_come_from_planes_too(tmp_path: Path) -> None:
    """A GIF is RGB; FFmpeg makes it of the planes."""
    source = open_source(str(video(tmp_path / "a.mkv")))
    sink = VideoSink(str(tmp_path / "out.gif"), fps=25, size_hw=(48, 64))
    while (frame := source.read()) is not None:
        sink.write(FrameResult(frame, np.zeros((48, 64), np.uint8), None, frame.picture))
    sink.close()
    capture = cv2.VideoCapture(str(tmp_path / "out.gif"))
    assert capture.read()[1].shape == (48, 64, 3)
