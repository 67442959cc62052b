"""The checkpoints of a run: best.pt, last.pt, and going on from last.pt or one plain sentence why that cannot be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
from torch import nn

from tsss_edge.artifacts import Checkpoint, CheckpointMeta
from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError

FREE_TO_CHANGE = ("device", "threads")  # settings that a resumed run may have otherwise
_DEFAULTS: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(TrainConfig()))  # of settings younger than a run


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
                part.load_state_dict(saved["beside"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ArtifactError(f"{path}: belongs to another kind of run ({error}); choose another --out") from error
        self.best = float(saved["best"])
        return int(saved["epoch"])

    @property
    def _learners(self) -> dict[str, Stateful]:
        return {"average": self.average, **self.beside}


def require_same_run(path: Path, saved: tuple[CheckpointMeta, Any], now: tuple[CheckpointMeta, Any]) -> None:
    """Raise ArtifactError when a run would go on with settings, switches or data it was not started with."""
    a, b = (
        {
            **_DEFAULTS,
            **meta.training,
            "stage": meta.stage,
            "strong": meta.strong,
            "classes": meta.classes,
            "switches": o,
            "data": meta.data_hash or now[0].data_hash,  # of a run older than the hash nothing is known
        }
        for meta, o in (saved, now)
    )
    changed = [key for key in b if a[key] != b[key] and key not in FREE_TO_CHANGE]
    if changed:
        raise ArtifactError(
            f"{path}: this run was started with other settings or data ({', '.join(changed)}); "
            "go on with the same ones, or choose another --out"
        )
