"""`reproduce`: the method's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsss_edge.cli import options as opt

SEEDS = "0,1,2"


def reproduce(
    data: opt.Data,
    out: Annotated[Path, typer.Option(help="Folder of all runs, table.json and table.html.")],
    source: Annotated[Path | None, typer.Option(help="Masks of other categories, for the 0% protocol.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,N,...", help=f"Random seeds. [default: {SEEDS}]")] = None,
    strong: opt.Strong = None,
    rows: Annotated[str | None, typer.Option(metavar="A,B,...", help="Rows, such as 50:full (default: all).")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Networks to train at once, each in a process of its own (default: 1; on Ray all that fit)."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Train on a Ray cluster whose machines see the same paths; local, auto too."
        ),
    ] = None,
    arch: opt.Arch = None,
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    config: opt.Config = None,
    report: Annotated[bool, opt.flag("--report", "Of a benchmark: score what is there, train nothing.")] = False,
    json: opt.Json = None,
) -> None:
    """The paper's table: supervised, 50% and 0% strong, with each part on and off. Run it again to go on.

    A --config that names [folds] is a benchmark, such as benchmarks/photos.toml: it brings its own settings, folds and seeds.
    --rows makes (or with --report scores) some of its rows alone; the supervised networks are always among them.

    Example: tsss-edge reproduce --data runs/rendered --source runs/source --seeds 0 --jobs 2 --out runs/table

    Example: tsss-edge reproduce --data voc_photos --source objects_source --config benchmarks/photos.toml --out runs/photos

    Example: tsss-edge reproduce --data voc_photos --source objects_source --config photos.toml --rows 50:full,0:full --out runs/photos

    Example: tsss-edge reproduce --data /shared/rendered --source /shared/source --out /shared/table --ray 10.0.0.1:6379
    """
    from tsss_edge.config import read_toml

    if config is not None and "folds" in read_toml(config, dict):
        chosen_elsewhere = {"--strong": strong, "--arch": arch, "--size": size, "--epochs": epochs, "--seeds": seeds}
        if given := [name for name, value in chosen_elsewhere.items() if value is not None]:
            raise typer.BadParameter(f"{config} is a benchmark, which says that itself; leave {', '.join(given)} out")
        return benchmark(config, data, source, out, rows, jobs, ray, report, json)
    if report:
        raise typer.BadParameter("--report is for a benchmark: give a --config with [folds]")
    from tsss_edge.reproduce import choose_rows
    from tsss_edge.reproduce import reproduce as make_table

    settings = opt.training_settings(config, data, arch, size, epochs, None)
    categories = opt.strong_categories(data, strong, 0.5)
    with opt.usage_errors():  # what goes wrong in the hours after this block is no bad option
        numbers = seed_numbers(SEEDS if seeds is None else seeds)
        chosen = opt.names(rows) if rows is not None else None
        choose_rows(chosen, with_source=source is not None)
    table = make_table(
        settings, data, out, source=source, seeds=numbers, strong=categories, rows=chosen, jobs=jobs, ray=ray
    )
    opt.emit(table, table.summary(), json)


def benchmark(
    config: Path,
    data: Path,
    source: Path | None,
    out: Path,
    rows: str | None,
    jobs: int | None,
    ray: str | None,
    report: bool,
    json: str | None,
) -> None:
    """Run a benchmark file, or score what is there of it."""
    from tsss_edge.reproduce.results import collect, read_benchmark, run_benchmark, seed_runs

    settings, chosen = read_benchmark(config, data), opt.names(rows) if rows is not None else None
    with opt.usage_errors():
        seed_runs(settings, data, source, out, chosen)
    if report:
        result = collect(settings, data, source, out, rows=chosen)
    else:
        result = run_benchmark(settings, data, source, out, jobs=jobs, rows=chosen, ray=ray)
    opt.emit(result, result.summary(), json)


def seed_numbers(text: str) -> list[int]:
    """`0,1,2` -> numbers. Raises: ValueError: none, one twice, not a number, or a negative one."""
    words = opt.names(text)
    if not words or not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise ValueError(
            f"--seeds {text!r}: expected one or more different numbers from 0 on, with commas between them"
        )
    return [int(word) for word in words]
