"""Many cameras on one engine against as many processes: what each frame costs -> JSON lines.

python scripts/scale_cameras.py net.int8.xml --cameras 1 4 16 64 --out cameras.jsonl
python scripts/scale_cameras.py net.int8.xml --cameras 16 --processes --out cameras.jsonl
python scripts/scale_cameras.py net.int8.xml --kill --out kill.jsonl         a camera dies: what the others notice

Only the window after the first masks counts, so that neither start nor end is in the numbers. `rtsp` runs the tests' GStreamer server,
whose CPU time is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SERVER = Path(__file__).parents[1] / "tests/stream/rtsp_server.py"
PATIENCE_S = 480.0
TICKS = os.sysconf("SC_CLK_TCK")
STREAM = (sys.executable, "-m", "tsss_edge", "stream")


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    """Memory of a process that is its own or shared, as /proc counts it."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def proportional_mib(pid: int) -> float:
    """Memory of a process, shared pages divided by those who share them: what a process more really costs."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid}: no Pss in smaps_rollup")


@contextmanager
def rtsp_server(size: str, fps: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address of a camera on loopback, and the process that is the camera."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["/usr/bin/python3", str(SERVER), str(port), "5a5a5a", size, "-", str(fps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
        yield f"rtsp://127.0.0.1:{port}/cam", process
    finally:
        process.terminate()
        process.wait(20)


def addresses(source: str, count: int, size: str, fps: float) -> list[str]:
    """One address a camera."""
    if source.startswith("rtsp"):
        return [source] * count
    return [f"synthetic://?size={size}&fps={fps:g}&frames=0&live=1&seed={n}" for n in range(count)]


def start_one(engine: Path, uris: Sequence[str], folder: Path, running: list[subprocess.Popen[bytes]]) -> None:
    """One process for all cameras; it joins `running`."""
    cameras = "".join(
        f'[[camera]]\nname = "c{n}"\nuri = "{uri}"\nsinks = ["{folder}/{n}.jsonl"]\n' for n, uri in enumerate(uris)
    )
    (folder / "cameras.toml").write_text(cameras)
    report = ["--sources", str(folder / "cameras.toml"), "--json", str(folder / "report.json")]
    running.append(_start([*STREAM, str(engine), *report]))
    wait_for_masks(folder, len(uris), running)


def start_many(engine: Path, uris: Sequence[str], folder: Path, running: list[subprocess.Popen[bytes]]) -> None:
    """One process a camera; each is started once the one before it delivers, since together they starve one another."""
    for n, uri in enumerate(uris):
        command = [*STREAM, str(engine), uri, str(folder / f"{n}.jsonl"), "--json", str(folder / f"report{n}.json")]
        running.append(_start(command))
        wait_for_masks(folder, n + 1, running)


def stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGINT to all, and wait."""
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        process.wait(60)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(folder: Path, count: int) -> list[int]:
    """Masks of every camera so far."""
    files = [folder / f"{n}.jsonl" for n in range(count)]
    return [file.read_bytes().count(b"\n") if file.is_file() else 0 for file in files]


def wait_for_masks(folder: Path, count: int, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until every camera has three masks."""
    deadline = time.monotonic() + PATIENCE_S
    while min(lines(folder, count)) < 3:
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            raise SystemExit(f"no masks from all cameras: {lines(folder, count)}")
        time.sleep(0.2)


def measure(engine: Path, uris: Sequence[str], seconds: float, *, processes: bool) -> dict[str, Any]:
    """One run: rates, ages, drops and costs in a window of `seconds`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = list[subprocess.Popen[bytes]]()
        try:
            (start_many if processes else start_one)(engine, uris, folder, running)
            before, cpu, at = lines(folder, len(uris)), sum(cpu_s(p.pid) for p in running), time.monotonic()
            time.sleep(seconds)
            wall = time.monotonic() - at
            after, cpu = lines(folder, len(uris)), sum(cpu_s(p.pid) for p in running) - cpu
            rss = sum(resident_mib(p.pid) for p in running)
            pss = sum(proportional_mib(p.pid) for p in running)
        finally:
            stop(running)
        told = [_window(folder / f"{n}.jsonl", a, b) for n, (a, b) in enumerate(zip(before, after, strict=True))]
        frames = sum(after) - sum(before)
        result = {
            "cameras": len(uris), "source": uris[0].split(":")[0], "processes": len(running), "seconds": round(wall, 2),
            "frames": frames, "fps": round(frames / wall, 2), "fps_least": round(min(t["frames"] for t in told) / wall, 2),
            "age_p50_ms": _percentile([a for t in told for a in t["ages"]], 50),
            "age_p95_ms": _percentile([a for t in told for a in t["ages"]], 95),
            "dropped": sum(t["dropped"] for t in told), "core_ms": round(cpu * 1000 / max(1, frames), 2),
            "cores": round(cpu / wall, 2), "rss_mib": round(rss, 1), "pss_mib": round(pss, 1),
        }  # fmt: skip
        if not processes:
            result["adds_up"] = _adds_up(folder / "report.json")
        return result


def _window(file: Path, first: int, end: int) -> dict[str, Any]:
    rows = [json.loads(line) for line in file.read_text().splitlines()[max(0, first - 1) : end]]
    ages = [row["age_ms"] for row in rows[1:]]
    return {"frames": len(ages), "ages": ages, "dropped": rows[-1]["dropped"] - rows[0]["dropped"] if rows else 0}


def _adds_up(report: Path) -> bool:
    """Every frame of every camera is in one count."""
    cameras = json.loads(report.read_text())["cameras"]
    return all(c["arrived"] == c["frames"] + c["dropped"] + c["thinned"] + c["unfinished"] for c in cameras)


def _percentile(values: Sequence[float], q: float) -> float | None:
    return round(float(np.percentile(values, q)), 2) if values else None


def measure_kill(engine: Path, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Four cameras, the last of RTSP; in every second run its server is killed as the window begins."""
    found = []
    for number in range(2 * rounds):
        killed = number % 2 == 1
        with rtsp_server("320x240", 10) as (address, server):
            uris = [*addresses("synthetic", 3, "320x240", 10), address]
            victim = server if killed else None
            found.append({"killed": killed, "round": number // 2, **_kill_run(engine, uris, seconds, victim)})
    return found


def _kill_run(
    engine: Path, uris: Sequence[str], seconds: float, victim: subprocess.Popen[str] | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = list[subprocess.Popen[bytes]]()
        try:
            start_one(engine, uris, folder, running)
            before = lines(folder, len(uris))
            if victim is not None:
                victim.kill()
            time.sleep(seconds)
            after = lines(folder, len(uris))
        finally:
            stop(running)
        others = [_window(folder / f"{n}.jsonl", before[n], after[n]) for n in range(3)]
        return {
            "age_p95_ms": _percentile([a for t in others for a in t["ages"]], 95),
            "frames_of_others": sum(t["frames"] for t in others),
            "frames_of_the_fourth": after[3] - before[3],
        }


def main() -> None:
    """Measure what was asked for and write a JSON line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--cameras", type=int, nargs="*", default=[])
    parser.add_argument("--processes", action="store_true", help="a process a camera, instead of one for all")
    parser.add_argument("--source", choices=["synthetic", "rtsp"], default="synthetic")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5, help="of --kill, each with and without")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for count in args.cameras:
        if args.source == "rtsp":
            with rtsp_server(args.size, round(args.fps)) as (address, _):
                _note(args.out, measure(args.engine, [address] * count, args.seconds, processes=args.processes))
        else:
            uris = addresses("synthetic", count, args.size, args.fps)
            _note(args.out, measure(args.engine, uris, args.seconds, processes=args.processes))
    if args.kill:
        for row in measure_kill(args.engine, args.seconds, args.rounds):
            _note(args.out, row)


def _note(out: Path, row: dict[str, Any]) -> None:
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
