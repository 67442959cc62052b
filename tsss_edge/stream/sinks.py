"""`open_sinks`: what the user wrote -> sinks for the results of the live loop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes
from tsss_edge.data.voc import write_mask
from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.files import write_bytes
from tsss_edge.stream.av_writer import ENCODINGS, H264, WRITABLE, kind_of
from tsss_edge.stream.frames import FrameResult, Sink
from tsss_edge.stream.recording import RecordingPlan, RecordingSink
from tsss_edge.stream.uris import FOLDER_NAME, Uri, parse_sink, printf_pattern, require_apart
from tsss_edge.stream.video_sink import VideoSink, writable

DEFAULT_FPS = 30.0  # of a video made from a source without a rate (pictures); what jetson-inference uses
WINDOW_TITLE = "tsss-edge (q quits)"


def open_sinks(
    uris: Sequence[str],
    *,
    fps: float,
    size_hw: tuple[int, int],
    classes: Classes,
    audio_from: str | None = None,
    **encoding: Any,
) -> list[Sink]:
    """Open every sink, or none: when one cannot be opened, those before it are closed again.

    Args:    fps, size_hw: of the source (`fps` 0: unknown); a video gets the same. audio_from: a file whose sound it gets.
             encoding: `colour`, `aspect`, `preset` and `live` of `VideoSink`.
    Raises:  DataError: unknown or unwritable. UnavailableError: no display, or a sink that we lack.
    """
    with ExitStack() as opened:
        sinks: list[Sink] = []
        for text in uris:
            encoding |= {"fps": fps or DEFAULT_FPS, "size_hw": size_hw}
            sink = _open_sink(parse_sink(text), classes, audio_from, encoding)
            opened.callback(sink.close)
            sinks.append(sink)
        opened.pop_all()
        return sinks


def _open_sink(uri: Uri, classes: Classes, audio_from: str | None, encoding: dict[str, Any]) -> Sink:
    if uri.scheme == "null":
        return NullSink()
    if uri.scheme == "display":
        return WindowSink()
    if uri.scheme == "jsonl":
        return JsonLinesSink(uri.path, classes)
    if uri.scheme in ("rtsp", "rtsps"):
        return VideoSink(uri.text, **encoding)
    if kind_of(uri.path) is not None:
        return RecordingSink(uri, lambda path: VideoSink(path, audio_from=audio_from, **encoding))
    return PictureSink(_pattern_of(uri.path))


def wants_blend(text: str) -> bool:
    """Whether a sink, as the user wrote it, shows blended pictures: all but masks, JSON lines and `null://` do."""
    uri = parse_sink(text)
    if uri.scheme == "file" and kind_of(uri.path) is None:
        return not uri.path.endswith("/") and Path(uri.path).suffix.lower() in (".jpg", ".jpeg")
    return uri.scheme not in ("null", "jsonl")


def write_to(sinks: Sequence[Sink], result: FrameResult) -> None:
    """Hand a result to every sink; its age is that of now, the sinks' time its stage `sinks`."""
    now = time.monotonic()
    result.age_ms = (now - result.frame.captured) * 1000
    for sink in sinks:
        sink.write(result)
    result.stages_ms["sinks"] = (time.monotonic() - now) * 1000


def require_sinks(uris: Sequence[str]) -> None:
    """Raise what `open_sinks` would raise for a name of no known kind or a setting, before anything is opened; and DataError for
    one file twice."""
    require_apart(uris)
    for text in uris:
        uri = parse_sink(text)
        if uri.scheme == "file" and kind_of(uri.path) is None:
            _pattern_of(uri.path)
        elif uri.scheme == "file":
            RecordingPlan.of(uri)


def require_sound_sink(uris: Sequence[str]) -> None:
    """Raise DataError unless a sink is a video file: no other gets sound."""
    if not any(kind in WRITABLE for kind in _kinds(uris)):
        raise DataError("--audio is for video files that are written, and no sink is one; add out.mp4, or leave it out")


def require_h264_sink(uris: Sequence[str], preset: str) -> None:
    """Raise DataError unless a sink is written as H.264: for no other does the encoder's preset say anything."""
    if not any(ENCODINGS[kind].codec == H264 for kind in _kinds(uris)):
        raise DataError(f"--encode {preset} is for H.264, and no sink is written so; add out.mp4, or leave it out")


def _kinds(uris: Sequence[str]) -> Iterator[str]:
    """Keys of ENCODINGS of the videos among the sinks."""
    for text in uris:
        uri = parse_sink(text)
        if kind := kind_of(uri.text) or kind_of(uri.path):
            yield kind


def _pattern_of(text: str) -> str:
    """Where a sink of pictures writes: `NAME%06d.png`, or such names in a folder. Raises: DataError: it is neither."""
    path = Path(text)
    if text.endswith("/") or path.is_dir():
        return str(path / FOLDER_NAME)
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        return text
    field = " (a number field needs .png or .jpg after it)" if printf_pattern(path.name) else ""
    raise DataError(
        f"{text}: unknown kind of sink{field}; expected NAME{'|'.join(WRITABLE)}, rtsp://, NAME.jsonl, -, "
        "FOLDER/, NAME%06d.png, display://0 or null://"
    )


class NullSink:
    """`null://`: takes everything and keeps nothing, for measuring. With `wants_overlay` the loop still blends."""

    def __init__(self, *, wants_overlay: bool = False) -> None:
        self.wants_overlay = wants_overlay

    def write(self, result: FrameResult) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class JsonLinesSink:
    """`NAME.jsonl`, or `-` for standard output. Lines are written whole and at once, so that `tail -f` works.

    Keys: `frame` (its number at the source), `time_s` (since the first frame, by the source's clock), `size` [width, height],
    `areas` {class name: share of the frame 0-1, only what is there}, `age_ms`, `stages_ms`, `dropped` (so far),
    `parity` (last verdict, where there is a parity watch), `drift` (`field/drift.py`, from the first full window on).
    """

    wants_overlay = False

    def __init__(self, target: str, classes: Classes) -> None:
        self._classes = classes
        self._target = target
        self._file: BinaryIO | None = sys.stdout.buffer if target == "-" else _create(Path(target))
        self._started: float | None = None

    def write(self, result: FrameResult) -> None:
        """Write one line. Raises: DataError: it could not be written (for one, a full disk)."""
        assert self._file is not None
        line = msgspec.json.encode(self._line(result)) + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DataError(f"{self._target}: cannot be written ({error.strerror})") from error

    def _line(self, result: FrameResult) -> dict[str, Any]:
        frame = result.frame
        shown = frame.captured if frame.time_s is None else frame.time_s
        if self._started is None:
            self._started = shown
        line: dict[str, Any] = {
            "frame": frame.number,
            "time_s": round(shown - self._started, 4),
            "size": [frame.size_hw[1], frame.size_hw[0]],
            "areas": class_areas(result.labels, result.classes or self._classes),
            "age_ms": round(result.age_ms, 3),
            "stages_ms": {name: round(value, 3) for name, value in result.stages_ms.items()},
            "dropped": result.dropped,
        }
        if result.parity is not None:
            line["parity"] = result.parity
        if result.engine:
            line["engine"] = result.engine
        if result.drift is not None:
            line["drift"] = result.drift
        return line

    def close(self) -> None:
        if self._file is not None and self._target != "-":
            self._file.close()
        self._file = None


def _create(path: Path) -> BinaryIO:
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def class_areas(labels: NDArray[np.uint8], classes: Classes) -> dict[str, float]:
    """Share of the pixels of each class that occurs, 0-1, by name; pixels of 255 belong to none."""
    counts = label_histogram(labels)
    return {name: round(float(counts[i]) / labels.size, 6) for i, name in enumerate(classes.names) if counts[i]}


def label_histogram(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by label: (H,W) uint8 -> (256,) counts. OpenCV, because `np.bincount` first widens every pixel."""
    histogram = cv2.calcHist([labels], [0], None, [256], [0, 256])
    return np.rint(histogram.reshape(256)).astype(np.int64)


class PictureSink:
    """`masks/%06d.png` (`.png`: the class ids) or `seen/%06d.jpg` (`.jpg`: the overlay), numbered as `Frame.number` says.

    A name without a number field takes one picture only: a second one is a DataError, not an overwrite.
    """

    def __init__(self, pattern: str) -> None:
        path = Path(pattern)
        self._folder, self._name = path.parent, path.name
        self._field = printf_pattern(self._name)
        self.wants_overlay = path.suffix.lower() != ".png"
        self._written = 0
        with writable(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, result: FrameResult) -> None:
        """Write one picture. Raises: DataError: not writable, or a second picture for one name."""
        if self._field is None and self._written:
            raise DataError(
                f"{self._folder / self._name}: one name for several frames; use {self._folder}/%06d{Path(self._name).suffix}"
            )
        path = self._path(result.frame.number)
        try:
            self._save(path, result)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
        self._written += 1

    def _path(self, number: int) -> Path:
        if self._field is None:
            return self._folder / self._name
        return self._folder / self._name.replace(self._field, self._field.replace("i", "d") % number, 1)

    def _save(self, path: Path, result: FrameResult) -> None:
        if not self.wants_overlay:
            write_mask(path, result.labels)
            return
        assert result.overlay is not None
        ok, data = cv2.imencode(".jpg", result.overlay, [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert ok
        write_bytes(path, data.tobytes(), durable=False)

    def close(self) -> None:
        """Nothing: every picture is whole when it is written."""


class WindowSink:
    """`display://0`. Use it from the main thread. `q`, Escape or closing the window ends the stream as Ctrl-C does."""

    wants_overlay = True

    def __init__(self) -> None:
        require_display()
        try:
            cv2.namedWindow(WINDOW_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise UnavailableError(
                "display://0: this OpenCV has no windows (opencv-python-headless?); install opencv-python, or use --web"
            ) from error
        self._open = True

    def write(self, result: FrameResult) -> None:
        """Show `result.overlay`. Raises: KeyboardInterrupt: the user closed the window."""
        assert result.overlay is not None
        cv2.imshow(WINDOW_TITLE, result.overlay)
        key = cv2.waitKey(1) & 0xFF
        if key in (ord("q"), 27) or cv2.getWindowProperty(WINDOW_TITLE, cv2.WND_PROP_VISIBLE) < 1:
            raise KeyboardInterrupt

    def close(self) -> None:
        if self._open:
            self._open = False
            cv2.destroyAllWindows()


def require_display() -> None:
    """Raise UnavailableError on a Linux machine without a display: Qt would end the whole process there."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UnavailableError("display://0: no display here (DISPLAY is not set); use --web PORT or a video file")
