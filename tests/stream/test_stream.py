"""`stream` on a real engine (one convolution, OpenVINO) and real files, and the command line around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from loopkit import GRAYS, Pictures, fake
from streamkit import MakeVideo, gray_image, read_video
from tiny import CLASSES, tiny_onnx

import tsss_edge.stream.live_loop
import tsss_edge.stream.thread_plan
import tsss_edge.stream.watch
import tsss_edge.stream.web
from tsss_edge.artifacts import Engine, ParityRecord
from tsss_edge.config import load_target
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.synthetic import CLASSES as SYNTHETIC
from tsss_edge.errors import ArtifactError, DataError, GateError
from tsss_edge.export.build import build_engine
from tsss_edge.inspection import inspect_path
from tsss_edge.stream.av_reader import VideoReader
from tsss_edge.stream.av_writer import VideoWriter
from tsss_edge.stream.live_loop import stream
from tsss_edge.stream.many import stream_many
from tsss_edge.stream.recorder import StreamReport
from tsss_edge.stream.watch import Checks
from tsss_edge.stream.web import WebSink

FAILED = ParityRecord(
    passed=False, miou_reference=70.0, miou_engine=61.0, miou_drop=9.0, pixel_agreement=0.8, boundary_agreement=0.5,
    images=10, max_drop=0.5, data_sha256="0" * 64,
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    model = tiny_onnx(folder / "tiny.onnx", objectness=True)
    return build_engine(model.path, load_target("cpu"), folder / "tiny.xml", precision="fp32").path


@pytest.fixture
def failed_engine(engine: Path, tmp_path: Path) -> Path:
    for file in engine.parent.glob("tiny.fp32.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Engine.load(tmp_path / engine.name).with_record(parity=FAILED)
    return tmp_path / engine.name


def classes_video(path: Path, frames: int, size_hw: tuple[int, int] = (48, 64)) -> Path:
    """Frame n has the brightness of class n % 4."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 29.97, size_hw[::-1])
    for n in range(frames):
        writer.write(gray_image(GRAYS[n % 4], size_hw))
    writer.release()
    return path


def test_a_video_becomes_a_video_and_masks_of_every_frame(engine: Path, tmp_path: Path) -> None:
    source = classes_video(tmp_path / "in.mp4", 37)
    sinks = [str(tmp_path / "out.mp4"), str(tmp_path / "out.jsonl"), f"{tmp_path}/masks/"]
    report = stream(engine, str(source), sinks)
    assert (report.frames, report.dropped, report.ended, report.runs_on) == (37, 0, "source", "openvino fp32")
    fps, frames = read_video(tmp_path / "out.mp4")
    assert fps == pytest.approx(29.97, abs=0.01) and [f.shape for f in frames] == [(48, 64, 3)] * 37
    blended = [(GRAYS[n % 4] + np.array(CLASSES.palette[n % 4][::-1])) / 2 if n % 4 else 30 for n in range(37)]
    assert all(np.allclose(f.mean((0, 1)), b, atol=12) for f, b in zip(frames, blended, strict=True))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["areas"] for line in lines] == [{CLASSES.names[n % 4]: 1.0} for n in range(37)]
    masks = sorted((tmp_path / "masks").iterdir())
    assert [np.unique(read_mask(mask)).tolist() for mask in masks] == [[n % 4] for n in range(37)]


def test_pixels_that_are_not_square_stay_so(engine: Path, tmp_path: Path) -> None:
    writer = VideoWriter(str(tmp_path / "in.mp4"), kind=".mp4", fps=25, size_hw=(48, 64), aspect=Fraction(16, 11))
    for n in range(5):
        writer.write(gray_image(GRAYS[n % 4]))
    writer.close()
    stream(engine, str(tmp_path / "in.mp4"), [str(tmp_path / "out.mp4")])
    (tmp_path / "cameras.toml").write_text(
        f'[[camera]]\nname = "v"\nuri = "{tmp_path}/in.mp4"\nsinks = ["{tmp_path}/many.mp4"]\n'
    )
    stream_many(engine, tmp_path / "cameras.toml")
    for name in ("out.mp4", "many.mp4"):
        assert VideoReader(str(tmp_path / name)).aspect == Fraction(16, 11)


def test_the_report_has_the_keys_of_the_contract(engine: Path, make_video: MakeVideo) -> None:
    report = stream(engine, str(make_video()), ["null://"])
    content = json.loads(msgspec.json.encode(report))
    assert {"frames", "dropped", "fps", "latency_ms", "stages_ms", "frame_age_ms", "parity"} <= set(content)
    assert set(content["latency_ms"]) == set(content["frame_age_ms"]) == {"p50", "p95", "p99"}
    assert set(content["stages_ms"]) == {"decode", "preprocess", "network", "upsample_argmax", "sinks"}
    assert content["parity"] is None and content["fps"] > 0
    assert msgspec.json.decode(msgspec.json.encode(report), type=StreamReport) == report
    assert "10 frames, 0 dropped" in report.summary() and "network" in report.summary()


def test_an_engine_whose_gate_failed_is_refused_unless_forced(
    failed_engine: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    sink = tmp_path / "o.mp4"
    with pytest.raises(GateError, match=r"failed its accuracy gate \(mIoU drop 9\.00, allowed 0\.5\).*--force"):
        stream(failed_engine, str(make_video()), [str(sink)])
    assert not sink.exists()
    assert stream(failed_engine, str(make_video()), [str(sink)], force=True).frames == 10


def test_why_the_gate_failed_is_told(failed_engine: Path, make_video: MakeVideo) -> None:
    """A reference that calls everything Road has no drop either."""
    engine = Engine.load(failed_engine)
    assert engine.record.parity is not None
    why = ("the reference labels every pixel Road: an engine that agrees with it proves nothing",)
    engine.with_record(parity=msgspec.structs.replace(engine.record.parity, problems=why))
    with pytest.raises(GateError, match=r"gate \(the reference labels every pixel Road.*nothing\); build one"):
        stream(failed_engine, str(make_video()), ["null://"])
    assert f"; {why[0]}" in str(inspect_path(failed_engine))


def test_what_is_no_engine_and_an_engine_that_was_changed(engine: Path, make_video: MakeVideo, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected an engine"):
        stream(engine.with_name("tiny.onnx"), str(make_video()), [])
    for file in engine.parent.glob("tiny.fp32.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tiny.fp32.bin").write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match="its hash is not the one"):
        stream(tmp_path / engine.name, str(make_video()), [])


def test_a_bad_source_or_sink_leaves_nothing_behind(engine: Path, make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(DataError, match="the file is empty"):
        stream(engine, str(tmp_path / "empty.mp4"), [str(out / "o.mp4")])
    with pytest.raises(DataError, match="unknown kind of sink"):
        stream(engine, str(make_video()), [str(out / "o.mp4"), str(out / "o.txt")])
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize("source", ["rtsp://admin:hunter2@127.0.0.1/live", "synthetic://", "{tmp}", "http://h/v.mp4"])
def test_sound_of_what_is_no_video_file_is_refused_before_the_engine(tmp_path: Path, source: str) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="--audio copies the sound of a video file; this source is none") as caught:
        stream(tmp_path / "none.xml", source.format(tmp=tmp_path), [], audio=True)
    assert "hunter2" not in str(caught.value)


def test_a_sink_never_takes_the_source_s_place(engine: Path, make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video()
    before = video.read_bytes()
    with pytest.raises(DataError, match=r"is where .* is read from"):
        stream(engine, str(video), [f"{video.parent}/../{video.parent.name}/{video.name}"])
    assert video.read_bytes() == before
    for source, sink in (("%06d.png", ""), ("*.png", "%i.png"), ("", "%06d.png"), ("", "")):
        with pytest.raises(DataError, match=r"is where .* is read from"):
            stream(engine, f"{tmp_path}/{source}", [f"file://{tmp_path}/{sink}"])


def test_a_source_that_breaks_leaves_whole_files(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Pictures(100, errors={9: DataError("in.mp4: cut short")})
    monkeypatch.setattr(tsss_edge.stream.live_loop, "open_source", lambda source, **_: broken)
    monkeypatch.setattr(tsss_edge.stream.thread_plan, "open_source", lambda source, **_: Pictures(9))
    monkeypatch.setattr(tsss_edge.stream.live_loop, "require_source", lambda source: None)
    with pytest.raises(DataError, match="cut short"):
        stream(engine, "in.mp4", [str(tmp_path / "o.mp4"), str(tmp_path / "o.jsonl")])
    assert len(read_video(tmp_path / "o.mp4")[1]) == len((tmp_path / "o.jsonl").read_text().splitlines()) == 9


def test_the_page_counts_what_the_loop_gives(
    engine: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: list[WebSink] = []
    original = tsss_edge.stream.web.open_web

    def open_and_note(*args: object, **options: object) -> WebSink:
        pages.append(original(*args, **options))  # type: ignore[arg-type]
        return pages[-1]

    monkeypatch.setattr(tsss_edge.stream.web, "open_web", open_and_note)
    stream(engine, str(make_video()), [], web="0")
    assert f"live page: {pages[0].url}" in capsys.readouterr().err
    status = pages[0].live.status()
    assert (status.frames, status.dropped, status.size) == (10, 0, (64, 48))
    assert set(status.stages_ms) == {"decode", "preprocess", "network", "upsample_argmax"}


def test_the_parity_watch_in_the_report(
    engine: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tsss_edge.stream.watch, "open_backend", lambda path, threads: fake(head="labels"))
    report = stream(engine, str(make_video()), [str(tmp_path / "o.jsonl")], reference=Path("best.pt"), parity_every=1)
    assert report.parity is not None and report.parity.due == 10
    assert report.parity.agreement == pytest.approx(1, abs=0.02)  # the engine's rule is the fake's, but for rounding
    assert "agreement" in report.summary()


def test_live_miou_only_where_the_classes_are_those_of_the_scenes() -> None:
    assert Checks.open(fake(), "synthetic://", None, 1, None).miou is None
    engine = fake()
    engine.classes = SYNTHETIC
    assert Checks.open(engine, "synthetic://", None, 1, None).accuracy is not None
    assert Checks.open(engine, "in.mp4", None, 1, None).accuracy is None


@pytest.mark.parametrize("one", [None, "dog"])
def test_live_iou_and_flicker_against_a_folder_of_masks(
    engine: Path, make_video: MakeVideo, tmp_path: Path, one: str | None
) -> None:
    """The truth is what the engine said, and a stream smoothed by nothing says it again."""
    video = str(make_video())
    stream(engine, video, [f"{tmp_path}/said/"])
    report = stream(engine, video, [], truth=tmp_path / "said", truth_class=one, smooth=0.5 if one else 0.0)
    assert report.iou is not None and report.flicker is not None
    if one is None:
        assert report.miou == 100 and report.flicker == 0 and set(report.iou) <= set(CLASSES.names)
    else:
        assert set(report.iou) == {"everything else", "dog"} and "smooth 0.5" in report.runs_on
    assert "flicker" in report.summary() and "live IoU" in report.summary()


# -- the command line ------------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'onnx', 'onnxruntime', 'fastapi'):
            raise ImportError(name + ' is hidden by the test')
sys.meta_path.insert(0, Hide())
from tsss_edge.cli import main
main()
"""


def test_ctrl_c_finishes_the_files_and_reports_without_torch(engine: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "stream", str(engine), "synthetic://?live=1&frames=0&size=96x64"]
    command += [str(tmp_path / "o.mp4"), "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        patience = threading.Timer(60.0, process.kill)  # reading has no limit of its own
        patience.start()
        first = [json.loads(process.stdout.readline()) for _ in range(5)]
        patience.cancel()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    last = json.loads(rest.splitlines()[-1])
    assert last["ended"] == "interrupted" and [line["frame"] for line in first] == sorted(
        line["frame"] for line in first
    )
    assert last["frames"] == len(read_video(tmp_path / "o.mp4")[1]) >= 5
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]


@pytest.mark.parametrize(
    ("sinks", "options", "told"),
    [
        (["null://"], {"audio": True}, "--audio is for video files that are written"),
        (["-"], {"encode": "hardware"}, "--encode hardware is for H.264"),
        (["rtsp://host/live"], {"audio": True}, "--audio is for video files that are written"),
        (["out.webm"], {"encode": "veryfast"}, "--encode veryfast is for H.264"),
        (["out.mp4?segmnt=60"], {}, "unknown setting segmnt"),
        (["out.mp4?full=never"], {}, "expected stop or go-on"),
    ],
)
def test_what_would_do_nothing_is_refused_before_the_engine_is_loaded(
    make_video: MakeVideo, tmp_path: Path, sinks: list[str], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        stream(tmp_path / "no.xml", str(make_video("v.mp4", frames=2)), sinks, **options)


def test_pictures_have_no_rate_to_leave_frames_out_by(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures/a.png"), gray_image(0))
    with pytest.raises(DataError, match=r"pictures: --policy latest drops frames .*leave it out"):
        stream(engine, str(tmp_path / "pictures"), ["null://"], policy="latest")


def test_a_pipe_is_read_once(engine: Path, make_video: MakeVideo, tmp_path: Path) -> None:
    """A trial of threads would take the frames that the stream is there for."""
    video = make_video("v.mkv", frames=6)
    os.mkfifo(tmp_path / "pipe.mkv")
    with subprocess.Popen(["sh", "-c", f"cat '{video}' > '{tmp_path}/pipe.mkv'"]) as writer:
        report = stream(engine, str(tmp_path / "pipe.mkv"), ["null://"])
        assert writer.wait(timeout=20) == 0
    assert report.frames == 6
