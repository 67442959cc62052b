"""What a benchmark run measured -> the tables of docs/results/photos.md, between its markers, and photos.json.

python scripts/photos_page.py RUN/benchmark.json docs/results/photos.md [--more more.json]

The prose of the page is written by hand; what a run lacks is named as not yet run. `--more` holds what was measured beside the
benchmark: {"engines": [...], "sizes": [...], "live": [...]}; without it what photos.json holds of that stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from pages import table as markdown_table
from pages import write_page

from tsss_edge.files import read_json
from tsss_edge.reproduce.results import BenchmarkResult, Cell, ResultRow
from tsss_edge.reproduce.table import PAPER

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
STAGES = ("lnet", "classifier", "labels", "draft", "relabels", "pnet")  # of a row: a step may end in one
MORE = ("engines", "sizes", "live")


def number(value: float | None, digits: int = 2) -> str:
    """`71.23`, or `-`."""
    return "-" if value is None else f"{value:.{digits}f}"


def folds_of(row: ResultRow, name: str) -> str:
    """`A 64.30, B 61.20` of a field, seeds averaged; without a fold the value alone."""
    by_fold: dict[str, list[float]] = {}
    for cell in row.cells:
        value = getattr(cell, name)
        if value is not None:
            by_fold.setdefault(cell.fold, []).append(value)
    return ", ".join(f"{fold} {sum(v) / len(v):.2f}".strip() for fold, v in by_fold.items()) or "-"


def networks_of(result: BenchmarkResult) -> str:
    """Rows with a class head, and the trivial ones."""
    rows = [row for row in (*result.rows, *result.trivial) if row.miou7 is not None]
    cells = [
        (
            row.key,
            row.miou7.text() if row.miou7 else "-",
            folds_of(row, "miou7"),
            folds_of(row, "miou"),
            row.ratio.text(3) if row.ratio else "-",
            f"{PAPER[row.key[:-5]]:.3f}" if row.key.endswith(":full") else "",
            ", ".join(str(seed) for seed in sorted({c.seed for c in row.cells})),
        )
        for row in rows
    ]
    return markdown_table(("row", "miou7", "by fold", "all 21", "ratio", "the paper, on VOC", "seeds"), cells)


def objects_of(result: BenchmarkResult) -> str:
    """Object IoU of L-Nets beside the trivial rows."""
    rows = [row for row in (*result.rows, *result.trivial) if any(c.object_weak is not None for c in row.cells)]
    cells = [
        (row.key, folds_of(row, "object_strong"), folds_of(row, "object_weak"), mean_weak(row.cells)) for row in rows
    ]
    return markdown_table(("row", "strong pictures", "weak pictures", "weak, mean of A and B"), cells)


def mean_weak(cells: Sequence[Cell]) -> str:
    """Mean over the folds of the 50% protocol."""
    values = [c.object_weak for c in cells if c.fold != "0" and c.object_weak is not None]
    return number(sum(values) / len(values)) if len(values) > 1 else "-"


def missing_of(result: BenchmarkResult) -> str:
    """A sentence that names the rows nobody ran, or nothing."""
    rows = dict.fromkeys(row_of(step) for step in result.missing)
    return f"Not yet run: {', '.join(rows)}." if rows else ""


def row_of(step: str) -> str:
    """`seed-0/noisy-labels/A/lnet` -> `noisy-labels/A`; a stage of the method itself, `seed-0/A/lnet`, is of `A/full`."""
    _, *parts = step.split("/")
    if parts[-1] not in STAGES:
        return "/".join(parts)
    return "/".join(parts[:-1] if len(parts) > 2 else (parts[0], "full"))


def more_of(more: dict[str, Any]) -> str:
    """Tables of what was measured beside the benchmark; each is a list of records with the same keys."""
    parts = []
    for name in MORE:
        if records := more.get(name):
            columns = tuple(records[0])
            parts.append(
                f"### {name.capitalize()}\n\n"
                + markdown_table(columns, [[str(r[c]) for c in columns] for r in records])
            )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--more", type=Path)
    options = parser.parse_args()
    result = read_json(options.result, BenchmarkResult)
    twin = options.page.with_suffix(".json")
    kept = msgspec.json.decode(twin.read_bytes()) if twin.is_file() else {}
    given = msgspec.json.decode(options.more.read_bytes()) if options.more else {}
    more = {name: given.get(name, kept.get(name, [])) for name in MORE}
    parts = [networks_of(result), "L-Net, object IoU:", objects_of(result), missing_of(result), more_of(more)]
    measured = "\n\n".join(part for part in parts if part)
    text = options.page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{options.page}: has no {BEGIN} and {END}")
    write_page(options.page, f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}", {**msgspec.to_builtins(result), **more})


if __name__ == "__main__":
    main()
