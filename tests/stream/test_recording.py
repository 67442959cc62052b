"""Recordings: pieces, a full disk, two at once, and that nothing which plays is lost."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import av
import pytest
from streamkit import MakeResult

from tsss_edge.artifacts import Classes
from tsss_edge.errors import BusyError, DataError
from tsss_edge.stream import encode_thread, recording, video_sink
from tsss_edge.stream.av_writer import VideoWriter
from tsss_edge.stream.frames import Sink
from tsss_edge.stream.sinks import open_sinks
from tsss_edge.stream.uris import parse_sink

CLASSES = Classes(names=("background", "cat", "dog"))
Usage = namedtuple("Usage", "total used free")


def opened(text: str, make_result: MakeResult, fps: float = 10.0) -> Sink:
    (sink,) = open_sinks([text], fps=fps, size_hw=make_result(0).frame.image.shape[:2], classes=CLASSES)
    return sink


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def record(sink: Sink, make_result: MakeResult, count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        result = make_result(n)
        result.frame.time_s = n / 10
        result.painted = result.frame.image
        sink.write(result)


def test_pieces_of_a_length_and_never_over_older_ones(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "out-00001.mp4").write_bytes(b"mine")
    sink = opened(f"{tmp_path}/out.mp4?segment=1", make_result)
    record(sink, make_result, 25)
    sink.close()
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == [
        "out-00001.mp4",
        "out-00002.mp4",
        "out-00003.mp4",
        "out-00004.mp4",
    ]  # in the order of time, also after a clean-up
    assert [frames_of(tmp_path / f"out-{n:05d}.mp4") for n in (2, 3, 4)] == [10, 10, 5]
    assert (tmp_path / "out-00001.mp4").read_bytes() == b"mine"


def test_a_disk_that_says_late_that_it_is_full_ends_the_recording_alone(
    tmp_path: Path, make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system on the network says so when a file is settled."""

    def no_space(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = opened(f"{tmp_path}/out.mp4?segment=1&full=go-on", make_result)
    monkeypatch.setattr(video_sink, "settle", no_space)
    record(sink, make_result, 25)
    sink.close()
    assert [p.name for p in tmp_path.iterdir()] == ["out-00000.recording.mp4"]


@pytest.mark.parametrize("full", ["stop", "go-on"])
def test_a_full_disk_ends_the_recording_at_once_and_what_is_there_plays(
    tmp_path: Path,
    make_result: MakeResult,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    full: str,
) -> None:
    sink = opened(f"{tmp_path}/out.mp4?full={full}", make_result)
    record(sink, make_result, 12)
    monkeypatch.setattr(recording, "LOOK_S", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 5 << 20))
    if full == "stop":
        with pytest.raises(DataError, match="5 MiB of the disk are free and 32 are to stay"):
            record(sink, make_result, 1, first=12)
    else:
        with caplog.at_level(logging.ERROR):
            record(sink, make_result, 20, first=12)
        assert "the stream goes on: " in caplog.text
    sink.close()
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"] and frames_of(tmp_path / "out.mp4") == 12


def test_a_full_disk_is_told_before_the_first_frame(
    tmp_path: Path, make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 0))
    with pytest.raises(DataError, match="0 MiB of the disk are free"):
        opened(f"{tmp_path}/out.mp4", make_result)
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_grow_is_noticed(
    tmp_path: Path, make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened(f"{tmp_path}/out.mp4", make_result)
    for name, value in (("LOOK_S", 0.0), ("MUST_GROW_S", 0.0), ("MUST_GROW_FRAMES", 3)):
        monkeypatch.setattr(recording, name, value)
    monkeypatch.setattr(sink, "_sink", type("Stuck", (), {"write": lambda *_: None, "close": lambda *_: None})())
    with pytest.raises(DataError, match="has not grown"):
        record(sink, make_result, 10)
    sink.close()


def test_an_hls_recording_grows_by_its_list(
    tmp_path: Path, make_result: MakeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no single file: looking for one ended every HLS recording after 30 s. Here a list of pieces of a second grows."""
    for name, value in (("LOOK_S", 0.0), ("MUST_GROW_S", 0.0), ("MUST_GROW_FRAMES", 25)):
        monkeypatch.setattr(recording, name, value)
    monkeypatch.setattr(video_sink, "EncodeThread", AtOnce)
    sink = opened(f"{tmp_path}/live.m3u8", make_result)
    record(sink, make_result, 60)
    sink.close()
    assert frames_of(tmp_path / "live.m3u8") == 60


class AtOnce:
    """`EncodeThread` without a thread."""

    left_out, encode_ms = 0, 0.0

    def __init__(self, writer: VideoWriter, *, live: bool) -> None:
        self.write, self.close = writer.write, writer.close


def test_what_a_kill_left_keeps_a_name_of_its_own(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "out.recording.mp4").write_bytes(b"a")
    (tmp_path / "out.recording-1.mp4").write_bytes(b"b")
    sink = opened(f"{tmp_path}/out.mp4", make_result)
    record(sink, make_result, 2)
    sink.close()
    assert (tmp_path / "out.recording-1.mp4").read_bytes() == b"b"
    assert (tmp_path / "out.recording-2.mp4").read_bytes() == b"a"
    assert frames_of(tmp_path / "out.mp4") == 2


def test_two_recordings_of_one_name(tmp_path: Path, make_result: MakeResult) -> None:
    code = (
        "import sys; from pathlib import Path; from tsss_edge.disk import held\n"
        "with held(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.readline()"
    )
    target = tmp_path / "out.mp4"
    with subprocess.Popen(
        [sys.executable, "-c", code, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as process:
        assert process.stdout is not None and process.stdin is not None and process.stdout.readline()
        with pytest.raises(BusyError, match=f"is being written by process {process.pid}"):
            opened(str(target), make_result)
        process.stdin.close()
    sink = opened(str(target), make_result)
    sink.close()


def test_settings_of_a_file_and_names_with_a_question_mark() -> None:
    assert parse_sink("a/out.mp4?segment=60&full=go-on").query == {"segment": "60", "full": "go-on"}
    assert parse_sink("what?.mp4").path == "what?.mp4" and parse_sink("a?b/%06d.png").query == {}


def test_a_receiver_that_takes_nothing_more_ends_its_video_and_not_the_program(
    tmp_path: Path, make_result: MakeResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An RTSP server that stopped reading: the encoder's thread is stuck in FFmpeg."""
    goes_on, entered = threading.Event(), threading.Event()
    monkeypatch.setattr(encode_thread, "PATIENCE_S", 0.2)
    sink = opened(f"{tmp_path}/out.mp4", make_result)

    def stuck(self: VideoWriter, *arguments: object) -> None:
        entered.set()
        goes_on.wait(20)

    monkeypatch.setattr(VideoWriter, "encode", stuck)
    try:
        with pytest.raises(DataError, match=r"out.*mp4: takes no more frames"):
            record(sink, make_result, 20)
        assert entered.is_set() and "does not answer, so the end of the video was not written" in caplog.text
        sink.close()
    finally:
        goes_on.set()
