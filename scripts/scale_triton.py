"""What a served engine costs against the same one in this process, and whether it answers the same -> JSON.

python scripts/scale_triton.py net.int8.xml triton://127.0.0.1:8001/net --json triton.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tsss_edge.backends import Backend, open_backend
from tsss_edge.backends.triton_client import TritonBackend, require_address


def largest_difference(here: Backend, there: Backend, pictures: int) -> float:
    """Of any output value, over random pictures."""
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(pictures):
        images = rng.integers(0, 256, (1, *here.preprocess.size_hw, 3), np.uint8)
        own = {name: np.array(array) for name, array in here.infer(images).items()}
        served = there.infer(images)
        worst = max(worst, *(float(np.abs(own[name].astype(float) - served[name]).max()) for name in own))
    return worst


def milliseconds(backend: Backend, seconds: float) -> list[float]:
    """Of one call after the other."""
    images = np.random.default_rng(0).integers(0, 256, (1, *backend.preprocess.size_hw, 3), np.uint8)
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        backend.infer(images)
        times.append((time.perf_counter() - started) * 1000)
    return times


def main() -> None:
    """Three ways in alternation, several rounds; the median of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("address")
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    remote: Callable[[str], TritonBackend] = lambda query: TritonBackend(require_address(args.address + query))  # noqa: E731
    with open_backend(args.engine, threads=1) as here, remote("") as shared, remote("?shm=0") as wire:
        ways: dict[str, Backend] = {"in process": here, "shared memory": shared, "wire": wire}
        result: dict[str, Any] = {
            "engine": args.engine.name,
            "input": list(here.preprocess.size_hw),
            "largest_difference": {name: largest_difference(here, way, args.pictures) for name, way in ways.items()},
        }
        rounds = [{name: milliseconds(way, args.seconds) for name, way in ways.items()} for _ in range(args.rounds)]
        result["p50_ms"] = {
            name: round(statistics.median(statistics.median(r[name]) for r in rounds), 3) for name in ways
        }
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
