"""The run folder: config.toml, log.jsonl, TensorBoard events, and the progress bar while it fills."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.files import write_bytes


def has_begun(out: Path, resume: bool) -> bool:
    """Whether there is a run to go on with. Raises: ArtifactError: there is one and `resume` was not asked for."""
    begun = (out / "last.pt").is_file()
    if begun and not resume:
        raise ArtifactError(f"{out}: holds a run already; add --resume to go on with it, or choose another --out")
    return begun


def epochs_done(out: Path) -> int:
    """Epochs that the log of a run holds; 0 of a run that has not begun."""
    path = out / "log.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def write_config(out: Path, config: TrainConfig) -> None:
    """Write config.toml, which `--config` reads."""
    write_bytes(out / "config.toml", to_toml(config).encode())


def to_toml(config: TrainConfig) -> str:
    """The settings as TOML; every value is a string, number, boolean or list, which JSON writes the same way.

    None, which TOML lacks, is left out: it is the default where it occurs.
    """
    values: dict[str, Any] = msgspec.to_builtins(config)
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None)


class Log:
    """log.jsonl, one line an epoch, and TensorBoard. Lines of epochs that will be trained again are dropped."""

    def __init__(self, out: Path, first_epoch: int, *, writes: bool = True) -> None:
        self._path = out / "log.jsonl"
        if writes:
            self._keep_until(first_epoch)
        self._board = _board(out, first_epoch) if writes and find_spec("tensorboard") else None
        self._start_epoch()

    def _keep_until(self, epoch: int) -> None:
        *lines, _ = self._path.read_text().split("\n") if self._path.is_file() else [""]  # a kill may cut the last line
        kept = [line for line in lines if json.loads(line)["epoch"] <= epoch]
        write_bytes(self._path, "".join(line + "\n" for line in kept).encode())

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()

    def _start_epoch(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._steps, self._since = 0, time.perf_counter()

    def step(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Add the losses of a step to the epoch's means."""
        self._steps += 1
        for name, value in {"loss": loss, **parts}.items():
            self._sums[name] += float(value.detach())

    def epoch(self, epoch: int, lr: float, metrics: dict[str, float]) -> None:
        """Write the epoch's line: means of the losses, metrics, learning rate at its end, seconds (with validation)."""
        means = {name: total / self._steps for name, total in self._sums.items()}
        seconds = round(time.perf_counter() - self._since, 2)
        line = {"epoch": epoch + 1, "lr": lr, "seconds": seconds, **means, **metrics}
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")  # msgspec writes NaN as null, which is JSON
        if self._board:
            for name, value in {**means, **metrics}.items():
                self._board.add_scalar(name, value, epoch + 1)
        self._start_epoch()


def _board(out: Path, first_epoch: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=first_epoch + 1)  # hides what will be trained again
