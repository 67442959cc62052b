"""Options that every training command has, and the settings they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tsss_edge.cli.common import names, parse_size, usage_errors

if TYPE_CHECKING:
    from tsss_edge.config import TrainConfig

Out = Annotated[Path, typer.Option("--out", help="Run folder: best.pt, last.pt, config.toml, log.jsonl.")]
Arch = Annotated[str | None, typer.Option(help="edge-s (default), edge-m, vgg16-largefov.")]
Size = Annotated[str | None, typer.Option(metavar="N|WxH", help="Network input (default: the pictures' typical size).")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.")]
Config = Annotated[Path | None, typer.Option(help="TOML file with any TrainConfig setting; options win over it.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Random seed.")]
Encoder = Annotated[
    Path | None,
    typer.Option(
        "--encoder-weights", help="Start from these: a checkpoint of the same --arch, or torchvision's VGG16 (.pth)."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pt in --out.")]
Strong = Annotated[str | None, typer.Option(metavar="A,B,...", help="Categories with pixel masks.")]
Fraction = Annotated[
    float, typer.Option("--strong-fraction", min=0, max=1, help="Or: this share of them, in id order.")
]


def training_settings(
    config: Path | None,
    data: Path,
    arch: str | None,
    size: str | None,
    epochs: int | None,
    seed: int | None,
    encoder_weights: Path | None = None,
) -> TrainConfig:
    """The settings of a TOML file, or the defaults, with what the options say in their place."""
    from tsss_edge.config import TrainConfig, read_toml, toml_keys
    from tsss_edge.data.voc import VocDataset, suggested_size_hw

    base = read_toml(config, TrainConfig) if config else TrainConfig()
    with usage_errors():
        changes = {"arch": arch, "epochs": epochs, "seed": seed, "size_hw": parse_size(size) if size else None}
        changes["encoder_weights"] = str(encoder_weights) if encoder_weights else None
        if not size and not (config and "size_hw" in toml_keys(config)):
            changes["size_hw"] = suggested_size_hw(VocDataset.open(data))
        settings = msgspec.structs.replace(base, **{k: v for k, v in changes.items() if v is not None})
        _ = settings.preprocess  # refuses sizes that are not multiples of 32
    return settings


def strong_categories(data: Path, chosen: str | None, fraction: float, source: Path | None = None) -> tuple[str, ...]:
    """The categories that `--strong` or `--strong-fraction` name; with a source set none, unless they are named."""
    from tsss_edge.data.supervision import strong_from_fraction
    from tsss_edge.data.voc import VocDataset

    classes = VocDataset.open(data).classes
    with usage_errors():
        if chosen is None:
            return () if source else tuple(strong_from_fraction(classes, fraction))
        classes.ids(names(chosen))
        return names(chosen)
