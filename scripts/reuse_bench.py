"""CPU time a frame of the live loop with each `--reuse`, in alternation in one process, and the IoU against the masks of every frame.

    python scripts/reuse_bench.py photo.int8.xml runs/dog-still.mp4:dog runs/cows-still.mp4:cow --rounds 3

CLIP.mp4:CLASS has its masks in the folder CLIP (see still_clip.py). One thread for the network, no sinks. CPU time is that of all
threads of the process between the first frame's result and the last one's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import closing
from pathlib import Path

from tsss_edge.backends import AsyncBackend
from tsss_edge.stream.frames import FrameResult
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.opening import open_engine
from tsss_edge.stream.recorder import Recorder
from tsss_edge.stream.reuse import Reuse
from tsss_edge.stream.sources import open_source
from tsss_edge.stream.truth import TruthFolder
from tsss_edge.stream.watch import Checks

SWITCHES: tuple[Reuse, ...] = ("off", "still", "motion")


class Clock:
    """A sink that notes the CPU time of the first and the last result, and how many went through the network."""

    wants_overlay = False

    def __init__(self) -> None:
        self.times: list[float] = []
        self.seen = 0

    def write(self, result: FrameResult) -> None:
        """Note one."""
        self.times.append(time.process_time())
        self.seen += "network" in result.stages_ms

    def close(self) -> None:
        """Nothing."""

    @property
    def core_ms(self) -> float:
        """CPU milliseconds a frame."""
        return (self.times[-1] - self.times[0]) * 1000 / (len(self.times) - 1)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("clips", nargs="+", metavar="CLIP.mp4:CLASS")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        "| clip | switch | frames, with network | core-ms a frame | of off | IoU | lost |\n|---|---|---|---|---|---|---|"
    )
    with closing(open_engine(args.engine, live=False, threads=1)) as backend:
        for text in args.clips:
            clip, _, name = text.rpartition(":")
            print_clip(backend, Path(clip), name, args.rounds)


def print_clip(backend: AsyncBackend, clip: Path, name: str, rounds: int) -> None:
    """The rows of one clip."""
    clocks: dict[Reuse, list[Clock]] = {switch: [] for switch in SWITCHES}
    for _ in range(rounds):
        for switch in SWITCHES:
            clocks[switch].append(play(backend, clip, switch, None)[0])
    iou = {switch: play(backend, clip, switch, name)[1] for switch in SWITCHES}  # apart: truth costs time too
    first = statistics.median(c.core_ms for c in clocks["off"])
    for switch in SWITCHES:
        found, clock = statistics.median(c.core_ms for c in clocks[switch]), clocks[switch][0]
        print(
            f"| {clip.stem} | {switch} | {len(clock.times)}, {clock.seen} | {found:.2f} | {found / first:.2f} | "
            f"{iou[switch]:.2f} | {iou['off'] - iou[switch]:.2f} |"
        )


def play(backend: AsyncBackend, clip: Path, switch: Reuse, name: str | None) -> tuple[Clock, float]:
    """One run -> its clock, and with `name` the IoU of that class."""
    clock, recorder = Clock(), Recorder()
    checks = (
        Checks.open(backend, str(clip), None, 0, None, TruthFolder(clip.with_suffix(""), backend.classes, name))
        if name
        else None
    )
    with closing(open_source(str(clip), policy="block", decode_threads=1)) as source:
        run(source, backend, [clock], recorder, reuse=switch, checks=checks)
    iou = (checks.per_class or {}) if checks is not None else {}
    return clock, iou.get(name or "", 0.0)


if __name__ == "__main__":
    main()
