"""Every command on a disk that is full, and in a folder that may not be written -> one line, nothing half-written.

sudo python -m soak.disk --seed 1       (a real full disk is a small tmpfs, which only root can mount)

Each command runs on disks of a few sizes, from nothing to nearly enough. It must end with exit code 1 and one line of ours, or
succeed; what is visible afterwards must open. Read-only: the same in a folder that is closed to a process without root's capabilities.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak.world import Job, broken, import_heavy, jobs, make_world, start, told

CAPABILITY_VERSION, DROP_FROM_BOUNDING_SET = 0x20080522, 24  # linux/capability.h, linux/prctl.h
SIZES_KIB = (16, 64, 256, 1024, 4096)


def rehearse(job: Job, out: Path, log: Path, *, before: Callable[[], None] | None = None) -> list[str]:
    """Problems of one run of a command into `out`. `before` runs in its process first."""
    child = start(job.args(out), log, before=before)
    code = child.wait(300.0)
    if code is None:
        child.kill()
        return [f"{job.name}: does not end"]
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    problems = [f"{job.name}: {text}" for text in broken(out)]
    if code not in (0, 1) or (code == 1 and len(said) != 1) or "Traceback" in log.read_text(errors="replace"):
        problems.append(f"{job.name}: exit {code}: {log.read_text(errors='replace')[-300:]}")
    return problems


def on_full_disk(job: Job, root: Path, kib: int) -> list[str]:
    out = root / "small"
    out.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(out)], check=True)
    try:
        return [f"{kib} KiB: {text}" for text in rehearse(job, out, root / "log.txt")]
    finally:
        subprocess.run(["umount", str(out)], check=True)


def read_only(job: Job, root: Path) -> list[str]:
    out = root / "closed"
    out.mkdir(exist_ok=True)
    out.chmod(0o555)
    return [f"read-only: {text}" for text in rehearse(job, out, root / "log.txt", before=drop_capabilities)]


def drop_capabilities() -> None:
    """Leave root none of its powers in this process and its children: a folder of mode 555 is then closed to it.

    Another user would do as well, but Python may lie where only root reads.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):  # beyond the last one it says EINVAL
        libc.prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)
    if libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def soak_disk(seed: int, rounds: int = 1) -> dict[str, Any]:
    """Every command once read-only, and `rounds` times on a small disk of a random size."""
    if os.geteuid() != 0:
        raise SystemExit("a small disk can be mounted by root only: run it with sudo, or in a container")
    import_heavy()
    draw, problems, runs = random.Random(seed), list[str](), 0
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        every = jobs(make_world(root / "world"))
        for job in every:
            problems += read_only(job, root)
            runs += 1
            for _ in range(rounds):
                problems += on_full_disk(job, root, draw.choice(SIZES_KIB))
                runs += 1
    return {"seed": seed, "runs": runs, "read_only": len(every), "problems": problems[:20], "passed": not problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    report = soak_disk(args.seed, args.rounds)
    return told(report, report["passed"])


if __name__ == "__main__":
    sys.exit(main())
