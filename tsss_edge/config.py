"""Settings read from TOML at the door: training configuration, deployment target, calibration set.

Unknown keys and wrong types are refused with the file's name, so that a typo never turns into a default.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from tsss_edge.artifacts import Fit, Preprocess, Struct, Target
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import read_bytes, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


class TrainConfig(Struct, frozen=True):
    """How one network is trained. Every stage reads the same settings."""

    arch: str = "edge-s"
    size_hw: tuple[int, int] = (512, 512)
    fit: Fit = "stretch"
    epochs: int = 40
    batch: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.02
    warmup_epochs: float = 1.0
    ema: float = 0.99  # decay per step of the averaged weights that are evaluated and saved; 0 turns it off
    optimizer: Literal["adamw", "muon"] = "adamw"
    scale_range: tuple[float, float] = (0.5, 2.0)  # random resize before the crop
    crop_hw: tuple[int, int] | None = None  # size of training views; None: size_hw
    color: float = 0.3  # strength of random contrast, saturation, hue and brightness, 0-1; 0 leaves colours alone
    loss_stride: Literal[1, 2, 4, 8] = 4  # pixels a side of the cells that the loss sees, see train/losses.py
    balance: float = 0.0  # class weights: 0 plain, 1 median frequency balancing
    jaccard: float = 0.0  # weight of the soft Jaccard loss beside cross-entropy
    seed: int = 0
    amp: bool = True  # bf16 autocast on CPUs and GPUs that have it, FP16 on other GPUs
    device: str = "auto"
    threads: int = 0  # 0: all cores
    val_every: int = 1  # epochs
    encoder_weights: str = ""  # file, or "imagenet" for a lite architecture
    init_from: str = ""  # run or checkpoint whose weights training starts from, as far as they fit
    teachers: tuple[str, ...] = ()  # runs whose answers a supervised network learns (train/teachers.py)
    encoder_lr: float = 1.0  # share of `lr` that the encoder takes; pretrained weights are near the goal
    freeze: Literal[0, 8, 16, 32] = 0  # encoder stages up to this stride keep their weights and statistics
    views: int = 0  # augmented views of each picture, the same in every stage; 0: new ones in every epoch

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "encoder_lr", "val_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("seed", "threads", "warmup_epochs", "weight_decay", "balance", "jaccard", "views"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range must be two positive numbers, the smaller first, got {self.scale_range}")
        if not 0 <= self.color < 1:
            raise ValueError(f"color must be from 0 to less than 1, got {self.color}")
        if self.crop_hw and any(side <= 0 or side % 32 for side in self.crop_hw):
            raise ValueError(f"crop_hw must be multiples of 32, got {self.crop_hw}")

    @property
    def view_hw(self) -> tuple[int, int]:
        """Height and width of the views that training sees."""
        return self.crop_hw or self.size_hw

    @property
    def preprocess(self) -> Preprocess:
        """The network input this configuration trains for. Raises: ValueError: a size that our networks cannot halve."""
        if any(side < 32 or side % 32 for side in self.size_hw):
            raise ValueError(f"input size {self.size_hw}: height and width must be positive multiples of 32")
        return Preprocess(size_hw=self.size_hw, fit=self.fit)


class CalibSet(Struct, frozen=True):
    """Which pictures calibrate. One TOML file in calib/ each; `list` names a .txt beside it."""

    name: str
    description: str = ""
    split: str = "train"
    size: int = 512
    seed: int = 0
    balanced: bool = True
    list: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")


def cache_folder(name: str) -> Path:
    """`tsss-edge/NAME` in XDG_CACHE_HOME, else in ~/.cache. Raises: UnavailableError: this user has no home folder."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "tsss-edge" / name
    try:
        return Path.home() / ".cache" / "tsss-edge" / name
    except RuntimeError as error:
        raise UnavailableError(f"no folder for {name} to keep: set XDG_CACHE_HOME ({error})") from error


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file as `kind`. Raises: ArtifactError: missing, not TOML, unknown key, wrong type or value."""
    data = read_bytes(path, "file")
    try:
        content: dict[str, Any] = tomllib.loads(data.decode("utf-8-sig"))
        return msgspec.convert(content, kind)
    except (ValueError, RecursionError) as error:  # of the TOML, of a field, of UTF-8
        raise ArtifactError(f"{path}: not a valid {kind.__name__}: {reason(error)}") from error


def shared_folder(name: Literal["export", "calib"]) -> Path:
    """The folder of targets or calibration sets: inside the wheel when installed, else at the repository's top."""
    package = Path(__file__).parent
    installed = package / "_share" / name
    return installed if installed.is_dir() else package.parent / name


def load_target(name_or_path: str) -> Target:
    """A target by its name in export/ or by path. Raises: ArtifactError: unknown, with the list of known ones."""
    return _load_shared(name_or_path, "export", Target)


def load_calib_set(name_or_path: str) -> CalibSet:
    """A calibration set by its name in calib/ or by path. Raises: ArtifactError: unknown, with the list of known ones."""
    return _load_shared(name_or_path, "calib", CalibSet)


def _load_shared(name_or_path: str, folder: Literal["export", "calib"], kind: type[T]) -> T:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return read_toml(path, kind)
    known = sorted(p.stem for p in shared_folder(folder).glob("*.toml"))
    if name_or_path not in known:
        raise ArtifactError(
            f"no {kind.__name__} named {name_or_path!r}; choose from {', '.join(known)} or give a .toml file"
        )
    return read_toml(shared_folder(folder) / f"{name_or_path}.toml", kind)
