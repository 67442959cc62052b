"""When a shadow engine may take over, when it must go back, and the two small files by which `promote` and `stream` speak."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import msgspec

from tsss_edge.artifacts import Struct
from tsss_edge.config import read_toml
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import read_json, sha256_file, write_bytes, write_json

Phase = Literal["shadow", "opening", "promoted", "settled", "back"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Wish = Literal["promote", "back"]


class PromoteWhen(Struct, frozen=True):
    """All must hold before the new engine takes over by itself."""

    frames: int = 300  # compared
    agreement: float = 0.9  # mean, 0-1, over pixels of categories that both engines know
    latency_ms: float | None = None  # p95 of the shadow at most

    def __post_init__(self) -> None:
        if self.frames < 1 or not 0 <= self.agreement <= 1:
            raise ValueError("promote: frames must be at least 1 and agreement 0 to 1")


class BackWhen(Struct, frozen=True):
    """Any of these sends the new engine back, during the first `frames` frames of its service."""

    frames: int = 300
    agreement: float = 0.5  # mean with the old engine, at least
    age_ratio: float = 2.0  # p95 of the frame age over that before the swap, at most
    age_ms: float | None = None  # p95 of the frame age, at most
    failures: int = 0  # frames on which it raised an error, at most; the old engine does those frames

    def __post_init__(self) -> None:
        if self.frames < 1 or not 0 <= self.agreement <= 1 or self.age_ratio <= 0 or self.failures < 0:
            raise ValueError("back: frames at least 1, agreement 0 to 1, age_ratio above 0, failures at least 0")


class RolloutRules(Struct, frozen=True):
    """`--promote-when FILE.toml`: tables [promote] and [back]. Without [promote] a person promotes."""

    promote: PromoteWhen | None = None
    back: BackWhen = BackWhen()


class RolloutStatus(Struct, frozen=True):
    """NEW.rollout.json, the page and the report. Times in milliseconds, agreement and shares 0-1."""

    phase: Phase
    old: str
    new: str
    new_sha256: str
    reason: str = ""  # of the last change of phase
    swapped_at: int | None = None  # the first frame of the new engine
    compared: int = 0  # frames that the other engine saw too, since the last change of phase
    agreement: float | None = None  # mean
    agreement_min: float | None = None
    beyond: float | None = None  # share of pixels of a category that one of the two does not know
    latency_p50_ms: float | None = None  # of the other engine, on its one spare thread
    latency_p95_ms: float | None = None
    age_p95_ms: float | None = None  # of the other engine's masks
    miou_service: float | None = None  # percent, on the frames with a truth that both engines saw
    miou_other: float | None = None
    failures: int = 0

    def line(self) -> str:
        """For a terminal."""
        parts = [f"{self.new}: {self.phase}"]
        if self.agreement is not None:
            parts.append(f"agreement {self.agreement:.4f} on {self.compared} frames, lowest {self.agreement_min:.4f}")
        if self.latency_p95_ms is not None:
            parts.append(f"latency p95 {self.latency_p95_ms:.1f} ms")
        return "; ".join([*parts, *([self.reason] if self.reason else [])])


def read_rules(path: Path | None) -> RolloutRules:
    """Rules of a TOML file; the defaults without one. Raises: ArtifactError: unreadable, unknown or senseless entries."""
    return read_toml(path, RolloutRules) if path is not None else RolloutRules()


def status_path(new: Path) -> Path:
    """Where a stream says how far the engine `new` is."""
    return new.with_name(f"{new.name}.rollout.json")


def wish_path(new: Path) -> Path:
    """Where `promote` leaves what is wanted."""
    return new.with_name(f"{new.name}.rollout-wish")


def save_status(new: Path, status: RolloutStatus) -> None:
    """Write it, atomically."""
    write_json(status_path(new), status)


def load_status(new: Path) -> RolloutStatus | None:
    """The last known status of exactly this engine file; None without one, or where the file was built anew since."""
    path = status_path(new)
    if not path.is_file():
        return None
    status = read_json(path, RolloutStatus, "delete it")
    return status if status.new_sha256 == sha256_file(new) else None


def wish(new: Path, what: Wish) -> None:
    """Ask the stream that has `new` as its shadow. Raises: DataError: there is no such engine."""
    if not new.is_file():
        raise DataError(f"{new}: no such engine")
    write_bytes(wish_path(new), what.encode())


def take_wish(new: Path) -> Wish | None:
    """What was asked since the last call."""
    path = wish_path(new)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    path.unlink(missing_ok=True)
    try:
        return msgspec.convert(text.strip(), Wish)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path}: expected promote or back, found {text!r}") from error
