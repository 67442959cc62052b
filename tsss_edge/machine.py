"""This machine and its terminal: its processor, cores that may be used, memory, progress bars."""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
CPUINFO = Path("/proc/cpuinfo")
DOT_PRODUCTS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp")  # INT8 products summed in 32 bits at once
BF16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, x86 and Arm; without them PyTorch converts each value
SEVEN_BITS = (
    "tsss-edge calibrate FUSED.onnx --data DATASET --weight-bits 7 --out FUSED.int8.onnx"  # where INT8 saturates
)
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # compute capabilities that TensorRT-RTX serves


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use. `taskset` or a container may allow fewer than the machine has: by affinity, or by CPU time
    (`docker run --cpus 1.5`, Kubernetes' limits), of which a broken core counts as one.

    Args: cgroup: where the kernel tells the limits.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, max(1, math.ceil(limit))) if (limit := _cgroup_cores(cgroup)) is not None else cores


def _cgroup_cores(cgroup: Path) -> float | None:
    """Cores' worth of CPU time that the control group allows (versions 2 and 1 of the interface), None without a limit."""
    try:
        if (unified := cgroup / "cpu.max").is_file():
            quota, period = unified.read_text().split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
    except (OSError, ValueError):
        return None
    return None if quota == "max" or int(quota) <= 0 or int(period) <= 0 else int(quota) / int(period)


def cpu_name() -> str:
    """The processor's name, as /proc/cpuinfo tells it."""
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def cpu_flags(wanted: Sequence[str]) -> tuple[str, ...]:
    """Of the `wanted` instruction sets (as Linux names them) those that this processor has."""
    flags = set(_cpuinfo("flags", "Features").split())
    return tuple(flag for flag in wanted if flag in flags)


def int8_saturates() -> bool:
    """Whether INT8 kernels of this processor add two products in 16 bits: x86 without VNNI or AMX.

    Its instruction (VPMADDUBSW) clips 255 * 127 * 2 to 32,767, and so gives wrong sums where both values are large. Weights of
    7 bits keep it exact: 255 * 63 * 2 = 32,130. False where the system does not tell.
    """
    found = cpu_flags((*DOT_PRODUCTS, "ssse3"))
    return found == ("ssse3",)


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16. False where the system does not tell.

    Without it PyTorch trains in bf16 9 to 12 times slower than in float32 (ours: AVX2, edge-s and edge-m, 128x128, two threads).
    """
    return bool(cpu_flags(BF16_PRODUCTS))


def _cpuinfo(*keys: str) -> str:
    text = CPUINFO.read_text() if CPUINFO.is_file() else ""
    found = re.search(rf"^(?:{'|'.join(keys)})\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def memory_bytes(path: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """(total, available) bytes of main memory. Both are 0 where the system does not tell."""
    text = path.read_text() if path.is_file() else ""
    values = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return values.get("MemTotal", 0), values.get("MemAvailable", 0)


@contextmanager
def progress(what: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr if that is a terminal. Yields a function: call it after each item, or with a count."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def advance(amount: int = 1) -> None:
            bar.advance(task, amount)

        yield advance


def track(items: Sequence[T], what: str) -> Iterable[T]:
    """Yield `items` and show a progress bar on stderr if that is a terminal."""
    with progress(what, len(items)) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show that work goes on, on stderr if that is a terminal. For work without steps to count."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def in_order(
    work: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int | None = None, name: str = "worker"
) -> Generator[R, None, None]:
    """`work` of every item, in the order of the items, on `threads` threads; at most `ahead` of them wait (default: two a thread).

    Memory does not grow with the number of items. An error of `work` is raised in its place.
    """
    upcoming, waiting = iter(items), deque[Future[R]]()
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        try:
            for item in upcoming:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= (ahead or 2 * threads):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
