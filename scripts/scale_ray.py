"""`segment --ray local` with two workers against two processes of one machine: rate after start-up, a killed worker, a rerun -> JSON.

python scripts/scale_ray.py net.int8.xml --pictures 400 --json ray.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SEGMENT = (sys.executable, "-m", "tsss_edge", "segment")


def make_pictures(folder: Path, count: int, size_hw: tuple[int, int]) -> None:
    """Smooth random pictures: a decoder has about as much to do as with photographs."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for n in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        small.resize(size_hw[::-1], Image.Resampling.BICUBIC).save(folder / f"{n:05d}.jpg", quality=90)


def rate_between(out: Path, total: int, running: list[subprocess.Popen[bytes]]) -> float:
    """Masks a second between the first tenth and the last tenth, so that neither start nor end is in it."""
    times: dict[int, float] = {}
    marks = (total // 10, total - total // 10)
    while any(p.poll() is None for p in running):
        count = sum(1 for _ in out.rglob("*.png"))
        for mark in marks:
            if count >= mark and mark not in times:
                times[mark] = time.monotonic()
                times[-mark] = count
        time.sleep(0.05)
    if any(p.returncode for p in running):
        raise SystemExit("segment failed")
    first, last = marks
    return float((times[-last] - times[-first]) / (times[last] - times[first]))


def by_processes(engine: Path, pictures: Path, out: Path) -> float:
    """Two processes, half of the pictures each."""
    names = sorted(pictures.iterdir())
    halves = [list(map(str, names[k::2])) for k in range(2)]
    running = [
        subprocess.Popen([*SEGMENT, str(engine), *half, "--out", str(out), "--threads", "1"], stdout=-3)
        for half in halves
    ]
    return rate_between(out, len(names), running)


def by_ray(engine: Path, pictures: Path, out: Path, *, kill: bool = False) -> float:
    """One driver, two workers."""
    command = [*SEGMENT, str(engine), str(pictures), "--out", str(out), "--ray", "local"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    if kill:
        threading.Thread(target=_kill_one, args=(running.pid, out)).start()
    return rate_between(out, sum(1 for _ in pictures.iterdir()), [running])


def _kill_one(driver: int, out: Path) -> None:
    """SIGKILL to one worker of this driver, once masks appear."""
    while not any(out.rglob("*.png")):
        time.sleep(0.05)
    worker = next(pid for pid in descendants(driver) if b"MapWorker" in command_of(pid))
    os.kill(worker, signal.SIGKILL)
    print(f"killed worker {worker}", file=sys.stderr)


def descendants(root: int) -> list[int]:
    """Processes that `root` started, and what they started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
    found, new = [], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def command_of(pid: int) -> bytes:
    """The command line of a process; Ray's workers name their task there."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def same_masks(a: Path, b: Path) -> bool:
    """Byte for byte."""
    names = sorted(p.name for p in a.iterdir())
    return names == sorted(p.name for p in b.iterdir()) and all(
        (a / n).read_bytes() == (b / n).read_bytes() for n in names
    )


def main() -> None:
    """Alternating rounds, then a killed worker and a rerun."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures", args.pictures, tuple(args.size))
        result: dict[str, Any] = {"pictures": args.pictures, "size": args.size, "processes": [], "ray": []}
        for number in range(args.rounds):
            result["processes"].append(round(by_processes(args.engine, folder / "pictures", folder / f"p{number}"), 2))
            result["ray"].append(round(by_ray(args.engine, folder / "pictures", folder / f"r{number}"), 2))
        result["byte_identical"] = same_masks(folder / "p0", folder / "r0")
        by_ray(args.engine, folder / "pictures", folder / "killed", kill=True)
        result["byte_identical_after_a_killed_worker"] = same_masks(folder / "p0", folder / "killed")
        (folder / "killed/00000.png").unlink()
        again = subprocess.run(
            [*SEGMENT, str(args.engine), str(folder / "pictures"), "--out", str(folder / "killed"), "--ray", "local", "--json", "-"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        told = json.loads(again.stdout)
        result["rerun"] = {"made": told["images"], "left": told["finished_before"]}
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
