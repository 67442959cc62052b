"""`label`: pixel annotations for weak images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import AddAbove, Data, Json, PeakFloor, Split, emit, names, parse_size, usage_errors


def label(
    lnet: Annotated[Path, typer.Option(help="Run of `train lnet`, `train all` or, to label again, `train pnet`.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the masks (VOC layout).")],
    split: Split = "train",
    peak_floor: PeakFloor = None,
    add_above: AddAbove = None,
    sure_above: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of a P-Net: probability over which its answer counts (0.7).")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="F.onnx", help="Any network's feature map, for L-Net's in self-diffusion.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(metavar="F.onnx", help="Its likeness to --text in place of the class maps.")
    ] = None,
    text: Annotated[Path | None, typer.Option(metavar="T.npy", help="One row a category, by class id.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="N|WxH", help="What these networks see (default: they say).")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Their input: (value 0-255 - mean) / scale.")
    ] = None,
    scale: Annotated[str | None, typer.Option(metavar="R,G,B", help="See --mean.")] = None,
    json: Json = None,
) -> None:
    """Pixel annotations for weak images: L-Net's foreground, class activation maps, self-diffusion; or P-Net's answer.

    --features, --maps and --text let large networks that you have on disk see in place of ours; see docs/transfer.md.

    Under torchrun the processes share the pictures; the masks are those of one process.
    Example: tsss-edge label --lnet runs/method --data runs/synth --out runs/labels
    Example: torchrun --nproc-per-node 4 -m tsss_edge label --lnet runs/method --data runs/synth --out runs/labels
    """
    from tsss_edge.label.annotate import LabelConfig
    from tsss_edge.label.foundation import Feeding
    from tsss_edge.label.write import Teachers, find_labeller, write_labels
    from tsss_edge.ranks import this_process

    with usage_errors():
        feeding = Feeding(
            size_hw=parse_size(size) if size else None, mean=three(mean), deviation=not_zero(three(scale))
        )
        teachers = Teachers(features=features, maps=maps, text=text, feeding=feeding)
    if features is None and maps is None and (size, mean, scale) != (None, None, None):
        raise typer.BadParameter("--size, --mean and --scale are of --features and --maps; give one of them")
    if sure_above is not None and find_labeller(lnet).meta.stage != "pnet":
        raise typer.BadParameter("--sure-above is of labels by a P-Net; an L-Net has --peak-floor")
    if add_above is not None and (maps is not None or find_labeller(lnet).meta.stage == "pnet"):
        raise typer.BadParameter("--add-above asks the classifier, and here --maps or a P-Net labels; leave it out")
    sure = LabelConfig().sure_above if sure_above is None else sure_above
    config = LabelConfig(peak_floor=peak_floor, add_above=add_above, sure_above=sure)
    report = write_labels(lnet, data, out, split=split, config=config, teachers=teachers)
    if this_process().writes:
        emit(report, report.summary(), json)


def three(text: str | None) -> tuple[float, float, float] | None:
    """`123.7,116.3,103.5` -> three numbers. Raises: ValueError: not three numbers."""
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in names(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: expected three numbers with commas between them") from error
    return red, green, blue


def not_zero(values: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    """Numbers that may divide. Raises: ValueError: one is 0."""
    if values is not None and 0 in values:
        raise ValueError(f"--scale {values}: divides, so none may be 0")
    return values
