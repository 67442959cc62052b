"""Tasks in this process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tsss_edge.reproduce import Task, threads_each, workers


def leave(path: Path, *needed: Path) -> None:
    """Write this process's number; the tasks before must have written theirs."""
    assert all(p.is_file() for p in needed)
    path.write_text(str(os.getpid()))
    print(f"wrote {path.name}")


def leaving(root: Path, names: str) -> list[Task]:
    return [Task(name, partial(leave, root / name)) for name in names]


def test_one_job_works_here_in_order(tmp_path: Path) -> None:
    a, b = leaving(tmp_path, "ab")
    with workers(1, tmp_path / "log") as do_all:
        do_all([a, Task("c", partial(leave, tmp_path / "c", tmp_path / "a")), b])
    assert {(tmp_path / name).read_text() for name in "abc"} == {str(os.getpid())}
    assert not (tmp_path / "log").exists()


def test_two_jobs_work_in_other_processes_and_finish_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workers(2, tmp_path / "new/log") as do_all:
        do_all(leaving(tmp_path, "abc"))
        do_all([Task("d", partial(leave, tmp_path / "d", *(tmp_path / name for name in "abc")))])
    assert str(os.getpid()) not in {(tmp_path / name).read_text() for name in "abcd"}
    assert sorted((tmp_path / "new/log").read_text().splitlines()) == ["wrote a", "wrote b", "wrote c", "wrote d"]
    assert sorted(line.split(":")[0] for line in capsys.readouterr().err.splitlines()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_is_raised_and_nothing_else_begins(tmp_path: Path, jobs: int) -> None:
    bad = Task("bad", partial(leave, tmp_path / "x", tmp_path / "absent"))
    with pytest.raises(AssertionError), workers(jobs, tmp_path / "log") as do_all:
        do_all([*[bad] * jobs, *leaving(tmp_path, "abcd")])
    assert not list(tmp_path.glob("[abcd]"))


WAITING = """
import sys, time
from functools import partial
from pathlib import Path
from test_workers import leaving, workers, Task
if __name__ == "__main__":
    root = Path(sys.argv[1])
    with workers(2, root / "log") as do_all:
        do_all([*leaving(root, "a"), Task("b", partial(time.sleep, 60))])
"""


def test_workers_end_with_the_process_that_began_them(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    started = time.monotonic()
    told = tmp_path / "a"
    while not (told.is_file() and told.read_text()) and time.monotonic() - started < 180:
        time.sleep(0.05)
    worker = int(told.read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{worker}").exists() and time.monotonic() - started < 240:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_jobs_share_the_cores_unless_threads_are_given() -> None:
    cores = os.cpu_count() or 1
    assert threads_each(0, 1) == 0
    assert threads_each(0, 2) == max(1, cores // 2)
    assert threads_each(0, 10 * cores) == 1
    assert threads_each(3, 2) == 3
