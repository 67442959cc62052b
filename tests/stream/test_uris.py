"""What users write for sources and sinks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.stream.sinks import require_sinks
from tsss_edge.stream.uris import Uri, parse_sink, parse_source, printf_pattern


@pytest.mark.parametrize(
    ("text", "scheme", "path"),
    [
        ("street.mp4", "file", "street.mp4"),
        ("file://street.mp4", "file", "street.mp4"),
        ("file:///data/a b?.mp4", "file", "/data/a b?.mp4"),
        ("photos/*.jpg", "file", "photos/*.jpg"),
        ("0", "camera", "0"),
        ("/dev/video2", "v4l2", "/dev/video2"),
        ("v4l2:///dev/video0", "v4l2", "/dev/video0"),
        ("csi://1", "csi", "1"),
        ("CSI://1", "csi", "1"),
        ("rtsp://cam:554/x?a=1", "rtsp", "cam:554/x?a=1"),
        ("http://cam/video.mjpg", "http", "cam/video.mjpg"),
        ("synthetic://", "synthetic", ""),
    ],
)
def test_sources(text: str, scheme: str, path: str) -> None:
    uri = parse_source(text)
    assert (uri.scheme, uri.path) == (scheme, path)


@pytest.mark.parametrize(
    ("text", "scheme", "path"),
    [
        ("out.mp4", "file", "out.mp4"),
        ("file://masks/", "file", "masks/"),
        ("log.jsonl", "jsonl", "log.jsonl"),
        ("file://log.jsonl", "jsonl", "log.jsonl"),
        ("-", "jsonl", "-"),
        ("display://0", "display", "0"),
        ("null://", "null", ""),
    ],
)
def test_sinks(text: str, scheme: str, path: str) -> None:
    uri = parse_sink(text)
    assert (uri.scheme, uri.path) == (scheme, path)


def test_query_values() -> None:
    uri = parse_source("synthetic://?size=640x480&fps=29.97&frames=300")
    assert uri.size_hw(None) == (480, 640)
    assert uri.number("fps", 1.0) == 29.97
    assert uri.whole("frames", 1) == 300
    assert uri.whole("seed", 7) == 7
    uri.allow("size", "fps", "frames")


@pytest.mark.parametrize("query", ["fps=fast", "fps=-1", "fps=nan", "fps=inf", "fps="])
def test_a_bad_number_is_named(query: str) -> None:
    with pytest.raises(DataError, match="expected a number"):
        parse_source(f"synthetic://?{query}").number("fps", 30.0)


@pytest.mark.parametrize("size", ["640", "0x480", "640*480", "axb"])
def test_a_bad_size_is_named(size: str) -> None:
    with pytest.raises(DataError, match="WIDTHxHEIGHT"):
        parse_source(f"synthetic://?size={size}").size_hw(None)


def test_half_a_frame_is_refused() -> None:
    with pytest.raises(DataError, match="whole number"):
        parse_source("synthetic://?frames=1.5").whole("frames", 1)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(DataError, match="unknown setting sise"):
        parse_source("synthetic://?sise=1x1").allow("size")


@pytest.mark.parametrize("text", ["", "ftp://x", "ndi://x"])
def test_unknown_sources(text: str) -> None:
    with pytest.raises(DataError, match="expected a path"):
        parse_source(text)


@pytest.mark.parametrize("text", ["webrtc://@:8554/x", "rtp://1.2.3.4:5"])
def test_sinks_of_jetson_inference_that_we_lack_say_what_to_use(text: str) -> None:
    with pytest.raises(UnavailableError, match=r"use|--web"):
        parse_sink(text)


def test_half_an_address_is_refused() -> None:
    with pytest.raises(DataError, match="rtsp://: not an address"):
        parse_source("rtsp://[cam/1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("o.mp4", "./o.mp4"),
        ("o.mp4?segment=60", "{here}/o.mp4"),
        ("o.jsonl", "file://o.jsonl"),
        ("masks/", "masks/%06d.png"),
        ("rtsp://host/x", "rtsp://host/x"),
    ],
)
def test_one_file_is_not_for_two_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="two sinks write the same file; give each its own"):
        require_sinks([one, "null://", other.format(here=tmp_path)])
    require_sinks([one, "null://", "null://", "p.mp4", "p.mkv", "masks/%06d.jpg"])


def test_a_password_is_not_shown() -> None:
    assert parse_source("rtsp://me:secret@cam:554/x").shown == "rtsp://me:***@cam:554/x"
    assert parse_source("rtsp://cam:554/x").shown == "rtsp://cam:554/x"
    assert Uri("a:b@c.mp4", "file", "a:b@c.mp4").shown == "a:b@c.mp4"


@pytest.mark.parametrize(
    ("name", "field"), [("%06d.png", "%06d"), ("a%i.jpg", "%i"), ("100%.png", None), ("a.png", None)]
)
def test_number_fields(name: str, field: str | None) -> None:
    assert printf_pattern(name) == field
