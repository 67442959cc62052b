"""Files, pictures and synthetic scenes as sources, and what they say about bad ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from streamkit import MakeVideo, gray_image

from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.stream.frames import Frame, Source
from tsss_edge.stream.sources import Policy, capture, is_live, open_source, require_source, rtsp
from tsss_edge.stream.sources.capture import csi_pipeline, has_gstreamer
from tsss_edge.stream.sources.live import LiveSource
from tsss_edge.stream.sources.recorded import SCENE_FRAMES, SyntheticSource, find_pictures
from tsss_edge.stream.uris import parse_source


def read_all(source: Source) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    source.close()
    return frames


def test_a_video_gives_every_frame_in_order(make_video: MakeVideo) -> None:
    source = open_source(str(make_video(frames=12, fps=29.97)))
    assert (source.live, source.size_hw, source.length, source.state) == (False, (48, 64), 12, "OPEN")
    assert source.fps == pytest.approx(29.97, abs=1e-6)
    frames = read_all(source)
    assert [f.index for f in frames] == list(range(12))
    assert [round(float(f.image.mean()), -1) for f in frames] == [20 + 10 * n for n in range(12)]
    assert all(a.captured <= b.captured for a, b in itertools.pairwise(frames))
    assert source.state == "ENDED"
    assert source.read() is None


def test_file_uri_and_threads(make_video: MakeVideo) -> None:
    assert len(read_all(open_source(f"file://{make_video(frames=3)}", decode_threads=1))) == 3


def test_an_empty_video(tmp_path: Path) -> None:
    (tmp_path / "e.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"e\.mp4: the file is empty \(0 bytes\)"):
        open_source(str(tmp_path / "e.mp4"))


def test_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "t.mp4").write_text("this is text\n" * 100)
    with pytest.raises(DataError, match="not a readable video"):
        open_source(str(tmp_path / "t.mp4"))


def test_a_cut_video_without_its_index(make_video: MakeVideo, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_video(frames=30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # the index stands at the end
    with pytest.raises(DataError, match="cut short"):
        open_source(str(path))
    assert capfd.readouterr().err == ""  # FFmpeg does not add lines of its own


def test_a_video_that_ends_early_is_reported_after_its_frames(make_video: MakeVideo) -> None:
    path = make_video(frames=30)
    data = bytearray(path.read_bytes())
    start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[(start + stop) // 2 : stop] = b"\0" * (stop - (start + stop) // 2)  # the second half of the pictures is gone
    path.write_bytes(data)
    source, frames = open_source(str(path)), []
    with pytest.raises(DataError) as told:
        while (frame := source.read()) is not None:
            frames.append(frame)
    assert 0 < len(frames) < 30 and f"ends after {len(frames)} of 30 frames" in str(told.value)
    assert source.state == "ENDED"


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_source(str(tmp_path / "none.mp4"))


def write_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for n, name in enumerate(names):
        cv2.imwrite(str(folder / name), gray_image(10 * n, (8 + n, 16)))


def test_pictures_come_in_natural_order_and_own_size(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", ["a1.png", "a2.png", "a10.png"])
    (tmp_path / "p/notes.txt").write_text("no picture")
    source = open_source(str(tmp_path / "p"))
    assert (source.length, source.fps, source.size_hw) == (3, 0.0, (8, 16))
    frames = read_all(source)
    assert [f.image.shape[0] for f in frames] == [8, 9, 10]
    assert [int(f.image[0, 0, 0]) for f in frames] == [0, 10, 20]
    assert source.size_hw == (10, 16)


def test_pictures_are_bgr(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200  # blue, in OpenCV's order
    cv2.imwrite(str(tmp_path / "b.png"), image)
    frame = open_source(str(tmp_path / "b.png")).read()
    assert frame is not None and np.array_equal(frame.image, image)


def test_globs_and_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "p", ["f_001.png", "f_002.png", "other.png", "f_x.png"])
    assert [p.name for p in find_pictures(str(tmp_path / "p/f_%03d.png"))] == ["f_001.png", "f_002.png"]
    assert len(find_pictures(str(tmp_path / "p/f_*.png"))) == 3
    monkeypatch.chdir(tmp_path)
    assert len(read_all(open_source("p/*.png"))) == 4


@pytest.mark.parametrize("what", ["*.png", "%i.png", "", "x.png"])
def test_no_pictures(tmp_path: Path, what: str) -> None:
    with pytest.raises(DataError, match="no picture there"):
        open_source(f"{tmp_path}/{what}")


def test_a_glob_of_videos_is_refused(make_video: MakeVideo) -> None:
    with pytest.raises(DataError, match="one video at a time"):
        open_source(str(make_video().parent / "*.mp4"))


def test_a_truncated_picture_is_named_and_passed_over(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for name in ("a", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), noise)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    source = open_source(str(tmp_path))
    assert [f.index for f in read_all(source)] == [0, 1]
    assert [line.split(":")[0] for line in source.unreadable] == [str(tmp_path / "b.jpg")]  # type: ignore[attr-defined]


def test_nothing_but_truncated_pictures(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"b\.jpg: not a readable picture"):
        open_source(str(tmp_path))


def render(scene: int, t: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = scene  # red, RGB
    image[..., 2] = round(t * 10)
    return image, np.full((4, 6), scene, np.uint8)


def test_synthetic_frames_carry_truth_and_count_scenes() -> None:
    source = SyntheticSource(render, size_hw=(4, 6), fps=10.0, frames=SCENE_FRAMES + 2)
    frames = read_all(source)
    assert len(frames) == SCENE_FRAMES + 2
    last = frames[-1]
    assert last.truth is not None and int(last.truth[0, 0]) == 1
    assert tuple(last.image[0, 0]) == (1, 0, 1)  # BGR: blue is time 0.1 s, red is scene 1
    assert int(frames[SCENE_FRAMES - 1].image[0, 0, 0]) == SCENE_FRAMES - 1


def test_synthetic_settings() -> None:
    pytest.importorskip("tsss_edge.data.synthetic")
    source = open_source("synthetic://?size=96x64&frames=2&seed=3&fps=12.5")
    assert (source.live, source.size_hw, source.length, source.fps) == (False, (64, 96), 2, 12.5)
    frames = read_all(source)
    assert [f.image.shape for f in frames] == [(64, 96, 3)] * 2
    assert all(f.truth is not None and f.truth.shape == (64, 96) for f in frames)
    again = read_all(open_source("synthetic://?size=96x64&frames=2&seed=3&fps=12.5"))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, again, strict=True))


def test_synthetic_scenes_have_a_least_size() -> None:
    with pytest.raises(DataError, match=r"synthetic://\?size=16x16: .*32"):
        open_source("synthetic://?size=16x16")


def test_synthetic_live() -> None:
    pytest.importorskip("tsss_edge.data.synthetic")
    source = open_source("synthetic://?size=64x64&frames=3&live=1&fps=100", policy="block")
    assert isinstance(source, LiveSource) and source.live
    frames = read_all(source)
    assert [f.index for f in frames] == list(range(len(frames)))
    assert source.arrived == len(frames) + source.dropped == 3  # a busy machine may be late for one: it is counted


def test_an_unknown_setting() -> None:
    with pytest.raises(DataError, match="unknown setting colour"):
        open_source("synthetic://?colour=red")


def test_no_such_camera() -> None:
    with pytest.raises(DataError, match="no such camera"):
        open_source("97")
    with pytest.raises(DataError, match="/dev/videoN"):
        open_source("v4l2:///dev/sda")


@pytest.mark.parametrize(("set_by", "transport"), [("a camera beside it", "tcp"), ("the user", "udp")])
def test_rtsp_keeps_its_options_while_another_camera_is_opened(
    monkeypatch: pytest.MonkeyPatch, set_by: str, transport: str
) -> None:
    """OpenCV takes FFmpeg's options from the environment, so `http://` sets them there for a moment."""
    asked: list[dict[str, str]] = []

    def opened(text: str, options: dict[str, str], timeout: object) -> None:
        asked.append(options)
        raise OSError("nobody")

    monkeypatch.setattr(rtsp.av, "open", opened)
    wish = "rtsp_transport;udp" if set_by == "the user" else capture.HTTP_OPTIONS
    monkeypatch.setenv(capture.FFMPEG_OPTIONS, wish)
    with pytest.raises(DataError, match="cannot be opened"):
        open_source("rtsp://camera/x")
    assert asked[0]["rtsp_transport"] == transport


def test_csi_pipeline() -> None:
    text = csi_pipeline(parse_source("csi://1?size=1920x1080&fps=60"))
    assert "sensor-id=1 " in text and "width=1920, height=1080, framerate=60/1" in text
    assert text.endswith("appsink drop=true max-buffers=1 sync=false")
    with pytest.raises(DataError, match="csi://NUMBER"):
        csi_pipeline(parse_source("csi://left"))


def test_csi_without_gstreamer_says_the_fix() -> None:
    if has_gstreamer():
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(UnavailableError, match=r"no GStreamer.*python3-opencv"):
        open_source("csi://0")


def test_a_network_camera_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"rtsp://me:\*\*\*@127.0.0.1:9/x: cannot be opened"):
        open_source("rtsp://me:secret@127.0.0.1:9/x")


@pytest.mark.parametrize("policy", [None, "latest", "block"])
@pytest.mark.parametrize(
    "name", ["v.mp4", "", "*.png", "p.png", "synthetic://?frames=3", "synthetic://?frames=3&live=1"]
)
def test_live_is_known_before_a_source_is_opened(
    tmp_path: Path, make_video: MakeVideo, name: str, policy: Policy | None
) -> None:
    make_video("v.mp4", frames=3)
    cv2.imwrite(str(tmp_path / "p.png"), gray_image(50))
    uri = name if "://" in name else str(tmp_path / name)
    source = open_source(uri, policy=policy)
    assert is_live(uri, policy) == source.live
    source.close()


def test_cameras_and_network_streams_are_live_and_remote_files_are_not() -> None:
    assert is_live("0") and is_live("csi://0") and is_live("rtsp://host/cam") and is_live("http://host/video.mjpg")
    assert not is_live("https://host/v.mp4?signature=1")


def test_what_is_not_there_is_told_before_an_engine_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"")
    for there in (str(tmp_path / "v.mp4"), "rtsp://127.0.0.1/gate", "synthetic://"):
        require_source(there)
    with pytest.raises(DataError, match="no such file or folder"):
        require_source(str(tmp_path / "none.mp4"))
    with pytest.raises(DataError):
        require_source(str(tmp_path))  # a folder without pictures
