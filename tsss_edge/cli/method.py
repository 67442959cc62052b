"""`tsss-edge label`, `adapt`, `reproduce`: what the method does beside training a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.common import Data, Json, emit, names, usage_errors
from tsss_edge.cli.settings import (
    Arch,
    Config,
    Epochs,
    Out,
    Resume,
    Size,
    Strong,
    strong_categories,
    training_settings,
)


def register(parent: typer.Typer) -> None:
    for command in (label, adapt, reproduce):
        parent.command()(command)


def label(
    lnet: Annotated[
        Path, typer.Option(help="Run folder of `train lnet`, `train all` or, to label again, `train pnet`.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the masks (VOC layout).")],
    split: Annotated[str, typer.Option(help="A list in ImageSets/Segmentation.")] = "train",
    json: Json = None,
) -> None:
    """Pixel annotations for weak images: L-Net's foreground, class activation maps, self-diffusion; or P-Net's answer.

    Example: tsss-edge label --lnet runs/method --data runs/synth --out runs/labels
    """
    from tsss_edge.train.label import write_labels

    report = write_labels(lnet, data, out, split=split)
    emit(report, report.summary(), json)


def adapt(
    run: Annotated[Path, typer.Argument(help="A run whose network tells categories apart.")],
    data: Data,
    new_class: Annotated[str, typer.Option(help="Name of the category, the last line of DATA's classes.txt.")],
    out: Out,
    epochs: Epochs = None,
    resume: Resume = False,
    json: Json = None,
) -> None:
    """Add one category to a trained run from image-level labels alone, and report old and new categories apart.

    Example: tsss-edge adapt runs/method --data more-pictures --new-class drone --out runs/with-drone
    """
    from tsss_edge.train.adapt import adapt as add_category

    report = add_category(run, data, out, new_class=new_class, epochs=epochs, resume=resume)
    emit(report, report.summary(), json)


def reproduce(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of all runs, table.json and table.html.")],
    source: Annotated[Path | None, typer.Option(help="Masks of other categories, for the 0% protocol.")] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Random seeds.")] = "0,1,2",
    strong: Strong = None,
    rows: Annotated[str | None, typer.Option(metavar="A,B,...", help="Rows, such as 50:full (default: all).")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Networks to train at once, each in a process of its own.")] = 1,
    arch: Arch = None,
    size: Size = None,
    epochs: Epochs = None,
    config: Config = None,
    json: Json = None,
) -> None:
    """The paper's table: supervised, 50% and 0% strong, with each part on and off. Run it again to go on.

    Example: tsss-edge reproduce --data runs/rendered --source runs/source --seeds 0 --jobs 2 --out runs/table
    """
    from tsss_edge.reproduce import choose_rows
    from tsss_edge.reproduce import reproduce as make_table

    settings = training_settings(config, data, arch, size, epochs, None)
    categories = strong_categories(data, strong, 0.5)
    with usage_errors():  # what goes wrong in the hours after this block is no bad option
        numbers = seed_numbers(seeds)
        chosen = names(rows) if rows is not None else None
        choose_rows(chosen, with_source=source is not None)
    table = make_table(settings, data, out, source=source, seeds=numbers, strong=categories, rows=chosen, jobs=jobs)
    emit(table, table.summary(), json)


def seed_numbers(text: str) -> list[int]:
    """`0,1,2` -> numbers. Raises: ValueError: none, not a number, or a negative one."""
    numbers = [int(seed) for seed in names(text)]
    if not numbers or min(numbers) < 0:
        raise ValueError(f"--seeds {text!r}: expected one or more numbers from 0 on, with commas between them")
    return numbers
