"""`tsss-edge data ...`: make, render, validate, download a VOC-layout set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.common import Json, emit

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, render, validate or download a dataset.")


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="data")


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    train: Annotated[int, typer.Option(min=1, help="Training images.")] = 600,
    val: Annotated[int, typer.Option(min=1, help="Validation images.")] = 150,
    size: Annotated[int, typer.Option(min=32, help="Side of the square pictures, pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed, another set; the same seed, the same bytes.")] = 0,
    json: Json = None,
) -> None:
    """Make the embedded set: scenes with 20 categories, exact masks, image-level labels.

    Example: tsss-edge data synth --out runs/synth --train 600 --val 150
    """
    from tsss_edge.data.synthetic import write_synthetic

    write_synthetic(out, train=train, val=val, size=size, seed=seed)
    result = {"data": str(out), "train": train, "val": val, "size": size, "seed": seed}
    emit(result, f"{out}: {train} training and {val} validation scenes of {size}x{size} (seed {seed})", json)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Dataset folder in PASCAL VOC layout.")],
    split: Annotated[list[str] | None, typer.Option(help="Only these lists (default: all).")] = None,
    json: Json = None,
) -> None:
    """Read every picture and mask of a dataset and name each problem.

    Layout: JPEGImages/, SegmentationClass/ (index PNG, 255 = ignore), ImageSets/Segmentation/*.txt, optional
    classes.txt, image_labels.csv and Annotations/*.xml.

    Example: tsss-edge data check ../VOC2012
    """
    from tsss_edge.data.check import check_dataset
    from tsss_edge.errors import DataError

    report = check_dataset(data, split)
    emit(report, report.summary(), json)
    if report.problems:
        raise DataError(f"{data}: {len(report.problems)} problem(s), the first: {report.problems[0]}")
