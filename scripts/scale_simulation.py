"""10 to 10,000 cameras: how many cores, GPUs, hosts, how much network and money, from measured costs and stated assumptions -> Markdown.

python scripts/scale_simulation.py --measured docs/results/scale.json --fps 10 --out docs/results/scale_simulation.md

Everything that was not measured here is an option with its default named on the page.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import msgspec

COUNTS = (10, 30, 100, 300, 1000, 3000, 10_000)


class Assumptions(msgspec.Struct, frozen=True):
    """What a deployment is made of. Times in core-milliseconds of the measured machine, network in Mbit/s, money per hour."""

    fps: float  # masks a second and camera
    frame_core_ms: float  # everything but the network: decode, preprocess, labels, overlay, sinks
    network_core_ms: float  # the engine, on the CPU
    gpu_fps: float  # pictures a second of one GPU on the engine alone
    camera_mbit: float  # of one compressed stream into the host that decodes it
    picture_bytes: int  # of one network input on its way to a pool of engines
    answer_bytes: int  # of its outputs on the way back
    use: float  # of a core that is used at most: the rest is for bursts
    host_cores: int
    core_hour: float
    gpu_hour: float
    overhead_mib: float  # of a process with its engine
    camera_mib: float  # of one more camera in it


class Plan(msgspec.Struct, frozen=True):
    """What a number of cameras needs."""

    cameras: int
    edge_cores: int
    edge_hosts: int
    gpus: int
    pool_cores: int
    ingest_gbit: float
    pool_gbit: float
    memory_gib: float
    cost_cpu: float
    cost_gpu: float


def plan(cameras: int, a: Assumptions) -> Plan:
    """Engines on the hosts' own cores, or in a pool of GPUs that gets network inputs and gives outputs back."""
    rate = cameras * a.fps
    around = rate * a.frame_core_ms / 1000 / a.use
    network = rate * a.network_core_ms / 1000 / a.use
    edge_cores, pool_cores = math.ceil(around + network), math.ceil(around)
    hosts = math.ceil(edge_cores / a.host_cores)
    gpus = math.ceil(rate / (a.gpu_fps * a.use))
    return Plan(
        cameras=cameras,
        edge_cores=edge_cores,
        edge_hosts=hosts,
        gpus=gpus,
        pool_cores=pool_cores,
        ingest_gbit=cameras * a.camera_mbit / 1000,
        pool_gbit=rate * 8 * (a.picture_bytes + a.answer_bytes) / 1e9,
        memory_gib=(hosts * a.overhead_mib + cameras * a.camera_mib) / 1024,
        cost_cpu=edge_cores * a.core_hour,
        cost_gpu=pool_cores * a.core_hour + gpus * a.gpu_hour,
    )


def table(a: Assumptions) -> str:
    """A row a number of cameras."""
    head = (
        "| cameras | cores, engines on them | hosts | GPUs in a pool | cores beside the pool | into the hosts, Gbit/s | pool, "
        "Gbit/s | memory, GiB | cost an hour, CPU | cost an hour, pool |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = [plan(count, a) for count in COUNTS]
    return head + "".join(
        f"| {p.cameras:,} | {p.edge_cores:,} | {p.edge_hosts} | {p.gpus} | {p.pool_cores:,} | {p.ingest_gbit:.2f} | {p.pool_gbit:.2f} | "
        f"{p.memory_gib:.1f} | {p.cost_cpu:,.2f} | {p.cost_gpu:,.2f} |\n"
        for p in rows
    )


MEANINGS = {
    "fps": "masks a second and camera",
    "frame_core_ms": "core-ms a frame around the network: decode, preprocess, labels, sinks",
    "network_core_ms": "core-ms of the network on this CPU (time of a call on one thread)",
    "gpu_fps": "pictures a second of one GPU on the engine alone",
    "camera_mbit": "Mbit/s of one compressed camera stream",
    "picture_bytes": "bytes of a network input on its way to the pool",
    "answer_bytes": "bytes of its outputs on the way back",
    "use": "share of a core or GPU that is used at most",
    "host_cores": "cores of a host",
    "core_hour": "price of a core-hour",
    "gpu_hour": "price of a GPU-hour",
    "overhead_mib": "MiB of a process with its engine",
    "camera_mib": "MiB of one more camera in it",
}


def page(a: Assumptions, measured: set[str]) -> str:
    """Table and assumptions."""
    values = msgspec.structs.asdict(a)
    rows = "".join(
        f"| {text} | {values[name]:g} | {'measured, scale.md' if name in measured else 'assumed'} |\n"
        for name, text in MEANINGS.items()
    )
    return (
        "# 10 to 10,000 cameras: a simulation\n\nNot a measurement: arithmetic on the costs of one frame. Two ways are compared: "
        "every host runs the network on its own cores, or the hosts decode and draw and a pool of GPUs runs it (`triton://`). Costs are "
        "taken to add up linearly; a larger machine shares caches and memory bandwidth among its cores, and is not measured here.\n\n"
        f"{table(a)}\n| what | value | |\n|---|---|---|\n{rows}\n"
        "Left out: recording (disk and encoding), idle reserve for a host that fails, and the network's own protocol bytes.\n\n"
        "```sh\npython scripts/scale_simulation.py --measured docs/results/scale.json --out docs/results/scale_simulation.md\n```\n"
    )


def main() -> None:
    """Read what was measured, take the rest from the options, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measured", type=Path, required=True, help="JSON with frame_core_ms, network_core_ms, overhead_mib, ..."
    )
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--gpu-fps", type=float, default=2000.0)
    parser.add_argument("--camera-mbit", type=float, default=2.0)
    parser.add_argument("--use", type=float, default=0.7)
    parser.add_argument("--host-cores", type=int, default=32)
    parser.add_argument("--core-hour", type=float, default=0.04)
    parser.add_argument("--gpu-hour", type=float, default=1.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    measured = json.loads(args.measured.read_text())["simulation"]
    given = {
        k: getattr(args, k) for k in ("fps", "gpu_fps", "camera_mbit", "use", "host_cores", "core_hour", "gpu_hour")
    }
    args.out.write_text(page(Assumptions(**given, **measured), set(measured)))


if __name__ == "__main__":
    main()
