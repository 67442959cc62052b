"""Every command on a disk that is full, and in a folder that may not be written -> one line, nothing half-written.

sudo python -m soak.disk --seed 1       (a real full disk is a small tmpfs, which only root can mount)

Each command runs on disks of a few sizes, from nothing to nearly enough. It must end with exit code 1 and one line of ours, or
succeed; what is visible afterwards must open. Read-only: the same as a user who may not write there.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from soak.world import Job, broken, import_heavy, jobs, make_world, start, told

NOBODY = 65534
SIZES_KIB = (16, 64, 256, 1024, 4096)


def rehearse(job: Job, out: Path, log: Path, *, user: int | None) -> list[str]:
    """Problems of one run of a command into `out`; with `user`, as that user."""
    child = start(job.args(out), log, before=functools.partial(os.setuid, user) if user is not None else None)
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
        return [f"{kib} KiB: {text}" for text in rehearse(job, out, root / "log.txt", user=None)]
    finally:
        subprocess.run(["umount", str(out)], check=True)


def read_only(job: Job, root: Path) -> list[str]:
    out = root / "closed"
    out.mkdir(exist_ok=True)
    out.chmod(0o555)
    return [f"read-only: {text}" for text in rehearse(job, out, root / "log.txt", user=NOBODY)]


def others_can_run_python() -> bool:
    """Whether a user without rights may read Python's own files; not where Python lies in root's home."""
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        os._exit(0 if os.access(os.__file__, os.R_OK) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
        closed = others_can_run_python()
        for job in every:
            problems += read_only(job, root) if closed else []
            runs += closed
            for _ in range(rounds):
                problems += on_full_disk(job, root, draw.choice(SIZES_KIB))
                runs += 1
    read_only_ran = "yes" if closed else "left out: Python's own files are closed to other users here"
    return {"seed": seed, "runs": runs, "read_only": read_only_ran, "problems": problems[:20], "passed": not problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    report = soak_disk(args.seed, args.rounds)
    return told(report, report["passed"])


if __name__ == "__main__":
    sys.exit(main())
