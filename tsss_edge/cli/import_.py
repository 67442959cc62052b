"""`import`: any segmentation ONNX file as an artifact."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsss_edge.cli.options import Json, emit, names, parse_size, usage_errors

if TYPE_CHECKING:
    from tsss_edge.artifacts import Classes


class LayoutChoice(str, Enum):
    """Order of the input's dimensions."""

    nchw = "nchw"
    nhwc = "nhwc"


class ColorChoice(str, Enum):
    """Order of the channels that the network was trained on."""

    rgb = "rgb"
    bgr = "bgr"


def import_(
    network: Annotated[
        Path, typer.Argument(metavar="NET.onnx", help="Segmentation network: one picture in, labels out.")
    ],
    classes: Annotated[
        str, typer.Option(metavar="FILE|N", help="Text file with a name a line, id 0 first; or how many.")
    ],
    out: Annotated[Path, typer.Option(help="ONNX file to write.")],
    mean: Annotated[str, typer.Option(metavar="A,B,C", help="Subtracted, after --scale.")] = "0,0,0",
    std: Annotated[str, typer.Option(metavar="A,B,C", help="Divided by, after --mean.")] = "1,1,1",
    scale: Annotated[str, typer.Option(help="Factor of the pixel values 0 to 255: 1/255, 1, 1/127.5.")] = "1/255",
    layout: Annotated[LayoutChoice | None, typer.Option(help="Of the input (default: by its shape).")] = None,
    colors: Annotated[ColorChoice, typer.Option(help="Order of the channels it was trained on.")] = ColorChoice.rgb,
    size: Annotated[
        str | None, typer.Option(metavar="N|WxH", help="Network input, where the file leaves it free.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Name of the output, where several label pixels.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Compare on pictures of this set (val); else on made-up ones.")
    ] = None,
    json: Json = None,
) -> None:
    """Wrap a segmentation network of your own: calibrate, build-engine, parity and stream then take it like ours.

    The network sees (value * scale - mean) / std. What is found (logits, probabilities, class ids, stride) is printed, and
    every pixel is compared with the file itself, run in ONNX Runtime.

    Example: tsss-edge import fcn.onnx --classes camvid/classes.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --out runs/fcn.onnx
    """
    from tsss_edge.api import import_model

    with usage_errors():
        report = import_model(
            network,
            out,
            classes=_classes(classes),
            mean=_three(mean, "mean"),
            std=_three(std, "std"),
            scale=_factor(scale),
            colors=colors.value,
            data=data,
            layout=layout.value if layout else None,
            size_hw=parse_size(size) if size else None,
            output=output,
        )
    emit(report, report.summary(), json)


def _classes(text: str) -> Classes:
    """A list of names, or `N`: background and class_1 to class_(N-1)."""
    from tsss_edge.artifacts import Classes
    from tsss_edge.data.voc import classes_of

    if not text.isdecimal():
        return classes_of(Path(text))
    with usage_errors():
        return Classes(names=("background", *(f"class_{i}" for i in range(1, int(text)))))


def _three(text: str, name: str) -> tuple[float, float, float]:
    try:
        values = [float(part) for part in names(text)]
    except ValueError as error:
        raise ValueError(f"{name} {text!r}: expected numbers") from error
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise ValueError(f"{name} {text!r}: expected three numbers, as 0.485,0.456,0.406")
    return values[0], values[1], values[2]


def _factor(text: str) -> float:
    upper, _, lower = text.partition("/")
    try:
        return float(upper) / float(lower or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"scale {text!r}: expected a number or a fraction, as 1/255") from error
