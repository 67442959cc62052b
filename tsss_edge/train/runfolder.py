"""The run folder: config.toml, log.jsonl, TensorBoard events, best.pt, last.pt, and going on from last.pt."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import msgspec
from torch import Tensor, nn

from tsss_edge.artifacts import Checkpoint, CheckpointMeta
from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.files import as_json_reads, edge, parse_json, write_bytes
from tsss_edge.train.board import Board, ClassValidation

FREE_TO_CHANGE = ("device", "threads")  # settings that a resumed run may have otherwise
_DEFAULTS: dict[str, Any] = as_json_reads(TrainConfig())  # of settings younger than a run


def has_begun(out: Path, resume: bool) -> bool:
    """Whether there is a run to go on with. Raises: ArtifactError: there is one and `resume` was not asked for."""
    begun = (out / "last.pt").is_file()
    if begun and not resume:
        raise ArtifactError(f"{out}: holds a run already; add --resume to go on with it, or choose another --out")
    return begun


def epochs_done(out: Path) -> int:
    """Epochs that the log of a run holds; 0 of a run that has not begun."""
    return len(read_log(out / "log.jsonl"))


def training_seconds(run: Path) -> float:
    """Sum over the epochs of a run's log. Raises: ArtifactError: as `read_log`, or a line without its seconds."""
    path = run / "log.jsonl"
    with edge(path, "training log", "train again"):
        return round(sum(float(line["seconds"]) for line in read_log(path)), 1)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, an epoch each; none where there is no log. A last line that a kill cut is left out.

    Raises: ArtifactError: another line is damaged.
    """
    *lines, _ = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    with edge(path, "training log", "delete its damaged lines, or train again"):
        return [parse_json(line, dict[str, Any]) for line in lines]


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
        self._board = Board(out, first_epoch) if writes and find_spec("tensorboard") else None
        self._start_epoch()

    def _keep_until(self, epoch: int) -> None:
        with edge(self._path, "training log", "delete its damaged lines, or train again"):
            kept = [line for line in read_log(self._path) if line["epoch"] <= epoch]
        write_bytes(self._path, b"".join(msgspec.json.encode(line) + b"\n" for line in kept))

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
            self._board.scalars({"lr": lr, **means, **metrics}, epoch + 1)
        self._start_epoch()

    def show(self, epoch: int, shows: ClassValidation, net: nn.Module) -> None:
        """Give TensorBoard the IoU of each class and a few pictures of val. Without TensorBoard nothing is drawn."""
        if self._board:
            self._board.scalars({f"iou/{name}": percent for name, percent in shows.iou.items()}, epoch + 1)
            self._board.image("val", shows.picture(net), epoch + 1)
            self._start_epoch()  # these seconds are not training's


# -- Checkpoints


class Stateful(Protocol):
    """Something beside the network that learns or counts, such as an optimizer or a discriminator."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class Checkpoints:
    """What is written after every epoch, and read again by `--resume`.

    net: the network that learns (last.pt). average: its averaged weights (best.pt). beside: what else must survive.
    options: switches of the stage that a resumed run must share. best: the best score so far.
    """

    out: Path
    meta: CheckpointMeta
    net: nn.Module
    average: nn.Module
    beside: dict[str, Stateful]
    options: dict[str, float]
    best: float = -math.inf

    def save(self, epochs: int, metrics: dict[str, float], score: float) -> None:
        """Write last.pt after `epochs` epochs, and best.pt first where `score` is the best, or there is none yet."""
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}  # an absent class has no IoU
        meta = msgspec.structs.replace(self.meta, metrics=metrics)
        score = finite_or_least(score)
        if score > self.best or not (self.out / "best.pt").exists():
            self.best = max(score, self.best)
            Checkpoint.save(self.out / "best.pt", meta, self.average.state_dict())
        beside = {name: part.state_dict() for name, part in self._learners.items()}
        resume = {"epoch": epochs, "best": self.best, "beside": beside, "options": self.options}
        Checkpoint.save(self.out / "last.pt", meta, self.net.state_dict(), resume)

    def restore(self) -> int:
        """Load everything that last.pt holds -> epochs done.

        Raises: ArtifactError: the run was started with other settings or other categories.
        """
        path = self.out / "last.pt"
        checkpoint = Checkpoint.load(path)
        saved = checkpoint.resume()
        require_same_run(path, (checkpoint.meta, saved.get("options")), (self.meta, self.options))
        try:
            self.net.load_state_dict(checkpoint.state())
            for name, part in self._learners.items():
                state = saved["beside"][name]
                if state or name != "scaler":  # one that was off keeps nothing, and one that is on refuses that
                    part.load_state_dict(state)
            self.best, epochs = finite_or_least(float(saved["best"])), int(saved["epoch"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: belongs to another kind of run ({error}); choose another --out") from error
        return epochs

    @property
    def _learners(self) -> dict[str, Stateful]:
        return {"average": self.average, **self.beside}


def finite_or_least(score: float) -> float:
    """`score`, or -inf where nothing could be measured: as a NaN it would never be beaten."""
    return score if math.isfinite(score) else -math.inf


def _grows(key: str, before: Any, now: Any) -> bool:
    """More epochs than before: the run goes on, at the learning rate that the longer run has there."""
    return key == "epochs" and bool(now > before)


def require_same_run(path: Path, saved: tuple[CheckpointMeta, Any], now: tuple[CheckpointMeta, Any]) -> None:
    """Raise ArtifactError when a run would go on with settings, switches or data it was not started with."""
    a, b = (
        {
            **_DEFAULTS,
            **meta.training,
            "stage": meta.stage,
            "strong": meta.strong,
            "classes": meta.classes,
            "switches": {name: value for name, value in (options or {}).items() if value},  # off is as if not there
            "data": meta.data_hash or now[0].data_hash,  # of a run older than the hash nothing is known
        }
        for meta, options in (saved, now)
    )
    changed = [key for key in b if a[key] != b[key] and key not in FREE_TO_CHANGE and not _grows(key, a[key], b[key])]
    if changed:
        raise ArtifactError(
            f"{path}: this run was started with other settings or data ({', '.join(changed)}); "
            "go on with the same ones, or choose another --out"
        )
