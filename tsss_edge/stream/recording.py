"""A video file that is being recorded: one writer, a watched disk, pieces of a length, and nothing that plays is lost."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tsss_edge.disk import held, settle
from tsss_edge.errors import DataError
from tsss_edge.stream.frames import FrameResult, Sink
from tsss_edge.stream.uris import Uri
from tsss_edge.stream.video_sink import growing_path, recording_path, writable

LOG = logging.getLogger("tsss_edge")
KEEP_FREE_MIB = 32  # of the disk: several seconds of any video, so that the end of the file can still be written
LOOK_S = 1.0  # between two looks at the disk
MUST_GROW_S = 30.0  # a file that has not grown after so long, and so many frames, is not being written
MUST_GROW_FRAMES = 100

OpenFile = Callable[[str], Sink]


@dataclass(frozen=True)
class RecordingPlan:
    """What the settings of a recording's name say."""

    segment_s: float  # of one file; 0: all in one
    keep: int  # bytes that stay free on the disk
    goes_on: bool  # the stream, when the disk is full

    @classmethod
    def of(cls, uri: Uri) -> RecordingPlan:
        """Raises: DataError: an unknown setting, or a value that is none."""
        uri.allow("segment", "keep", "full")
        if (full := uri.query.get("full", "stop")) not in ("stop", "go-on"):
            raise DataError(f"{uri.shown}: full={full}; expected stop or go-on")
        return cls(uri.number("segment", 0.0), uri.whole("keep", KEEP_FREE_MIB) << 20, full == "go-on")


class RecordingSink:
    """`NAME.mp4[?segment=60&keep=32&full=go-on]`, written by what `open_file` gives for a path.

    segment: a file each so many seconds, NAME-00000.mp4, NAME-00001.mp4, ..., never over an older one. keep: MiB that stay free
    on the disk. full: what a full disk ends, the stream ("stop", the default) or the recording alone ("go-on"). Whatever
    ends it: what was written stays and plays, also what an earlier, killed process left.
    """

    wants_overlay = True

    def __init__(self, uri: Uri, open_file: OpenFile) -> None:
        self._plan = RecordingPlan.of(uri)
        self._path, self._open_file = Path(uri.path), open_file
        self._sink: Sink | None = None
        self._number: int | None = None  # of the piece that is written
        self._lock = ExitStack()
        with writable(self._path):
            self._lock.enter_context(held(self._path.absolute(), f"{self._path}: this recording"))
        try:
            self._start()
        except BaseException:
            self._lock.close()
            raise

    def _start(self) -> None:
        with writable(self._path):
            path = self._place = self._next_free() if self._plan.segment_s else self._path
            keep_older(recording_path(path))
        self._since: float | None = None
        self._watch = _Watch(path, self._plan.keep)
        self._watch.look()
        self._sink = self._open_file(str(path))

    def _next_free(self) -> Path:
        """After the highest number that is there: where older pieces are cleared away, the order of names stays that of time."""
        if self._number is None:
            name = rf"{re.escape(self._path.stem)}-(\d{{5,}})(\.recording(-\d+)?)?{re.escape(self._path.suffix)}"
            found = (re.fullmatch(name, path.name) for path in self._path.parent.iterdir())
            self._number = max((int(match[1]) for match in found if match), default=-1)
        self._number += 1
        return self._path.with_name(f"{self._path.stem}-{self._number:05d}{self._path.suffix}")

    def write(self, result: FrameResult) -> None:
        """Append one frame. Raises: DataError: the disk is full, or the file cannot be written (unless `full=go-on`)."""
        if self._sink is None:
            return
        try:
            self._watch.frame()
            self._next_piece(result)
            assert self._sink is not None
            self._sink.write(result)
        except DataError as error:
            self._stop(error)

    @property
    def encode_ms(self) -> float:
        """What the last frame cost on the encoder's thread, milliseconds; 0 before the first."""
        return float(getattr(self._sink, "encode_ms", 0.0))

    def _next_piece(self, result: FrameResult) -> None:
        """Begin another file where this one has its length."""
        now = result.frame.captured if result.frame.time_s is None else result.frame.time_s
        if self._since is not None and 0 < self._plan.segment_s <= now - self._since + 1e-6:
            self._finish()
            self._start()
        self._since = now if self._since is None else self._since

    def _stop(self, error: DataError) -> None:
        try:
            self._finish()
        except DataError as later:
            LOG.warning("%s; what was written stays as %s", later, recording_path(self._place))
        if not self._plan.goes_on:
            raise error
        LOG.error("recording ended, the stream goes on: %s", error)

    def _finish(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()
            if self._place.is_file():
                with writable(self._place):
                    settle(self._place.parent)

    def close(self) -> None:
        """Finish the file. Safe to call twice. Raises: DataError: its end cannot be written."""
        try:
            self._finish()
        finally:
            self._lock.close()


class _Watch:
    """Looks at the disk once a second, and at whether the file grows."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path, self._keep = path, keep
        self._looked = self._grew = time.monotonic()
        self._size = self._frames = 0

    def frame(self) -> None:
        """Raise DataError as `look`, when a second has gone since the last look."""
        self._frames += 1
        if time.monotonic() - self._looked >= LOOK_S:
            self.look()

    def look(self) -> None:
        """Raise DataError when too little of the disk is free, or the file has stopped growing."""
        now = self._looked = time.monotonic()
        with writable(self._path):
            free = shutil.disk_usage(self._path.parent).free
        if free < self._keep:
            raise DataError(
                f"{self._path}: recording stopped, {free >> 20} MiB of the disk are free and {self._keep >> 20} are to stay; "
                "free some, or record somewhere else"
            )
        file = growing_path(self._path)
        size = file.stat().st_size if file.is_file() else 0
        if size != self._size:
            self._size, self._grew, self._frames = size, now, 0
        elif self._frames > MUST_GROW_FRAMES and now - self._grew > MUST_GROW_S:
            raise DataError(
                f"{file}: recording stopped, the file has not grown for {now - self._grew:.0f} s; look at the disk"
            )


def keep_older(leftover: Path) -> None:
    """Give what a killed recording left a name of its own, NAME.recording-1.mp4, so that the next one does not write over it."""
    if not leftover.is_file() or not leftover.stat().st_size:
        return
    names = (leftover.with_name(f"{leftover.stem}-{n}{leftover.suffix}") for n in itertools.count(1))
    kept = next(path for path in names if not path.exists())
    leftover.rename(kept)
    LOG.warning("%s is left of a recording that was stopped; it is now %s", leftover, kept.name)
