"""What a user writes for a source or a sink -> a checked `Uri`. Spellings of jetson-inference are accepted.

Sources: path, glob, folder, `file://x.mp4`, `images/%i.jpg`, `0`, `/dev/video0`, `v4l2:///dev/video0`, `csi://0`,
`rtsp://`, `http://`, `synthetic://`. Sinks: `x.mp4`, `x.mp4?segment=60`, `x.jsonl`, `-`, `masks/`, `masks/%06d.png`, `display://0`,
`null://`. A query gives settings: `csi://0?size=1280x720&fps=60`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from tsss_edge.errors import DataError, UnavailableError, masked

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".avi",
    ".webm",
    ".ts",
    ".mpg",
    ".mpeg",
    ".flv",
    ".wmv",
    ".h264",
    ".gif",
)

RECORDED = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m3u8")  # files whose name may be followed by settings
FOLDER_NAME = "%06d.png"  # of the masks in a folder
SOURCE_SCHEMES = ("file", "camera", "v4l2", "csi", "rtsp", "rtsps", "http", "https", "synthetic")
SINK_SCHEMES = ("file", "jsonl", "display", "null", "rtsp", "rtsps")
_FOREIGN = {  # jetson-inference has these, we do not: what to use instead
    "webrtc": "the web page (`--web`) shows the live masks in a browser",
    "rtp": "use rtsp:// for a network camera",
    "rtmp": "use rtsp:// for a network camera",
}


@dataclass(frozen=True)
class Uri:
    """`scheme://rest?query`, taken apart. `text` is what the user wrote, `shown` the same without a password."""

    text: str
    scheme: str
    path: str  # for files the path as the operating system wants it, for cameras the index or device
    query: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The text for logs and messages, with `***` in place of a password."""
        return masked(self.text)

    def allow(self, *names: str) -> None:
        """Raise DataError when the query holds a setting other than `names`."""
        if unknown := sorted(set(self.query) - set(names)):
            known = ", ".join(names) or "none"
            raise DataError(f"{self.shown}: unknown setting {', '.join(unknown)}; {self.scheme}:// takes {known}")

    def number(self, name: str, default: float, *, minimum: float = 0.0) -> float:
        """A numeric setting. Raises: DataError: not a finite number, or below `minimum`."""
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value < float("inf"):
            raise DataError(f"{self.shown}: {name}={text}; expected a number, at least {minimum:g}")
        return value

    def whole(self, name: str, default: int, *, minimum: int = 0) -> int:
        """A whole-number setting. Raises: DataError: not whole, or below `minimum`."""
        value = self.number(name, default, minimum=minimum)
        if value != int(value):
            raise DataError(f"{self.shown}: {name}={self.query[name]}; expected a whole number")
        return int(value)

    def size_hw(self, default: tuple[int, int] | None) -> tuple[int, int] | None:
        """The `size=WIDTHxHEIGHT` setting as (height, width) pixels. Raises: DataError: anything else."""
        text = self.query.get("size")
        if text is None:
            return default
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.lower())
        if match is None or min(int(match[1]), int(match[2])) < 1:
            raise DataError(f"{self.shown}: size={text}; expected WIDTHxHEIGHT, for example size=640x480")
        return int(match[2]), int(match[1])


def parse_source(text: str) -> Uri:
    """A source as the user wrote it -> `Uri` with one of SOURCE_SCHEMES.

    Raises: DataError: empty, or an unknown scheme. UnavailableError: a jetson-inference source that we lack.
    """
    if text.isdecimal():
        return Uri(text, "camera", text)
    if text.startswith("/dev/video"):
        return Uri(text, "v4l2", text)
    return _parse(text, SOURCE_SCHEMES, "source", foreign=("webrtc", "rtp", "rtmp"))


def parse_sink(text: str) -> Uri:
    """A sink as the user wrote it -> `Uri` with one of SINK_SCHEMES. Raises: as `parse_source`."""
    if text == "-" or text.endswith(".jsonl"):
        return Uri(text, "jsonl", text.removeprefix("file://"))
    uri = _parse(text, SINK_SCHEMES, "sink", foreign=("webrtc", "rtp", "rtmp"))
    path, mark, query = uri.path.rpartition("?")
    if uri.scheme == "file" and mark and path.lower().endswith(RECORDED) and re.fullmatch(r"[a-z]+=[^?]*", query):
        return Uri(text, "file", path, dict(parse_qsl(query, keep_blank_values=True)))  # out.mp4?segment=60
    return uri


def _parse(text: str, schemes: tuple[str, ...], kind: str, *, foreign: tuple[str, ...]) -> Uri:
    if not text:
        raise DataError(f"an empty {kind}; expected a path or one of {', '.join(s + '://' for s in schemes)}")
    if "://" not in text:
        return Uri(text, "file", text)
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme in foreign:
        raise UnavailableError(f"{scheme}:// as a {kind} is not supported; {_FOREIGN[scheme]}")
    if scheme not in schemes:
        raise DataError(f"{text}: unknown {kind} {scheme}://; expected a path, {', '.join(s + '://' for s in schemes)}")
    if scheme in ("rtsp", "rtsps", "http", "https"):
        try:
            urlsplit(text)
        except ValueError as error:
            raise DataError(f"{scheme}://: not an address ({error})") from error
        return Uri(text, scheme, rest)  # their query belongs to the server
    if scheme == "file":
        return Uri(text, scheme, rest)  # a file name may hold a question mark
    path, _, query = rest.partition("?")
    return Uri(text, scheme, path, dict(parse_qsl(query, keep_blank_values=True)))


def require_other_place(sinks: Iterable[str], sources: Iterable[str]) -> None:
    """Raise DataError when a file sink would write over the file, or into the pictures, that one of the sources reads."""
    read = {_place(source): source for source in map(parse_source, sources) if source.scheme == "file"}
    for sink in map(parse_sink, sinks):
        if sink.scheme == "file" and (source := read.get(_place(sink))) is not None:
            raise DataError(f"{sink.text}: is where {source.shown} is read from; write somewhere else")


def require_apart(sinks: Iterable[str]) -> None:
    """Raise DataError when two sinks write the same file: each would destroy what the other wrote."""
    seen = dict[str, str]()
    for uri in map(parse_sink, sinks):
        if uri.scheme in ("null", "display"):
            continue
        place = str(_written(uri)) if uri.scheme in ("file", "jsonl") else uri.text
        if place in seen:
            raise DataError(f"{seen[place]} and {uri.shown}: two sinks write the same file; give each its own")
        seen[place] = uri.shown


def _written(uri: Uri) -> Path:
    """The file, or the pictures, that a sink writes."""
    path = Path(uri.path)
    return (path / FOLDER_NAME if uri.path.endswith("/") or path.is_dir() else path).resolve()


def _place(uri: Uri) -> Path:
    """A file or folder; of a glob or numbered pictures, their folder."""
    path = Path(uri.path)
    return (path.parent if glob.has_magic(path.name) or printf_pattern(path.name) else path).resolve()


def printf_pattern(name: str) -> str | None:
    """The number field of a sequence name (`%i`, `%d`, `%06d`), or None. `%i` counts as `%d`, as in jetson-inference."""
    match = re.search(r"%(0\d+)?[di]", name)
    return match[0] if match else None
