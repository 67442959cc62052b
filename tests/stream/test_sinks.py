"""Sinks: what they write is read back."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from streamkit import MakeResult, read_video

from tsss_edge.artifacts import Classes
from tsss_edge.data.pictures import read_mask
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.stream.frames import Sink
from tsss_edge.stream.sinks import class_areas, label_histogram, open_sinks

CLASSES = Classes(names=("background", "cat", "dog"))


def open_one(uri: str | Path, *, fps: float = 25.0, size_hw: tuple[int, int] = (48, 64)) -> Sink:
    (sink,) = open_sinks([str(uri)], fps=fps, size_hw=size_hw, classes=CLASSES)
    return sink


@pytest.mark.parametrize("fps", [25.0, 29.97, 12.5, 239.651])
@pytest.mark.parametrize("name", ["o.mp4", "o.mkv", "o.avi"])
def test_a_video_has_the_size_rate_and_frames_of_its_source(
    tmp_path: Path, make_result: MakeResult, fps: float, name: str
) -> None:
    sink = open_one(tmp_path / "new" / name, fps=fps)
    assert sink.wants_overlay
    for n in range(10):
        sink.write(make_result(n, value=20 + 20 * n))
    assert not (tmp_path / "new" / name).exists()
    sink.close()
    sink.close()
    got_fps, frames = read_video(tmp_path / "new" / name)
    assert got_fps == pytest.approx(fps, abs=0.01)
    assert [f.shape for f in frames] == [(48, 64, 3)] * 10
    assert [round(float(f.mean()) / 20) for f in frames] == list(range(1, 11))
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


def test_odd_sizes_are_padded_by_their_edge(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_one(tmp_path / "o.mp4", size_hw=(49, 65))
    sink.write(make_result(size_hw=(49, 65)))
    sink.close()
    _, (frame,) = read_video(tmp_path / "o.mp4")
    assert frame.shape == (50, 66, 3)
    assert abs(float(frame[-1].mean()) - 100) < 4 and abs(float(frame[:, -1].mean()) - 100) < 4


def test_a_frame_of_another_size_is_letterboxed(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_one(tmp_path / "o.mp4")
    sink.write(make_result(0))
    sink.write(make_result(1, size_hw=(48, 32)))  # half as wide: 16 black columns on each side
    sink.close()
    _, frames = read_video(tmp_path / "o.mp4")
    assert [f.shape for f in frames] == [(48, 64, 3)] * 2
    assert frames[1][:, :12].mean() < 10 and frames[1][:, 52:].mean() < 10
    assert abs(float(frames[1][:, 20:44].mean()) - 100) < 6


def test_a_video_without_frames_leaves_nothing(tmp_path: Path) -> None:
    open_one(tmp_path / "o.mp4").close()
    assert list(tmp_path.iterdir()) == []


def test_an_older_video_stays_until_the_new_one_is_whole(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "o.mp4").write_bytes(b"old")
    sink = open_one(tmp_path / "o.mp4")
    sink.write(make_result())
    assert (tmp_path / "o.mp4").read_bytes() == b"old"
    sink.close()
    assert (tmp_path / "o.mp4").read_bytes() != b"old"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri in ("file/o.mp4", "file/o.jsonl", "file/masks/"):
        with pytest.raises(DataError, match="cannot write there"):
            open_one(f"{tmp_path}/{uri}")


def test_json_lines(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_one(tmp_path / "o.jsonl")
    assert not sink.wants_overlay
    sink.write(make_result(0, captured=5.0))
    result = make_result(3, captured=5.125)
    result.parity, result.dropped = {"agreement": 0.99}, 2
    sink.write(result)
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]  # there before close
    sink.close()
    sink.close()
    assert lines[0] == {
        "frame": 0, "time_s": 0.0, "size": [64, 48], "areas": {"background": 0.5, "cat": 0.5},
        "age_ms": 12.0, "stages_ms": {"infer": 1.5}, "dropped": 0,
    }  # fmt: skip
    assert (lines[1]["frame"], lines[1]["time_s"], lines[1]["dropped"]) == (3, 0.125, 2)
    assert lines[1]["parity"] == {"agreement": 0.99}


def test_times_of_a_video_are_its_own_and_not_those_of_decoding(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_one(tmp_path / "o.jsonl")
    for n in range(3):
        result = make_result(n, captured=5.0 + n / 1000)
        result.frame.time_s = 2.0 + n / 25
        sink.write(result)
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["time_s"] for line in lines] == [0.0, 0.04, 0.08]


def test_json_lines_to_standard_output(make_result: MakeResult, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sink = open_one("-")
    sink.write(make_result())
    sink.close()
    assert json.loads(capfdbinary.readouterr().out)["frame"] == 0


def test_histogram_and_areas() -> None:
    labels = np.array([[0, 1, 1, 255]], np.uint8)
    assert label_histogram(labels)[[0, 1, 2, 255]].tolist() == [1, 2, 0, 1]
    assert class_areas(labels, CLASSES) == {"background": 0.25, "cat": 0.5}
    big = np.full((1080, 1920), 2, np.uint8)
    assert label_histogram(big)[2] == 1080 * 1920
    assert np.array_equal(label_histogram(np.arange(256, dtype=np.uint8).reshape(16, 16)), np.ones(256, np.int64))


def test_index_pngs_are_lossless(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_one(f"{tmp_path}/masks/")
    assert not sink.wants_overlay
    for index in (0, 7):
        sink.write(make_result(index))
    sink.close()
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["000000.png", "000007.png"]
    assert np.array_equal(read_mask(tmp_path / "masks/000007.png"), make_result().labels)


@pytest.mark.parametrize(("name", "made"), [("m_%03d.png", "m_012.png"), ("%i.png", "12.png")])
def test_picture_patterns(tmp_path: Path, make_result: MakeResult, name: str, made: str) -> None:
    sink = open_one(tmp_path / name)
    sink.write(make_result(12))
    assert (tmp_path / made).is_file()


def test_jpegs_hold_the_overlay(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_one(tmp_path / "%d.jpg")
    assert sink.wants_overlay
    sink.write(make_result(4))
    image = cv2.imread(str(tmp_path / "4.jpg"))
    assert image is not None and abs(float(image.mean()) - 100) < 3


def test_one_name_takes_one_picture(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_one(tmp_path / "m.png")
    sink.write(make_result(0))
    with pytest.raises(DataError, match=r"%06d\.png"):
        sink.write(make_result(1))


def test_null(make_result: MakeResult) -> None:
    sink = open_one("null://")
    sink.write(make_result())
    sink.close()
    assert not sink.wants_overlay


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UnavailableError, match="no display"):
        open_one("display://0")


@pytest.mark.parametrize("name", ["o.txt", "o", "frames%i.txt"])
def test_unknown_sinks(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="unknown kind of sink"):
        open_one(tmp_path / name)


def test_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        open_sinks([f"{tmp_path}/a.mp4", f"{tmp_path}/b.txt"], fps=25.0, size_hw=(48, 64), classes=CLASSES)
    assert list(tmp_path.iterdir()) == []
