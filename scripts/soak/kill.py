"""SIGKILL at a random moment of a random command, again and again -> what was there was whole, and going on gives the same bytes.

python -m soak.kill --kills 200 --seed 1

Half of the kills hit a command that replaces an older result, which must stay whole. After each kill: every visible file opens; the
command, run again (training with --resume), gives what an undisturbed one gave; and nothing hidden is left.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from soak.world import Job, broken, digests, hidden, import_heavy, jobs, make_world, run, start, told

MOST_PROBLEMS = 20


class Harness:
    """A world, and what each of its commands gives and takes when nobody disturbs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs = jobs(make_world(root / "world"))
        self.wanted: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.log = root / "log.txt"
        self.problems: list[str] = []
        self.killed: Counter[str] = Counter()
        for job in self.jobs:
            out = self._fresh(job)
            self.seconds[job.name] = run(job.args(out), self.log)
            self.wanted[job.name] = digests(out)

    def _fresh(self, job: Job) -> Path:
        out = self.root / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return out

    def kill(self, job: Job, share: float, *, over: bool) -> bool:
        """Kill `job` at `share` of its time, over an older result or into an empty folder; False: it had ended before."""
        out = self._fresh(job)
        if over and job.again is None:
            run(job.args(out), self.log)
        child = start(job.args(out), self.log)
        early = child.wait(share * self.seconds[job.name])
        if early is None:
            child.kill()
        self.killed[job.name] += early is None
        where = f"{job.name} at {100 * share:.0f}%{' over an older result' if over else ''}"
        self.problems += [f"{where}: after the kill {text}" for text in broken(out)]
        self._again(job, out, where)
        return early is None

    def _again(self, job: Job, out: Path, where: str) -> None:
        begun = (out / "run/last.pt").is_file()
        args = job.again(out) if job.again is not None and begun else job.args(out)
        try:
            run(args, self.log)
        except RuntimeError as error:
            self.problems.append(f"{where}: running it again: {error}")
            return
        found, wanted = digests(out), self.wanted[job.name]
        names = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
        self.problems += [f"{where}: afterwards {name} differs" for name in names]
        left = [str(p.relative_to(out)) for p in out.rglob("*") if hidden(p, out) and p.name != ".order"]
        self.problems += [f"{where}: {name} is left" for name in left]


def soak_kills(kills: int, seed: int, seconds: float | None = None) -> dict[str, Any]:
    """So many kills, or as many as `seconds` allow once each command has run undisturbed."""
    import_heavy()
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        harness, began = Harness(Path(folder)), time.monotonic()
        done = early = 0
        while done < kills and (seconds is None or time.monotonic() - began < seconds):
            hit = harness.kill(draw.choice(harness.jobs), draw.uniform(0, 1.0), over=draw.random() < 0.5)
            done, early = done + hit, early + (not hit)
    return {
        "seed": seed,
        "kills": done,
        "ended_before": early,
        "by_command": dict(harness.killed),
        "seconds_undisturbed": {name: round(value, 2) for name, value in harness.seconds.items()},
        "seconds": round(time.monotonic() - began, 1),
        "problems": harness.problems[:MOST_PROBLEMS],
        "passed": not harness.problems and done > 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after so long, whatever --kills says")
    args = parser.parse_args()
    report = soak_kills(args.kills, args.seed, args.seconds)
    return told(report, report["passed"])


if __name__ == "__main__":
    sys.exit(main())
