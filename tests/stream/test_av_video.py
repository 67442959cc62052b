"""Kinds of video in, made by PyAV; files out that play in part after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.logging import get_level

from tsss_edge.errors import DataError
from tsss_edge.stream.av_reader import VideoReader
from tsss_edge.stream.av_writer import VideoWriter, _aac_header, kind_of
from tsss_edge.stream.frames import bgr_of, picture_hw

SIZE_HW = (96, 128)
COUNT = 24


def scene(index: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """(H,W,3) BGR: its grey names the index, a red block in the upper left corner names the side."""
    image = np.full((*size_hw, 3), 40 + 8 * index % 200, np.uint8)
    image[: size_hw[0] // 3, : size_hw[1] // 3] = (0, 0, 220)
    return image


def encode(
    path: Path, codec: str, pixels: str, *, turn: int = 0, times: Callable[[int], Fraction] | None = None, sound: bool = False,
    size_hw: tuple[int, int] = SIZE_HW, **options: str,
) -> None:  # fmt: skip
    """COUNT scenes at 12 frames a second, or at `times`."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=12, options=options)
        stream.height, stream.width, stream.pix_fmt = *size_hw, pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        voice: Any = container.add_stream("aac", rate=48000) if sound else None
        for index in range(COUNT):
            frame = av.VideoFrame.from_ndarray(scene(index, size_hw), format="bgr24").reformat(format=pixels)
            if times:
                frame.pts, frame.time_base = round(times(index) * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            for index in range(COUNT * 4):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 48000, index * 1024
                container.mux(voice.encode(silence))
            container.mux(voice.encode(None))
    if turn:
        write_turn(path, turn)


def write_turn(path: Path, degrees: int) -> None:
    """Set the display matrix of the first track: PyAV writes none, so the 36 bytes in `tkhd` are exchanged."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0
    unit = 1 << 16
    matrix = {90: (0, unit, -unit, 0), 180: (-unit, 0, 0, -unit), 270: (0, -unit, unit, 0)}[degrees]
    a, b, c, d = matrix
    values = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    path.write_bytes(data)


def variable(index: int) -> Fraction:
    """Every third frame comes late."""
    return Fraction(index, 12) + Fraction(index // 3, 10)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "H.264": ("a.mp4", {"codec": "libx264", "pixels": "yuv420p"}),
    "H.264 with B frames and sound": ("a.mp4", {"codec": "libx264", "pixels": "yuv420p", "sound": True, "bf": "3"}),
    "H.264, 10 bits": ("a.mkv", {"codec": "libx264", "pixels": "yuv420p10le"}),
    "H.264, 4:4:4": ("a.mp4", {"codec": "libx264", "pixels": "yuv444p"}),
    "HEVC": ("a.mp4", {"codec": "libx265", "pixels": "yuv420p", "x265-params": "log-level=none"}),
    "HEVC, 10 bits": ("a.mkv", {"codec": "libx265", "pixels": "yuv420p10le", "x265-params": "log-level=none"}),
    "AV1": ("a.mp4", {"codec": "libsvtav1", "pixels": "yuv420p", "preset": "12"}),
    "AV1, 10 bits": ("a.webm", {"codec": "libsvtav1", "pixels": "yuv420p10le", "preset": "12"}),
    "VP9": ("a.webm", {"codec": "libvpx-vp9", "pixels": "yuv420p", "deadline": "realtime"}),
    "MPEG-4 part 2": ("a.avi", {"codec": "mpeg4", "pixels": "yuv420p"}),
    "MJPEG": ("a.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "ProRes, 10 bits 4:2:2": ("a.mov", {"codec": "prores", "pixels": "yuv422p10le"}),
    "FFV1 in grey": ("a.mkv", {"codec": "ffv1", "pixels": "gray"}),
    "GIF": ("a.gif", {"codec": "gif", "pixels": "rgb8"}),
    "transport stream": ("a.ts", {"codec": "libx264", "pixels": "yuv420p"}),
    "variable rate": ("a.mkv", {"codec": "libx264", "pixels": "yuv420p", "times": variable}),
    "odd sides": ("a.mkv", {"codec": "ffv1", "pixels": "yuv444p", "size_hw": (95, 127)}),
}


def assert_scene(
    image: np.ndarray, index: int, size_hw: tuple[int, int] = SIZE_HW, *, grey: bool = False, near: int = 9
) -> None:
    expected = scene(index, size_hw)
    assert image.shape == expected.shape
    if grey:
        expected = cv2.cvtColor(cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    inner = np.s_[4:20, 4:30], np.s_[50:90, 60:120]  # away from the edge that codecs smear
    for part in inner:
        assert abs(image[part].mean((0, 1)) - expected[part].mean((0, 1))).max() <= near, index


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_in_order(tmp_path: Path, kind: str) -> None:
    name, how = KINDS[kind]
    encode(tmp_path / name, **how)
    reader = VideoReader(str(tmp_path / name))
    near = 40 if name.endswith(".gif") else 12  # a GIF of rgb8 has 8 levels of red and green, 4 of blue
    times = []
    for index in range(COUNT):
        image = reader.read()
        assert image is not None, index
        assert_scene(bgr_of(image), index, how.get("size_hw", SIZE_HW), grey="gray" in how["pixels"], near=near)
        times.append(reader.time_s)
    assert reader.read() is None
    reader.require_whole()
    reader.close()
    if kind == "variable rate":
        np.testing.assert_allclose(
            np.diff(times[1:]), np.diff([float(variable(i)) for i in range(COUNT)])[1:], atol=2e-3
        )


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_comes_upright(tmp_path: Path, degrees: int) -> None:
    """The file says how a player turns it, clockwise; OpenCV turns by the same matrix, so it is asked as well."""
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p", turn=degrees)
    image = VideoReader(str(path)).read()
    assert image is not None
    expected = np.rot90(scene(0), -degrees // 90)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 12
    other = cv2.VideoCapture(str(path))
    _, seen = other.read()
    other.release()
    assert seen.shape == image.shape
    assert np.abs(image.astype(int) - seen).mean() < 12


def test_frames_are_written_into_a_given_array(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", "libx264", "yuv444p")
    reader = VideoReader(str(tmp_path / "a.mp4"))
    reader.read()
    slot = np.empty((*SIZE_HW, 3), np.uint8)
    assert reader.read(slot) is slot
    other = np.empty((3, 3, 3), np.uint8)
    assert reader.read(other) is not other


def cut(path: Path, share: float) -> None:
    encode(path, "libx264", "yuv420p", **{"x264-params": "keyint=6"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "keyframe", ["24", "5"]
)  # cut between two: some are decoded and not shown; at one: they are not read
def test_frames_that_an_edit_list_cuts_off_are_not_missing(tmp_path: Path, keyframe: str) -> None:
    """What `ffmpeg -ss -c copy` writes: everything from the keyframe on, and the time at which playing begins."""
    encode(tmp_path / "a.mp4", "libx264", "yuv420p", bf="0", g=keyframe, sc_threshold="0")
    with av.open(str(tmp_path / "a.mp4")) as whole, av.open(str(tmp_path / "b.mp4"), "w") as trimmed:
        stream = trimmed.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                begin = round(Fraction(5, 12) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, stream
                trimmed.mux(packet)
    reader, given = VideoReader(str(tmp_path / "b.mp4")), 0
    while reader.read() is not None:
        given += 1
    reader.require_whole()
    assert given == reader.length == COUNT - 5


def only_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        voice: Any = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 48000, 0
        container.mux(voice.encode(silence))
        container.mux(voice.encode(None))


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("a.mp4", lambda p: p.write_bytes(b""), "0 bytes"),
    "text": ("a.mp4", lambda p: p.write_text("hello" * 100), "not a readable video"),
    "cut short before its index": ("a.mp4", lambda p: cut(p, 0.5), "not a readable video"),
    "sound only": ("a.m4a", only_sound, "holds no pictures"),
    "missing": ("a.mp4", lambda p: None, "not a readable video"),
}


def test_nobody_listens_to_ffmpegs_log(tmp_path: Path) -> None:
    """PyAV's listener needs Python's lock: most processes that left a reader of an .mp4 open hung at their end."""
    encode(tmp_path / "a.mp4", "libx264", "yuv420p")
    VideoReader(str(tmp_path / "a.mp4")).close()
    assert get_level() is None


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    name, make, message = REFUSED[kind]
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        VideoReader(str(tmp_path / name))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Out


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m3u8"])
def test_written_files_play(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    writer = VideoWriter(str(path), kind=suffix, fps=12, size_hw=SIZE_HW)
    for index in range(COUNT):
        writer.write(scene(index))
    writer.close()
    writer.close()
    reader = VideoReader(str(path))
    for index in range(COUNT):
        image = reader.read()
        assert image is not None, index
        assert_scene(bgr_of(image), index, near=40 if suffix == ".gif" else 12)
    assert reader.read() is None
    assert reader.fps == pytest.approx(12, rel=0.05)


def test_odd_sides_and_times(tmp_path: Path) -> None:
    writer = VideoWriter(str(tmp_path / "a.mp4"), kind=".mp4", fps=12, size_hw=(95, 127))
    for index in range(COUNT):
        writer.write(scene(index, (95, 127)), float(variable(index)))
    writer.close()
    reader = VideoReader(str(tmp_path / "a.mp4"))
    times = []
    while (image := reader.read()) is not None:
        assert picture_hw(image) == (96, 128)
        times.append(reader.time_s)
    np.testing.assert_allclose(times[2:], [float(variable(i)) for i in range(COUNT)][2:], atol=1e-3)


def test_sound_is_copied(tmp_path: Path) -> None:
    encode(tmp_path / "in.mp4", "libx264", "yuv420p", sound=True)
    writer = VideoWriter(
        str(tmp_path / "out.mp4"), kind=".mp4", fps=12, size_hw=SIZE_HW, audio_from=str(tmp_path / "in.mp4")
    )
    for index in range(COUNT):
        writer.write(scene(index))
    writer.close()
    with av.open(str(tmp_path / "in.mp4")) as before, av.open(str(tmp_path / "out.mp4")) as after:
        wanted = [bytes(p) for p in before.demux(before.streams.audio[0]) if p.dts is not None]
        found = [bytes(p) for p in after.demux(after.streams.audio[0]) if p.dts is not None]
    assert found == wanted[: len(found)]
    assert len(found) >= 0.9 * len(wanted)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_aac_of_a_transport_stream_is_copied(tmp_path: Path, suffix: str) -> None:
    """There each packet has its header; a file has one for all, and plays nothing without it."""
    encode(tmp_path / "in.ts", "libx264", "yuv420p", sound=True)
    source, out = str(tmp_path / "in.ts"), str(tmp_path / f"out{suffix}")
    reader = VideoReader(source)
    writer = VideoWriter(out, kind=suffix, fps=12, size_hw=SIZE_HW, audio_from=source)
    while (image := reader.read()) is not None:
        writer.write(image, reader.time_s)
    writer.close()
    with av.open(source) as before, av.open(out) as after:
        wanted = [bytes(p)[7:] for p in before.demux(before.streams.audio[0]) if p.dts is not None]
        found = [bytes(p) for p in after.demux(after.streams.audio[0]) if p.dts is not None]
        assert found == wanted[: len(found)]
        assert len(found) >= 0.9 * len(wanted)
    with av.open(out) as after:
        assert sum(1 for _ in after.decode(audio=0)) == len(found)


def test_what_is_no_aac_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no header that can be read; leave --audio out"):
        _aac_header(b"\x00\x01\x02\x03")


def test_a_sound_that_the_file_does_not_take_is_told(tmp_path: Path) -> None:
    encode(tmp_path / "in.mp4", "libx264", "yuv420p", sound=True)
    with pytest.raises(DataError, match=r"webm does not take the sound of .*in\.mp4.*leave --audio out"):
        VideoWriter(
            str(tmp_path / "out.webm"), kind=".webm", fps=12, size_hw=SIZE_HW, audio_from=str(tmp_path / "in.mp4")
        )


@pytest.mark.parametrize("start_s", [0.5, 1.5])
def test_sound_begins_with_the_pictures(tmp_path: Path, start_s: float) -> None:
    """A piece of a recording, or a file whose pictures come late: its first packet is the one that sounds then."""
    encode(tmp_path / "in.mkv", "libx264", "yuv420p", sound=True)
    writer = VideoWriter(
        str(tmp_path / "out.mkv"), kind=".mkv", fps=12, size_hw=SIZE_HW, audio_from=str(tmp_path / "in.mkv")
    )
    for index in range(4):
        writer.write(scene(index), start_s + index / 12)
    writer.close()
    with av.open(str(tmp_path / "out.mkv")) as after:
        times = [float(p.pts * p.time_base) for p in after.demux(after.streams.audio[0]) if p.pts is not None]
    assert abs(times[0]) < 0.03 and len(times) == pytest.approx(4 / 12 * 48000 / 1024, abs=2)


def test_an_avi_goes_on_after_a_long_gap(tmp_path: Path) -> None:
    """FFmpeg refuses to leave more than 60,000 frames out at once: a camera that is away for an hour would end its file."""
    writer = VideoWriter(str(tmp_path / "a.avi"), kind=".avi", fps=100, size_hw=SIZE_HW)
    for time_s in (0.0, 700.0, 700.01, 700.02):
        writer.write(scene(0), time_s)
    writer.close()
    reader, times = VideoReader(str(tmp_path / "a.avi")), []
    while reader.read() is not None:
        times.append(reader.time_s)
    assert len(times) == 4 and times[2:] == pytest.approx([700.01, 700.02])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the disk that is always full")
def test_a_full_disk_is_told() -> None:
    with pytest.raises(DataError, match="cannot"):
        writer = VideoWriter("/dev/full", kind=".mp4", fps=12, size_hw=SIZE_HW)
        for index in range(COUNT):
            writer.write(scene(index))
        writer.close()


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write a 128x96 video"):
        VideoWriter(str(tmp_path / "no/such/folder/a.mp4"), kind=".mp4", fps=12, size_hw=SIZE_HW)


def test_kinds_by_name() -> None:
    assert [kind_of(t) for t in ("a.MP4", "rtsp://host/x", "b.webm", "c.txt", "live/index.m3u8")] == [
        ".mp4", "rtsp", ".webm", None, ".m3u8",
    ]  # fmt: skip


WRITE_UNTIL_KILLED = """
import sys
from tsss_edge.stream.av_writer import VideoWriter
import numpy as np
writer = VideoWriter(sys.argv[1], kind=sys.argv[2], fps=10, size_hw=(96, 128))
for index in range(1000):
    writer.write(np.full((96, 128, 3), index % 250, np.uint8))
    print(index + 1, flush=True)
    if index + 1 == 45:
        sys.stdin.read()
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_a_killed_process_wrote_plays_up_to_the_last_second(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path), suffix]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "45":
                break
        process.send_signal(signal.SIGKILL)
    reader, found = VideoReader(str(path)), 0
    while reader.read() is not None:
        found += 1
    assert 35 <= found <= 45  # 45 frames at 10 a second: at most the last second is lost


def test_two_recordings_in_one_file_go_on_in_time(tmp_path: Path) -> None:
    """`cat a.ts b.ts`: the clock of the file begins anew in its middle."""
    encode(tmp_path / "a.ts", "libx264", "yuv420p")
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() * 2)
    reader, times = VideoReader(str(both)), list[float]()
    while reader.read() is not None:
        assert reader.time_s is not None
        times.append(reader.time_s)
    assert len(times) == 2 * COUNT
    steps = np.diff(times)
    assert steps.min() > 0 and times[-1] - times[0] == pytest.approx((2 * COUNT - 1) / 12, abs=0.05)


def test_a_variable_rate_is_known_from_the_index(tmp_path: Path) -> None:
    encode(tmp_path / "even.mp4", "libx264", "yuv420p", bf="3")
    encode(tmp_path / "uneven.mp4", "libx264", "yuv420p", times=variable)
    assert [VideoReader(str(tmp_path / f"{name}.mp4")).variable_rate for name in ("even", "uneven")] == [False, True]


def test_a_keyframe_each_second_however_few_frames_come(tmp_path: Path) -> None:
    """A camera of 30 frames a second on an engine of two: a fragment ends with a keyframe, and a power cut costs the last one."""
    writer = VideoWriter(str(tmp_path / "o.mp4"), kind=".mp4", fps=30.0, size_hw=SIZE_HW)
    for index in range(20):
        writer.write(scene(index), index / 2)
    writer.close()
    with av.open(str(tmp_path / "o.mp4")) as container:
        keys = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    assert keys == pytest.approx([float(second) for second in range(10)])
