"""Tasks in this process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tsss_edge.errors import DataError, UnavailableError
from tsss_edge.reproduce import pool
from tsss_edge.reproduce.pool import Task, threads_each, workers


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


def test_a_process_that_was_killed_is_told(tmp_path: Path) -> None:
    told = pytest.raises(UnavailableError, match=r"lost.*perhaps for want of memory; see jobs.log.*fewer --jobs")
    with told, workers(2, tmp_path / "jobs.log") as do_all:
        do_all([Task("lost", partial(os._exit, 9))])


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
    assert (threads_each(0, None, ray="local"), threads_each(3, 8, ray="local")) == (1, 3)


class LocalRay:
    """Ray's part that we use: every call is done at once, in a thread of its own."""

    def __init__(self, **resources: float) -> None:
        self.resources, self.asked, self.shut, self.running, self.most = resources, list[dict[str, object]](), 0, 0, 0
        self.lock = threading.Lock()

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: object) -> Any:
        self.asked.append(options)
        return lambda call: SimpleNamespace(remote=lambda task: lambda: self._do(call, task))

    def _do(self, call: Callable[[Any], Any], task: Any) -> Any:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        result = call(task)
        with self.lock:
            self.running -= 1
        return result

    def get(self, asked: Callable[[], Any]) -> Any:
        return asked()

    def shutdown(self) -> None:
        self.shut += 1


@pytest.mark.parametrize(
    ("resources", "jobs", "gpu", "options", "at_once"),
    [
        ({"CPU": 5.0}, None, True, {"num_cpus": 2, "num_gpus": 0}, 2),
        ({"CPU": 5.0}, 1, True, {"num_cpus": 2, "num_gpus": 0}, 1),
        ({"CPU": 16.0, "GPU": 3.0}, None, True, {"num_cpus": 2, "num_gpus": 1}, 3),
        ({"CPU": 16.0, "GPU": 3.0}, None, False, {"num_cpus": 2, "num_gpus": 0}, 8),
    ],
)
def test_a_cluster_takes_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], jobs: int | None, gpu: bool,
    options: dict[str, int], at_once: int,
) -> None:  # fmt: skip
    ray = LocalRay(**resources)
    monkeypatch.setattr(pool, "connect", lambda address: ray)
    with workers(jobs, tmp_path / "log", ray="local", threads=2, gpu=gpu) as do_all:
        do_all([Task(name, partial(leave, tmp_path / name)) for name in "abcdefghij"])
    assert len(list(tmp_path.iterdir())) == 10 and ray.shut == 1 and ray.most <= at_once
    assert ray.asked == [{**options, "max_retries": pool.RETRIES}]


def damaged() -> None:
    raise DataError("picture x is damaged")


def test_an_error_on_the_cluster_is_that_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = LocalRay(CPU=1.0)
    monkeypatch.setattr(pool, "connect", lambda address: ray)
    with (
        pytest.raises(DataError, match=r"^picture x is damaged$"),
        workers(None, tmp_path / "log", ray="local") as do_all,
    ):
        do_all([Task("bad", damaged), *leaving(tmp_path, "ab")])
    assert not list(tmp_path.iterdir()) and ray.shut == 1


@pytest.mark.slow_all
@pytest.mark.filterwarnings("default")  # Ray's own deprecations
def test_on_ray_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(FileNotFoundError), workers(None, tmp_path / "log", ray="local") as do_all:
        do_all([Task(name, partial((tmp_path / name).write_text, name)) for name in "abc"])
        do_all([Task("bad", (tmp_path / "none/x").read_text)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
