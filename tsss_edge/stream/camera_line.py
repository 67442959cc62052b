"""One camera of many: its source, its slots, its counts, and the thread that hands its results to its sinks in order.

Whatever goes wrong here ends this camera alone.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tsss_edge.artifacts import Classes, Struct
from tsss_edge.errors import TsssEdgeError
from tsss_edge.files import reason
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.metrics import Percentiles
from tsss_edge.stream.cameras import CameraSpec
from tsss_edge.stream.frames import FrameResult, Sink
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sinks import open_sinks, write_to
from tsss_edge.stream.sources import Feed, is_live, open_feed
from tsss_edge.stream.uris import parse_source

LIVE_SLOTS = 2  # of a live camera: one in the engine, one with the sinks
KEPT = 10_000  # times of a camera that its percentiles look back on: at 10 frames a second a quarter of an hour


class CameraReport(Struct, frozen=True):
    """What came of one camera. `arrived` = `frames` + `dropped` + `thinned` + `unfinished`."""

    name: str
    source: str
    state: str
    arrived: int  # frames that it gave
    frames: int  # with a mask
    dropped: int  # without a mask, because the engine was busy or the source too slow to read them
    thinned: int  # left out, because fewer were asked for
    unfinished: int  # on the way when the stream ended
    fps: float  # first mask to last mask
    frame_age_ms: Percentiles | None  # from capture to the sinks
    stages_ms: dict[str, Percentiles]
    reconnects: int
    error: str | None  # why it ended before the others, or why it was not there at the end

    def line(self) -> str:
        """For a terminal."""
        age = f"age p50 {self.frame_age_ms.p50:.0f} p95 {self.frame_age_ms.p95:.0f} ms" if self.frame_age_ms else ""
        text = f"{self.name:<16} {self.frames:7} frames {self.fps:6.1f}/s  {self.dropped:6} dropped  {age}"
        return f"{text}  {self.error}" if self.error else text


class CameraLine:
    """A camera on a shared engine. The engine's threads call `ready`, `take` and `ran`; a thread of its own delivers.

    Args: slots: numbers of the engine's slots that are this camera's. changed: told when a frame may start.
    """

    def __init__(
        self, spec: CameraSpec, slots: Sequence[int], classes: Classes, *, changed: Callable[[], None]
    ) -> None:
        self.spec = spec
        self.recorder = Recorder(kept=KEPT)
        self.extra: list[Sink] = []
        self.error: TsssEdgeError | None = None
        self._classes, self._changed = classes, changed
        self._free = deque(slots)
        self._in_flight, self._most = 0, 1 if is_live(spec.uri, spec.policy) else len(slots) - 1
        self._results: queue.SimpleQueue[tuple[int, Future[FrameResult]] | None] = queue.SimpleQueue()
        self._sinks: list[Sink] | None = None
        self._ended = False
        self.free: Callable[[int], None] = lambda slot: None
        self.source: Feed = open_feed(spec.uri, name=spec.name, policy=spec.policy, max_fps=spec.fps, on_change=changed)
        self._thread = threading.Thread(target=self._run, name=f"sinks {spec.name}")
        self._thread.start()

    @property
    def state(self) -> str:
        """That of its source; FAILED when a sink failed."""
        return "FAILED" if self.error else self.source.state

    @property
    def fps(self) -> float:
        """Of its source, as the next three: what pages show."""
        return self.source.fps

    @property
    def dropped(self) -> int:
        return self.source.dropped

    @property
    def thinned(self) -> int:
        return self.source.thinned

    @property
    def reconnects(self) -> int:
        return self.source.reconnects

    @property
    def trouble(self) -> str:
        """Why it is FAILED, or cannot be opened; "" where nothing is wrong."""
        return str(self.error or self.source.error or self.source.trouble)

    @property
    def over(self) -> bool:
        """No more results will come."""
        return not self._thread.is_alive()

    # -- the engine's threads; they hold the loop's lock in the first two

    def ready(self) -> bool:
        """A frame waits, and may start."""
        return bool(self.source.waiting and self._free and self._in_flight < self._most and not self._ended)

    def finished(self) -> bool:
        """The source is at its end and nothing of it is in the engine; `end` may be called."""
        return not self._ended and self.source.over and not self._in_flight

    def take(self) -> tuple[int, Future[FrameResult]]:
        """A slot, and where the result of the frame in it is expected: results are delivered in the order of these."""
        self._in_flight += 1
        turn = self._free.popleft(), Future[FrameResult]()
        self._results.put(turn)
        return turn

    def ran(self) -> None:
        """The engine is done with one frame."""
        self._in_flight -= 1

    def end(self) -> None:
        """No more frames will start. Safe to call twice."""
        self._ended = True
        self._results.put(None)

    def stop(self) -> None:
        """No more frames will start, and the source ends; waits for nobody. Safe to call twice."""
        self.end()
        self.source.stop()

    def close(self) -> None:
        """Deliver what has started, close source and sinks. Safe to call twice."""
        self.end()
        self.source.close()
        self._thread.join()

    # -- the thread that delivers

    def _run(self) -> None:
        try:
            while (turn := self._results.get()) is not None:
                self._deliver(*turn)
        finally:
            for sink in self._sinks or []:
                self._close(sink)
            self._changed()

    def _deliver(self, slot: int, expected: Future[FrameResult]) -> None:
        if expected.exception() is None:
            result = expected.result()
            try:
                if self.error is None:
                    self._write(result)
            except Exception as error:  # whatever a sink raises is this camera's end, and no other's
                self._fail(error)
            self.source.recycle(result.frame.picture)
        self.free(slot)
        self._free.append(slot)
        self._changed()

    def _write(self, result: FrameResult) -> None:
        """To every sink; sinks are opened with the first frame, whose size is that of the camera."""
        if self._sinks is None:
            picture, fps = result.frame.picture, self.spec.fps or self.source.fps
            self._sinks = open_sinks(
                self.spec.sinks,
                fps=fps,
                size_hw=result.frame.size_hw,
                classes=self._classes,
                colour=picture.colour if isinstance(picture, Yuv) else None,
                aspect=getattr(self.source, "aspect", None),
                live=is_live(self.spec.uri, self.spec.policy),
                preset=self.spec.encode,
            )
        result.dropped = self.recorder.dropped_before(result)
        result.paint()
        write_to((*self._sinks, *self.extra), result)
        self.recorder.add(result)

    def _close(self, sink: Sink) -> None:
        try:
            sink.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """This camera is over; the reason is kept for the report."""
        self.error = error if isinstance(error, TsssEdgeError) else TsssEdgeError(f"{self.spec.name}: {reason(error)}")
        self.end()
        self.source.close()

    def report(self) -> CameraReport:
        """Its numbers, after `close`."""
        numbers, source = self.recorder.numbers(), self.source
        return CameraReport(
            name=self.spec.name,
            source=parse_source(self.spec.uri).shown,
            state=self.state,
            arrived=source.arrived,
            frames=self.recorder.frames,
            dropped=source.dropped,
            thinned=source.thinned,
            unfinished=source.waiting + source.taken - self.recorder.frames,
            fps=numbers["fps"],
            frame_age_ms=numbers["frame_age_ms"],
            stages_ms=numbers["stages_ms"],
            reconnects=source.reconnects,
            error=self.trouble or None,
        )
