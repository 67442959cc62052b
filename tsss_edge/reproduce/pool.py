"""Tasks -> done here, in processes of this machine, or on a Ray cluster: as many at once as asked for, none after a failure."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from tsss_edge.deploy.ray_cluster import connect
from tsss_edge.errors import UnavailableError
from tsss_edge.machine import usable_cores

RETRIES = 3  # of a task whose worker died


class Task(NamedTuple):
    """A name, and what to do (picklable)."""

    name: str
    call: Callable[[], object]


@contextmanager
def workers(
    jobs: int | None, log: Path, *, ray: str | None = None, threads: int = 1, gpu: bool = False
) -> Iterator[Callable[[Sequence[Task]], None]]:
    """Yield a function that does all tasks of a list. It raises what a task raises, when those under way are finished.

    Args:   jobs: tasks at once; 1 (the default) works in this process. log: where other processes write, appended to.
            ray: address of a cluster that does them, as many at once as its cores or GPUs hold (or `jobs`). Its machines see
            the same files under the same paths. threads: cores of one task there. gpu: each takes one, where the cluster has some.
    Raises: UnavailableError: Ray is not installed, or there is no cluster.
    """
    if ray is not None:
        with RayPool(ray, jobs, threads, gpu=gpu) as cluster:
            yield partial(do_in_pool, cluster, cluster.jobs)
    elif jobs in (None, 1):
        yield do_here
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin_worker, initargs=(log,)) as pool:
            yield partial(do_in_pool, pool, jobs or 1)


class RayPool(ThreadPoolExecutor):
    """`submit` gives a call to the cluster; a thread here waits for it. A worker that dies is replaced and its task begun again,
    where a training goes on from its last epoch."""

    def __init__(self, address: str, jobs: int | None, threads: int, *, gpu: bool) -> None:
        self._ray = connect(address)
        found = self._ray.cluster_resources()
        gpus = int(found.get("GPU", 0)) if gpu else 0
        self.jobs = jobs or max(1, gpus or int(found.get("CPU", 1)) // threads)
        self._away = self._ray.remote(num_cpus=threads, num_gpus=1 if gpus else 0, max_retries=RETRIES)(_called)
        super().__init__(self.jobs)

    def submit(self, call: Callable[[], object], /) -> Future[None]:  # type: ignore[override]  # of calls without arguments
        return super().submit(self._wait, self._away.remote(call))

    def _wait(self, asked: Any) -> None:
        error = self._ray.get(asked)
        if error is not None:
            raise error

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[arg-type]
        self._ray.shutdown()


def _called(call: Callable[[], object]) -> Exception | None:
    """On the cluster: what went wrong, as itself; Ray would wrap it in the worker's traceback."""
    try:
        call()
    except Exception as error:
        return error
    return None


def do_here(tasks: Sequence[Task]) -> None:
    """One task after the other."""
    for task in tasks:
        task.call()


def do_in_pool(pool: Executor, jobs: int, tasks: Sequence[Task]) -> None:
    """`jobs` tasks at once. No more are handed over, so that none begins after a failure."""
    waiting, running = list(tasks), dict[Future[object], tuple[str, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            task = waiting.pop(0)
            running[pool.submit(task.call)] = task.name, time.perf_counter()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name, start = running.pop(future)
            try:
                future.result()
            except BrokenExecutor as error:
                raise UnavailableError(
                    f"{name}, or a task beside it: its process was ended from outside, perhaps for want of memory; see jobs.log, and go "
                    "on with fewer --jobs"
                ) from error
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def _begin_worker(log: Path) -> None:
    """Write to a file, so that progress bars do not mix. End with the first process: a training must not go on alone."""
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def threads_each(threads: int, jobs: int | None, *, ray: str | None = None) -> int:
    """CPU threads of one of `jobs` processes: as asked for, or (0) its share of this machine's cores; one on a cluster."""
    if ray is not None:
        return threads or 1
    return threads or (max(1, usable_cores() // jobs) if jobs is not None and jobs > 1 else 0)
