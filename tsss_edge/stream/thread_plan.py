"""How the cores are shared between the network and everything around it, from what a frame was measured to cost.

On two cores with a fast network two pinned OpenVINO streams starve decoding: 78 frames a second where one stream of one thread gave
142 (an Intel processor with AMX, docs/results/stream.md). So the network gets its share of the cores, and the other stages the rest. A
thread that needs nearly all of a core waits for it, so the share is taken a tenth too large: with 0.47 of the work two threads gave 171
frames a second in place of 156, with 0.72 of it 50 in place of 37, with 0.25 and 0.33 as many as one (two AMD processors; same page).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsss_edge.artifacts import Engine
from tsss_edge.backends import AsyncBackend
from tsss_edge.backends.ov import MAX_STREAMS, OpenVinoBackend
from tsss_edge.machine import usable_cores
from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.frames import Frame
from tsss_edge.stream.opening import open_engine
from tsss_edge.stream.process import opencv_threads
from tsss_edge.stream.sources import open_source
from tsss_edge.stream.uris import parse_source

TRIED_FRAMES, TRIED_CALLS = 6, 4  # of the trial at start: a tenth of a second with a fast network
NEARLY_ALL = 0.9  # of the work: a network that is so large may keep each of its threads on one core
SLACK = 1.1  # times its share of the cores that the network may have: other stages take turns with its threads


@dataclass(frozen=True)
class ThreadPlan:
    """Streams and threads of the network, threads of the decoder, pictures in flight. `why`: one line with the measured reason."""

    streams: int
    threads: int
    pinned: bool
    decoding: int
    slots: int
    why: str


def plan_threads(cores: int, network_ms: float, around_ms: float) -> ThreadPlan:
    """For a file on `cores`. network_ms, around_ms: CPU time a frame of the network and of all other stages together.

    The network's threads are `SLACK` times its share of the cores, rounded up: of two it gets both from 0.46 of the work on. Each
    thread is a stream up to `MAX_STREAMS`. What is left decodes, a quarter of the cores at most.
    """
    share = network_ms / (network_ms + around_ms)
    threads = min(cores, max(1, math.ceil(SLACK * cores * share)))
    streams = min(threads, MAX_STREAMS)
    decoding = max(1, min(cores - threads, cores // 4))
    pinned = share >= NEARLY_ALL
    why = (
        f"{cores} cores; a frame costs {network_ms:.1f} ms in the network and {around_ms:.1f} ms around it, so the network has "
        f"{streams} stream{'s' * (streams > 1)} of {threads} thread{'s' * (threads > 1)} in all, {'pinned' if pinned else 'not pinned'}, "
        f"and the decoder {decoding}"
    )
    return ThreadPlan(streams, threads, pinned, decoding, streams + 1, why)


def can_be_read_twice(source: str) -> bool:
    """False of a pipe: what a trial takes from it, the stream would never see."""
    uri = parse_source(source)
    return uri.scheme != "file" or not (Path(uri.path).is_fifo() or Path(uri.path).is_socket())


def measure_frame(backend: AsyncBackend, source: str, *, blend: bool) -> tuple[float, float]:
    """CPU milliseconds a frame of the network, and of all stages around it: a trial on the first frames of a file.

    Raises: DataError: the source.
    """
    frames: list[Frame] = []
    with closing(open_source(source, decode_threads=1)) as opened, opencv_threads(1):
        decode = _cpu_ms(lambda: frames.extend(_some(opened.read)), 1) / max(1, len(frames))
        x = np.zeros((max(1, backend.min_batch), *backend.preprocess.size_hw, 3), np.uint8)
        backend.infer(x)
        network = _cpu_ms(lambda: backend.infer(x), TRIED_CALLS)
        around = _around(backend, frames, blend=blend)
    return network, decode + max(0.0, around - network)


def _around(backend: AsyncBackend, frames: list[Frame], *, blend: bool) -> float:
    """CPU milliseconds a frame of all stages; 0 of a source without a frame, of which the loop tells."""
    if not frames:
        return 0.0
    with closing(CpuStages(backend, blend=blend)) as stages:
        first = _through(stages, frames[0])  # makes plans and arrays
        others = [_through(stages, frame) for frame in frames[1:]]
    return sum(others) / len(others) if others else first


def _some(read: Callable[[], Frame | None]) -> list[Frame]:
    return [frame for frame in (read() for _ in range(TRIED_FRAMES)) if frame is not None]


def _through(stages: CpuStages, frame: Frame) -> float:
    """CPU milliseconds of one frame through all stages, the network too."""

    def run() -> None:
        stages.start(0, frame.picture, {})
        stages.wait(0, {})
        stages.result(0, frame, {}).paint()

    return _cpu_ms(run, 1)


def _cpu_ms(work: Callable[[], object], times: int) -> float:
    """Milliseconds of CPU time of this process, a call."""
    before = time.process_time()
    for _ in range(times):
        work()
    return 1000 * (time.process_time() - before) / times


def open_for_file(path: Path, source: str, *, blend: bool) -> tuple[AsyncBackend, ThreadPlan | None]:
    """Open an engine for a file, and for OpenVINO with the threads that a trial on its first frames asks for.

    Raises: as `open_engine`; DataError: the source.
    """
    backend, cores = open_engine(path, live=False, threads=None), usable_cores()
    if path.suffix != ".xml" or not can_be_read_twice(source):
        return backend, None
    try:
        plan = plan_threads(cores, *measure_frame(backend, source, blend=blend))
    except BaseException:
        backend.close()
        raise
    if (plan.streams, plan.threads) == (min(cores, MAX_STREAMS), cores) and plan.pinned:
        return backend, plan  # as it is open
    backend.close()
    engine = Engine.load(path, trust=True)  # its hashes were checked a moment ago
    return OpenVinoBackend(engine, threads=plan.threads, slots=plan.slots, pinned=plan.pinned), plan
