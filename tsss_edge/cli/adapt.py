"""`adapt`: one more category from image-level labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli.options import Data, Json, Out, Resume, emit


def adapt(
    run: Annotated[Path, typer.Argument(help="A run whose network tells categories apart.")],
    data: Data,
    new_class: Annotated[str, typer.Option(help="Name of the category, the last line of DATA's classes.txt.")],
    out: Out,
    collected: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Labelled frames of `stream --collect`; DATA is the old set then."),
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Set whose val is measured on, with masks of the new category.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data (default: a quarter of the run's).")
    ] = None,
    resume: Resume = False,
    json: Json = None,
) -> None:
    """Add one category to a trained run from image-level labels alone, and report old and new categories apart.

    Example: tsss-edge adapt runs/method --data more-pictures --new-class drone --out runs/with-drone

    Example: tsss-edge adapt runs/method --data old-set --collected field --new-class drone --out runs/with-drone
    """
    from tsss_edge.train.adapt import adapt as add_category

    report = add_category(
        run, data, out, new_class=new_class, collected=collected, eval_data=eval_data, epochs=epochs, resume=resume
    )
    emit(report, report.summary(), json)
