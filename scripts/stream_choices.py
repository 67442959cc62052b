"""The settings of the live loop on a CPU, side by side: requests, pinning, threads of decoder and OpenCV -> JSON.

python scripts/stream_choices.py runs/stream-engine/fused.int8.xml street.mp4 > choices.json

Frames a second of each variant, in alternating rounds. The first variant is what the loop does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from unittest import mock

from tsss_edge.backends import AsyncBackend, open_backend, ov
from tsss_edge.machine import usable_cores
from tsss_edge.stream import live_loop as loop
from tsss_edge.stream.process import decode_threads, opencv_threads
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.sinks import NullSink
from tsss_edge.stream.sources import open_source

ROUNDS = 4


def open_variant(path: Path, slots: int, options: dict[str, bool]) -> AsyncBackend:
    """The engine with more OpenVINO properties than the back end gives it."""
    usual = ov.compile_options
    with mock.patch.object(ov, "compile_options", lambda *args, **kwargs: usual(*args, **kwargs) | options):
        backend = open_backend(path, threads=usable_cores(), slots=slots)
    assert isinstance(backend, AsyncBackend)
    return backend


def frames_a_second(backend: AsyncBackend, source: str, decoder: int | None, opencv: int) -> float:
    recorder = Recorder()
    with closing(open_source(source, decode_threads=decoder)) as opened:
        with mock.patch.object(loop, "opencv_threads", lambda count: opencv_threads(opencv)):
            started = time.perf_counter()
            loop.run(opened, backend, [NullSink(wants_overlay=True)], recorder)
        return recorder.frames / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("source")
    args = parser.parse_args()
    cores, one = usable_cores(), decode_threads()
    usual = open_variant(args.engine, cores + 1, {})
    more = open_variant(args.engine, cores + 2, {})
    unpinned = open_variant(args.engine, cores + 1, {"ENABLE_CPU_PINNING": False})
    variants = {
        "as it is": (usual, one, 1),
        "one more request": (more, one, 1),
        "streams not pinned": (unpinned, one, 1),
        "decoder's own choice of threads": (usual, None, 1),
        f"{cores} OpenCV threads": (usual, one, cores),
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, (backend, decoder, opencv) in variants.items():
            found[name].append(round(frames_a_second(backend, args.source, decoder, opencv), 2))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
