"""`stream --sources`: many cameras on one engine.

    source -> newest frame --.                                  .--> sinks of camera 1
    source -> newest frame ---+--> turn by share --> engine ----+--> sinks of camera 2
    source -> newest frame --'                                  '--> sinks of camera 3

As many threads as the engine has requests take turns: the camera whose share is next, its newest frame, all stages, the
result to that camera's own thread. A camera without frames costs nobody a turn, a slow sink holds up its own camera alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from tsss_edge.artifacts import Struct
from tsss_edge.backends import AsyncBackend
from tsss_edge.backends.triton_client import give_up
from tsss_edge.errors import DataError
from tsss_edge.stream.camera_line import LIVE_SLOTS, CameraLine, CameraReport
from tsss_edge.stream.cameras import CameraSpec, in_shard, read_cameras
from tsss_edge.stream.engine_slot import EngineSlot, Served
from tsss_edge.stream.frames import Frame, FrameResult
from tsss_edge.stream.opening import open_engine, open_stages, require_gate
from tsss_edge.stream.process import Interrupts, opencv_threads
from tsss_edge.stream.shares import Shares
from tsss_edge.stream.sinks import wants_blend
from tsss_edge.stream.sources import is_live

LOOK_S = 0.25  # between two looks of the main thread at what has ended


class ManyReport(Struct, frozen=True):
    """A finished stream of many cameras."""

    engine: str
    runs_on: str
    cameras: tuple[CameraReport, ...]
    frames: int
    dropped: int
    fps: float  # masks of all cameras a second, from the first to the end
    core_ms: float  # CPU time of the whole process for a mask, decoding and sinks included
    ended: str  # source, max-frames, interrupted

    def summary(self) -> str:
        """For a terminal."""
        head = f"{len(self.cameras)} cameras, {self.frames} frames, {self.dropped} dropped, {self.fps:.1f} frames/s, "
        head += f"{self.core_ms:.1f} core-ms a frame ({self.engine}, {self.runs_on})"
        return "\n".join((head, *(camera.line() for camera in self.cameras)))


def stream_many(
    engine: Path,
    sources: Path,
    *,
    batch_wait_ms: float | None = None,
    max_frames: int | None = None,
    threads: int | None = None,
    force: bool = False,
    web: str | None = None,
    shard: str | None = None,
    trusted_key: Path | None = None,
    tls: tuple[Path, Path] | None = None,
) -> ManyReport:
    """Segment all cameras of the file `sources` on one engine, until the last one ends or Ctrl-C.

    Args:    batch_wait_ms: how long a frame may wait for others to share its batch. max_frames: masks of all cameras.
             shard: "K/N": only the cameras that fall into it by their name.
             Others: as `stream`.
    Raises:  As `stream`, and as `read_cameras`. DataError: every camera failed.
    """
    cameras = read_cameras(sources)
    if shard is not None:
        cameras = in_shard(cameras, shard)
    require_gate(engine, force=force, trusted_key=trusted_key)
    lonely = len(cameras) == 1 and is_live(cameras[0].uri, cameras[0].policy)
    with ExitStack() as stack:
        backend = open_engine(engine, live=lonely, threads=threads, batch_wait_ms=batch_wait_ms)
        stack.callback(backend.close)
        many = stack.enter_context(closing(Many(backend, cameras, engine=engine.name)))
        if web is not None:
            from tsss_edge.stream.web import open_wall

            page = stack.enter_context(closing(open_wall(web, many.lines, many.engine, tls=tls)))
            sys.stderr.write(f"live page: {page.url}\n")
        return many.run(max_frames=max_frames)


class _Turn(NamedTuple):
    line: CameraLine
    frame: Frame
    slot: int
    expected: Future[FrameResult]


class Many:
    """Cameras on one engine, running from the start. `run` waits for the end, `close` makes it."""

    def __init__(self, backend: AsyncBackend, cameras: Sequence[CameraSpec], *, engine: str) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None
        slots = slots_of(cameras, backend)
        blended = [
            slot
            for camera, own in zip(cameras, slots, strict=True)
            if any(map(wants_blend, camera.sinks))
            for slot in own
        ]
        stages = open_stages(backend, blend=frozenset(blended), slots=slots[-1].stop)
        self._engine = EngineSlot(Served(engine, backend, stages))
        self._shares = Shares([camera.priority for camera in cameras])
        self._cpu_at_start, self._started = time.process_time(), time.monotonic()
        self.lines: list[CameraLine] = []
        try:
            for camera, own in zip(cameras, slots, strict=True):
                line = CameraLine(camera, own, backend.classes, changed=self._wake)
                line.free = self._engine.free
                self.lines.append(line)
            self._workers = [threading.Thread(target=self._work, name=f"turns {n}") for n in range(backend.slots)]
        except BaseException:
            self._workers = []
            self.close()
            raise

    @property
    def engine(self) -> EngineSlot:
        """The engine in service; another may be put in its place."""
        return self._engine

    @property
    def frames(self) -> int:
        """Masks of all cameras."""
        return sum(line.recorder.frames for line in self.lines)

    def run(self, *, max_frames: int | None = None) -> ManyReport:
        """Wait for the end of all cameras, of `max_frames`, or for Ctrl-C. Raises: DataError: every camera failed."""
        ended = "source"
        with Interrupts(), opencv_threads(1), closing(_Told(self.lines)) as told:
            try:
                for worker in self._workers:
                    worker.start()
                while not self._over():
                    told.look()
                    if max_frames is not None and self.frames >= max_frames:
                        ended = "max-frames"
                        break
            except KeyboardInterrupt:
                ended = "interrupted"
            self.close()
        if self._error is not None:
            raise self._error
        report = self._report(ended)
        if all(camera.state == "FAILED" for camera in report.cameras):
            raise DataError(f"every camera failed; the first: {report.cameras[0].name}: {report.cameras[0].error}")
        return report

    def close(self) -> None:
        """End everything: no frame starts any more, those that have started are delivered. Safe to call twice."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        give_up(self._engine.current.backend)
        for worker in self._workers:
            if worker.ident is not None:
                worker.join()
        for line in self.lines:
            line.stop()  # all at once: a camera that does not answer is waited for two seconds
        for line in self.lines:
            line.close()
        self._engine.close()

    def _over(self) -> bool:
        with self._changed:
            for line in self.lines:
                if line.finished():
                    line.end()
            if self._error is not None or all(line.over for line in self.lines):
                return True
            self._changed.wait(LOOK_S)
            return False

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- the engine's threads

    def _work(self) -> None:
        with self._engine.thread():
            while (turn := self._next_turn()) is not None:
                try:
                    turn.expected.set_result(self._run_frame(turn.slot, turn.frame))
                except BaseException as error:  # of the engine: it would meet every camera
                    turn.expected.set_exception(error)
                    self._fail(error)
                with self._changed:
                    turn.line.ran()
                    self._changed.notify()

    def _run_frame(self, slot: int, frame: Frame) -> FrameResult:
        stages_ms = {} if frame.decode_ms is None else {"decode": frame.decode_ms}
        self._engine.start(slot, frame.picture, stages_ms)
        self._engine.wait(slot, stages_ms)
        return self._engine.result(slot, frame, stages_ms)

    def _next_turn(self) -> _Turn | None:
        """The next frame, as soon as there is one; None at the end."""
        with self._changed:
            while not self._stopped:
                ready = [number for number, line in enumerate(self.lines) if line.ready()]
                if not ready:
                    self._changed.wait()
                    continue
                line = self.lines[self._shares.pick(ready)]
                if (frame := line.source.poll()) is not None:
                    return _Turn(line, frame, *line.take())
            return None

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if not self._stopped:  # at the end an engine elsewhere that is lost fails: nobody waits for it any more
                self._error = error
            self._stopped = True
            self._changed.notify_all()

    def _report(self, ended: str) -> ManyReport:
        cameras = tuple(line.report() for line in self.lines)
        seconds, frames = time.monotonic() - self._started, sum(camera.frames for camera in cameras)
        return ManyReport(
            engine=self._engine.current.name,
            runs_on=self._engine.name,
            cameras=cameras,
            frames=frames,
            dropped=sum(camera.dropped for camera in cameras),
            fps=frames / seconds,
            core_ms=(time.process_time() - self._cpu_at_start) * 1000 / max(1, frames),
            ended=ended,
        )


def slots_of(cameras: Sequence[CameraSpec], backend: AsyncBackend) -> list[range]:
    """The engine's slots, numbered apart for each camera: a live one has one frame in the engine, of a file as many as may be."""
    counts = [LIVE_SLOTS if is_live(c.uri, c.policy) else backend.slots + 1 for c in cameras]
    ends = list(accumulate(counts))
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


class _Told:
    """On stderr: a line when a camera changes its state or what keeps it away, and on a terminal one that rewrites itself."""

    def __init__(self, lines: Sequence[CameraLine]) -> None:
        self._lines, self._told = lines, {line.spec.name: ("STREAMING", "") for line in lines}
        self._terminal = sys.stderr.isatty()

    def look(self) -> None:
        """Tell what is new."""
        for line in self._lines:
            state, trouble = news = line.state, line.trouble
            if news != self._told[line.spec.name] and state not in ("OPEN", "ENDED"):
                self._told[line.spec.name] = news
                self._write(f"{line.spec.name}  {state}{f' ({trouble})' if trouble else ''}\n")
        if self._terminal:
            self._write(self._text())

    def close(self) -> None:
        if self._terminal:
            self._write("")

    def _text(self) -> str:
        states = Counter(line.state for line in self._lines)
        told = "  ".join(f"{count} {state}" for state, count in sorted(states.items()))
        fps = sum(line.recorder.recent_fps() for line in self._lines)
        dropped = sum(line.source.dropped for line in self._lines)
        return f"{told}  {fps:.1f} frames/s  {dropped} dropped"

    def _write(self, text: str) -> None:
        sys.stderr.write(("\r\x1b[K" if self._terminal else "") + text)
        sys.stderr.flush()
