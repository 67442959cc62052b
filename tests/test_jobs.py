"""Tasks in order, in one process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tsss_edge.reproduce.jobs import Task, done, threads_each


def leave(path: Path, *needed: Path) -> None:
    """Write this process's number; the tasks before must have written theirs."""
    assert all(p.is_file() for p in needed)
    path.write_text(str(os.getpid()))
    print(f"wrote {path.name}")


def diamond(root: Path) -> list[Task]:
    a, b, c, d = (root / name for name in "abcd")
    return [
        Task("d", partial(leave, d, b, c), ("b", "c")),
        Task("a", partial(leave, a)),
        Task("c", partial(leave, c, a), ("a",)),
        Task("b", partial(leave, b, a), ("a",)),
    ]


def test_one_job_works_here_and_takes_the_earlier_task_first(tmp_path: Path) -> None:
    assert list(done(diamond(tmp_path), 1, tmp_path / "log")) == ["a", "c", "b", "d"]
    assert {(tmp_path / name).read_text() for name in "abcd"} == {str(os.getpid())}
    assert not (tmp_path / "log").exists()


def test_two_jobs_work_in_other_processes_and_keep_the_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(done(diamond(tmp_path), 2, tmp_path / "new/log"))
    assert names in (["a", "b", "c", "d"], ["a", "c", "b", "d"])
    assert str(os.getpid()) not in {(tmp_path / name).read_text() for name in "abcd"}
    assert sorted((tmp_path / "new/log").read_text().splitlines()) == ["wrote a", "wrote b", "wrote c", "wrote d"]
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == names


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_failure_nothing_else_begins(tmp_path: Path, jobs: int) -> None:
    tasks = [Task("bad", partial(leave, tmp_path / "x", tmp_path / "absent")), *diamond(tmp_path)]
    tasks = [tasks[0], *(Task(t.name, t.call, (*t.after, "bad")) for t in tasks[1:])]
    with pytest.raises(AssertionError):
        list(done(tasks, jobs, tmp_path / "log"))
    assert not list(tmp_path.glob("[abcd]"))


WAITING = """
import sys, time
from functools import partial
from pathlib import Path
from test_jobs import Task, done, leave
if __name__ == "__main__":
    root = Path(sys.argv[1])
    tasks = [Task("a", partial(leave, root / "a")), Task("b", partial(time.sleep, 60))]
    list(done(tasks, 2, root / "log"))
"""


def test_workers_end_with_the_process_that_began_them(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    started = time.monotonic()
    while not (tmp_path / "a").is_file() and time.monotonic() - started < 60:
        time.sleep(0.05)
    worker = int((tmp_path / "a").read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{worker}").exists() and time.monotonic() - started < 90:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_a_task_that_waits_for_nobody_or_for_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'b'"):
        list(done([Task("a", os.getpid, ("b",))], 1, tmp_path / "log"))
    with pytest.raises(ValueError, match="cycle"):
        list(done([Task("a", os.getpid, ("b",)), Task("b", os.getpid, ("a",))], 1, tmp_path / "log"))


def test_jobs_share_the_cores_unless_threads_are_given() -> None:
    cores = os.cpu_count() or 1
    assert threads_each(0, 1) == 0
    assert threads_each(0, 2) == max(1, cores // 2)
    assert threads_each(0, 10 * cores) == 1
    assert threads_each(3, 2) == 3
