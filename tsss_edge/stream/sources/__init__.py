"""`open_source`: what the user wrote -> a `Source`.

Files give every frame in order. Cameras give the newest frame and come back when they are lost. Frames are BGR, never resized.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from tsss_edge.data.pictures import is_picture
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Source
from tsss_edge.stream.sources.capture import open_camera, open_csi, open_network
from tsss_edge.stream.sources.live import Capture, LiveSource, Retry
from tsss_edge.stream.sources.player import FilePlayer
from tsss_edge.stream.sources.read_ahead import ReadAhead
from tsss_edge.stream.sources.recorded import PictureSource, SyntheticSource, VideoSource, find_pictures
from tsss_edge.stream.sources.rtsp import open_rtsp
from tsss_edge.stream.uris import VIDEO_SUFFIXES, Uri, parse_source, printf_pattern

Policy = Literal["latest", "block"]
Feed: TypeAlias = "LiveSource | ReadAhead"  # one source of many: its frames are taken without waiting

__all__ = [
    "Feed",
    "LiveSource",
    "Policy",
    "Retry",
    "is_live",
    "open_feed",
    "open_source",
    "require_sound",
    "require_source",
]


def open_source(
    uri: str, *, policy: Policy | None = None, retry: Retry | None = None, decode_threads: int | None = None
) -> Source:
    """Open a source and read its first frame, so that `size_hw` and `fps` are facts.

    Args:    policy: "latest" gives the newest frame and counts the others as dropped, "block" gives every frame.
             Default: latest for live sources, block for files; a file with "latest" plays at its own rate.
             retry: how a lost live source is opened again. decode_threads: of the video decoder (default: its choice).
    Raises:  DataError: nothing there, or not readable. UnavailableError: this machine cannot open such a source.
    """
    parsed, live = parse_source(uri), is_live(uri, policy)
    if parsed.scheme == "synthetic":
        return _open_synthetic(parsed, policy, live=live)
    if parsed.scheme == "file" or _is_remote_file(parsed):
        return _open_file(parsed, decode_threads, live=live)
    return LiveSource(live_opener(parsed), name=parsed.shown, policy=policy or "latest", retry=retry or Retry())


def open_feed(
    uri: str, *, name: str, policy: Policy | None, max_fps: float | None, on_change: Callable[[], None]
) -> Feed:
    """Begin to open one source of many, which gives `max_fps` frames a second at most. A live one may come later and comes back
    as often as it must; a file is decoded ahead. What goes wrong then is the feed's `error`.

    Raises: DataError: a setting of the address is wrong.
    """
    parsed = parse_source(uri)
    if not is_live(uri, policy):
        opener = partial(open_source, uri, policy=policy, decode_threads=1)
        return ReadAhead(opener, name=name, max_fps=max_fps, on_change=on_change)
    return LiveSource(
        live_opener(parsed),
        name=name,
        policy=policy or "latest",
        retry=Retry() if parsed.scheme in ("file", "synthetic") else Retry.forever(),
        patient=True,
        max_fps=max_fps,
        on_change=on_change,
    )


def live_opener(uri: Uri) -> Callable[[], Capture]:
    """What connects to a live source. Raises: DataError: a setting is wrong, a file is not there."""
    if uri.scheme == "synthetic":
        uri.allow("size", "fps", "frames", "scene", "seed", "live")
        return lambda: FilePlayer(SyntheticSource.open(uri))
    if uri.scheme == "file":
        return lambda: FilePlayer(_open_video(Path(uri.path), 1))
    openers: dict[str, Callable[[Uri], Capture]] = {
        "camera": open_camera, "v4l2": open_camera, "csi": open_csi, "rtsp": open_rtsp, "rtsps": open_rtsp,
    }  # fmt: skip
    opener = openers.get(uri.scheme, open_network)
    return lambda: opener(uri)


def require_source(uri: str) -> None:
    """Raise what `open_source` would raise for a file, folder or pattern that is not there, before an engine is loaded."""
    parsed = parse_source(uri)
    if parsed.scheme == "file":
        if _is_pictures(parsed):
            find_pictures(parsed.path)
        elif not Path(parsed.path).exists():
            raise DataError(f"{parsed.path}: no such file or folder")


def require_sound(uri: str) -> None:
    """Raise DataError unless the source is a video file here: the sound of no other is copied."""
    parsed = parse_source(uri)
    if parsed.scheme != "file" or _is_pictures(parsed):
        raise DataError(f"{parsed.shown}: --audio copies the sound of a video file; this source is none")


def require_rate(uri: str, policy: Policy | None) -> None:
    """Raise DataError where frames are to be left out of a source that has no rate of its own."""
    if policy == "latest" and not is_live(uri, policy):
        raise DataError(
            f"{parse_source(uri).shown}: --policy latest drops frames that come too fast, and these come as they are read; leave it out"
        )


def is_live(uri: str, policy: Policy | None = None) -> bool:
    """Whether `open_source` gives a live source for these, without opening it. Raises: as `parse_source`."""
    parsed = parse_source(uri)
    if parsed.scheme == "synthetic":
        return policy == "latest" or bool(parsed.whole("live", 0))
    if parsed.scheme == "file":
        return policy == "latest" and not _is_pictures(parsed)
    return not _is_remote_file(parsed)


def _is_remote_file(uri: Uri) -> bool:
    return uri.scheme in ("http", "https") and Path(uri.path.partition("?")[0]).suffix.lower() in VIDEO_SUFFIXES


def _is_pictures(uri: Uri) -> bool:
    path = Path(uri.path)
    pattern = printf_pattern(path.name) or "*" in uri.path
    return bool(pattern) or path.is_dir() or (is_picture(path) and path.suffix.lower() not in VIDEO_SUFFIXES)


def _open_synthetic(uri: Uri, policy: Policy | None, *, live: bool) -> Source:
    if live:
        return LiveSource(live_opener(uri), name=uri.shown, policy=policy or "latest")
    uri.allow("size", "fps", "frames", "scene", "seed", "live")
    return SyntheticSource.open(uri)


def _open_file(uri: Uri, decode_threads: int | None, *, live: bool) -> Source:
    if uri.scheme != "file":
        return VideoSource(uri.text, name=uri.shown, decode_threads=decode_threads)
    if _is_pictures(uri):
        return PictureSource(find_pictures(uri.path))
    path = Path(uri.path)
    video = _open_video(path, decode_threads)
    return LiveSource(lambda: FilePlayer(video), name=str(path), policy="latest") if live else video


def _open_video(path: Path, decode_threads: int | None) -> VideoSource:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return VideoSource(str(path), name=str(path), decode_threads=decode_threads)
