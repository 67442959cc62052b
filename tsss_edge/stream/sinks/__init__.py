"""`open_sinks`: what the user wrote -> sinks for the results of the live loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tsss_edge.artifacts import Classes
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import Sink
from tsss_edge.stream.sinks.jsonl import JsonLinesSink
from tsss_edge.stream.sinks.pictures import PictureSink
from tsss_edge.stream.sinks.video import SINK_SUFFIXES, VideoSink
from tsss_edge.stream.sinks.window import WindowSink
from tsss_edge.stream.uris import Uri, parse_sink, printf_pattern

__all__ = ["JsonLinesSink", "NullSink", "PictureSink", "VideoSink", "WindowSink", "open_sinks"]

DEFAULT_FPS = 30.0  # of a video made from a source without a rate (pictures); what jetson-inference uses


class NullSink:
    """`null://`: takes everything, keeps nothing; for measuring."""

    wants_overlay = False

    def write(self, result: object) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_sinks(uris: Sequence[str], *, fps: float, size_hw: tuple[int, int], classes: Classes) -> list[Sink]:
    """Open every sink, or none: when one cannot be opened, those before it are closed again.

    Args:    fps, size_hw: of the source (`fps` 0: unknown); a video gets the same.
    Raises:  DataError: unknown or unwritable. UnavailableError: no display, or a sink that we lack.
    """
    with ExitStack() as opened:
        sinks: list[Sink] = []
        for text in uris:
            sink = _open_sink(parse_sink(text), fps or DEFAULT_FPS, size_hw, classes)
            opened.callback(sink.close)
            sinks.append(sink)
        opened.pop_all()
        return sinks


def _open_sink(uri: Uri, fps: float, size_hw: tuple[int, int], classes: Classes) -> Sink:
    if uri.scheme == "null":
        return NullSink()
    if uri.scheme == "display":
        return WindowSink()
    if uri.scheme == "jsonl":
        return JsonLinesSink(uri.path, classes)
    return _open_file_sink(Path(uri.path), uri.path, fps, size_hw)


def _open_file_sink(path: Path, text: str, fps: float, size_hw: tuple[int, int]) -> Sink:
    suffix = path.suffix.lower()
    if suffix in SINK_SUFFIXES:
        return VideoSink(path, fps=fps, size_hw=size_hw)
    if text.endswith("/") or path.is_dir():
        return PictureSink(str(path / "%06d.png"))
    if suffix in (".png", ".jpg", ".jpeg"):
        return PictureSink(text)
    field = " (a number field needs .png or .jpg after it)" if printf_pattern(path.name) else ""
    raise DataError(
        f"{text}: unknown kind of sink{field}; expected NAME{'|'.join(SINK_SUFFIXES)}, NAME.jsonl, -, FOLDER/, "
        "NAME%06d.png, display://0 or null://"
    )
