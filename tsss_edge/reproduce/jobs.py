"""Tasks that wait for each other, done in several processes at once.

Small networks gain little from a second thread (`edge-s` at 128x128 trains 1.34 times as fast on two); two networks with one
thread each fill two cores. `graphlib` keeps the order, `concurrent.futures` the processes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing import get_context, parent_process
from pathlib import Path

from tsss_edge.machine import usable_cores


@dataclass(frozen=True)
class Task:
    """A name, what to do (picklable), and the names of the tasks to wait for."""

    name: str
    call: Callable[[], object]
    after: tuple[str, ...] = ()


def done(tasks: Sequence[Task], jobs: int, log: Path) -> Iterator[str]:
    """Do the tasks, those earlier in the list first where several may start; yield each one's name when it is finished.

    Args:    jobs: processes at once; 1 works in this process. log: where the other processes write, appended to.
    Raises:  what a task raises; tasks under way are finished first, no other is begun. ValueError: tasks in a circle, or
             one that waits for nobody's name.
    """
    queue = _Queue(tasks)
    yield from _here(queue) if jobs == 1 else _in_processes(queue, jobs, log)


class _Queue:
    """Tasks that may start, in the order of their list."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._places = {name: place for place, name in enumerate(self._tasks)}
        if unknown := {name for task in tasks for name in task.after} - set(self._tasks):
            raise ValueError(f"no task named {unknown.pop()!r} to wait for")
        self._order = TopologicalSorter({task.name: task.after for task in tasks})
        self._order.prepare()
        self._ready: list[str] = []

    def take(self) -> Task | None:
        """The next task, None while there is nothing that may start."""
        self._ready = sorted([*self._ready, *self._order.get_ready()], key=self._places.__getitem__)
        return self._tasks[self._ready.pop(0)] if self._ready else None

    def finish(self, name: str) -> None:
        """Let those start that waited for it."""
        self._order.done(name)


def _here(queue: _Queue) -> Iterator[str]:
    while task := queue.take():
        task.call()
        queue.finish(task.name)
        yield task.name


def _in_processes(queue: _Queue, jobs: int, log: Path) -> Iterator[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin_worker, initargs=(log,)) as pool:
        running: dict[Future[object], tuple[str, float]] = {}
        finished: list[str] = []
        while True:
            while len(running) < jobs and (task := queue.take()):
                running[pool.submit(task.call)] = (task.name, time.perf_counter())
            yield from finished  # now, so that the next tasks do not wait for what the caller does in between
            if not running:
                return
            finished = [
                _finish(future, *running.pop(future)) for future in wait(running, return_when=FIRST_COMPLETED).done
            ]
            for name in finished:
                queue.finish(name)


def _finish(future: Future[object], name: str, start: float) -> str:
    future.result()
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return name


def _begin_worker(log: Path) -> None:
    """Write to a file, for progress bars of several processes would overwrite each other, and end when the first process
    does: a training that went on by itself would meet the one that resumes it."""
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def threads_each(threads: int, jobs: int) -> int:
    """CPU threads of one of `jobs` processes: as asked for, or (0) its share of the cores."""
    return threads or (max(1, usable_cores() // jobs) if jobs > 1 else 0)
