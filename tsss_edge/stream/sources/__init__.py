"""`open_source`: what the user wrote -> a `Source`.

Files give every frame in order. Cameras give the newest frame and come back when they are lost. Frames are BGR, never resized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Source
from tsss_edge.stream.sources.capture import open_camera, open_csi, open_network
from tsss_edge.stream.sources.live import FilePlayer, LiveSource, Retry
from tsss_edge.stream.sources.recorded import PictureSource, SyntheticSource, VideoSource, find_pictures
from tsss_edge.stream.uris import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Uri, parse_source, printf_pattern

Policy = Literal["latest", "block"]

__all__ = ["LiveSource", "Policy", "Retry", "is_live", "open_source"]


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
    openers = {"camera": open_camera, "v4l2": open_camera, "csi": open_csi}
    opener = openers.get(parsed.scheme, open_network)
    return LiveSource(lambda: opener(parsed), name=parsed.shown, policy=policy or "latest", retry=retry or Retry())


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
    return bool(pattern) or path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES


def _open_synthetic(uri: Uri, policy: Policy | None, *, live: bool) -> Source:
    uri.allow("size", "fps", "frames", "seed", "live")
    if live:
        return LiveSource(lambda: FilePlayer(SyntheticSource.open(uri)), name=uri.shown, policy=policy or "latest")
    return SyntheticSource.open(uri)


def _open_file(uri: Uri, decode_threads: int | None, *, live: bool) -> Source:
    if uri.scheme != "file":
        return VideoSource(uri.text, name=uri.shown, decode_threads=decode_threads)
    if _is_pictures(uri):
        return PictureSource(find_pictures(uri.path))
    path = Path(uri.path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    video = VideoSource(str(path), name=str(path), decode_threads=decode_threads)
    return LiveSource(lambda: FilePlayer(video), name=str(path), policy="latest") if live else video
