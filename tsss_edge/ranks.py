"""Processes that `torchrun` started on the same command: who this one is, what it takes of a list, what all of them found.

Work on pictures is shared in whole batches, since a network may round a picture otherwise in a batch of another size. So the
results are those of one process, bit for bit. Every process must come to each `meet` and `gathered`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tsss_edge.disk import held
from tsss_edge.metrics import ConfusionMatrix

T = TypeVar("T")
# How long one process waits for the others: work is shared in equal parts, so a long wait means that one of them is gone.
PATIENCE = timedelta(hours=1)


class World(NamedTuple):
    """This process's number and how many there are. Process 0 is the one that writes."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        return self.rank == 0


ALONE = World()


def join(device: str = "cpu") -> World:
    """Meet the processes that torchrun started; without torchrun, a world of one.

    Args: device: type of the device that trains. Tensors of GPUs go through NCCL, everything else through gloo.
    """
    if processes() == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    return this_process()


def this_process() -> World:
    """Who this process is, after `join`; a world of one before."""
    if processes() == 1:
        return ALONE
    import torch.distributed as dist

    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet() -> None:
    """Wait until every process is here."""
    gathered(None)


def gathered(value: T) -> list[T]:
    """What each process gives (picklable), by rank; every process gets the whole list. In a world of one: the value alone."""
    world = this_process()
    if world.size == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, value)
    return found


def part_of(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a list: parts follow one another in order of rank."""
    world = this_process()
    return items[len(items) * world.rank // world.size : len(items) * (world.rank + 1) // world.size]


def of_all_processes(matrix: ConfusionMatrix) -> ConfusionMatrix:
    """The counts of all processes' pictures, by rank; of one process, its own."""
    return ConfusionMatrix.together(gathered(matrix))


@contextmanager
def held_for_all(path: Path, what: str) -> Iterator[None]:
    """Within the block no other command works on `path`. Under torchrun the first process holds it for all.

    Raises: BusyError: another one does, with who it is.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with held(path, what):
        yield
