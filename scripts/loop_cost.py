"""What the drift watch costs: its milliseconds of CPU against those of a whole frame, in alternation, on one thread -> JSON.

python scripts/loop_cost.py old.fp32.xml field --frames 200
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from tsss_edge.artifacts import Engine
from tsss_edge.backends import open_backend
from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.field_watch import FieldWatch
from tsss_edge.stream.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("source")
    parser.add_argument("--frames", type=int, default=200)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    backend = open_backend(args.engine, threads=1)
    watch = FieldWatch(backend, {args.engine.name: Engine.load_record(args.engine).profile}, live=False)
    frame_ms, watch_ms = [], []
    with closing(open_source(args.source)) as source, closing(CpuStages(backend, blend=False)) as stages:  # type: ignore[arg-type]
        for _ in range(args.frames):
            started = time.process_time()
            frame = source.read()
            assert frame is not None
            stages.start(0, frame.image, {})
            stages.wait(0, {})
            result = stages.result(0, frame, {})
            done = time.process_time()
            watch.add(result)
            frame_ms.append(1000 * (done - started))
            watch_ms.append(1000 * (time.process_time() - done))
    backend.close()
    skip = args.frames // 10  # first calls
    frame_p50, watch_mean = float(np.median(frame_ms[skip:])), float(np.mean(watch_ms[skip:]))
    found = {
        "frames": args.frames,
        "frame_cpu_ms_p50": round(frame_p50, 3),
        "watch_cpu_ms_mean": round(watch_mean, 4),
        "share_every_picture": round(watch_mean / frame_p50, 5),
        "share_at_30_fps": round(watch_mean / frame_p50 / 30, 6),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
