"""What `reproduce` measured -> the tables of docs/results/transfer.md, between its markers, and transfer.json.

python scripts/transfer_page.py RUN docs/results/transfer.md [--more table.json] [--adapt adapt.json] [--label manifest.json]

The prose of the page is written by hand; rows that a run lacks are named as not measured. What transfer.json holds beside the
tables (an adaptation, a speed, an earlier table) stays where it is not given anew.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from pages import percent, write_page
from pages import table as markdown_table

from tsss_edge.files import read_json
from tsss_edge.label.write import LabelReport
from tsss_edge.reproduce import ROWS
from tsss_edge.reproduce.table import PAPER, Table
from tsss_edge.train.adapt import AdaptReport

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def rows_of(table: Table) -> str:
    """The table of all its seeds."""
    columns = ("strong", "row", "mIoU", "ratio", "paper (VOC)", "strong categories", "weak categories", "object IoU")
    rows = [
        (
            f"{row.protocol}%",
            row.name,
            row.miou.text(),
            row.ratio.text(3),
            f"{PAPER[row.protocol]:.3f}" if row.name == "full" else "",
            *(spread.text() for spread in (row.miou_strong, row.miou_weak, row.object_iou)),
            f"{row.seconds.mean:.0f}",
        )
        for row in table.rows
    ]
    seeds = ", ".join(str(seed.seed) for seed in table.seeds)
    return f"Seeds: {seeds}.\n\n{markdown_table((*columns, 'training, s'), rows)}"


def missing_rows(tables: Sequence[Table]) -> str:
    """A sentence that names the rows nobody measured, or nothing."""
    made = {(row.protocol, row.name) for table in tables for row in table.rows}
    missing = [plan.key for plan in ROWS if (plan.protocol, plan.name) not in made]
    return f"Not measured: {', '.join(missing)}." if missing else ""


def ladders_of(table: Table) -> str:
    """Where the labels lose, of the first seed."""
    first = table.seeds[0]
    rows = []
    for protocol, rungs in first.ladders.items():
        steps = (rungs.maps_in_true_foreground, rungs.diffusion_in_true_foreground, rungs.lw, rungs.object_iou)
        cells = [f"{protocol}%", str(rungs.images), *(f"{value:.2f}" for value in steps)]
        for report in (first.labels[protocol], first.relabels.get(protocol)):
            cells += ["-", "-"] if report is None else [percent(report.miou, 2), f"{100 * report.unsure:.1f}%"]
        rows.append(cells)
    return markdown_table(LADDER_COLUMNS, rows)


LADDER_COLUMNS = (
    "strong", "weak val images", "class maps in the true foreground", "and diffusion", "and L-Net's foreground: Lw",
    "its object IoU", "Lw of train, where sure", "unsure", "labelled again, where sure", "unsure",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--more", type=Path, help="another table.json to show below: fewer rows, more seeds")
    parser.add_argument("--adapt", type=Path, help="adapt.json of a run that `adapt` made")
    parser.add_argument("--label", type=Path, help="manifest.json of a timed `label`")
    given = parser.parse_args()
    table = read_json(given.run / "table.json", Table)
    tables = [table]
    twin = given.page.with_suffix(".json")
    content: dict[str, Any] = read_json(twin, dict) if twin.is_file() else {}
    content |= msgspec.to_builtins(table)
    content.pop("more_seeds", None)
    if given.more:
        tables.append(read_json(given.more, Table))
        content["more_seeds"] = msgspec.to_builtins(tables[-1])
    if given.adapt:
        content["adapt"] = {**msgspec.to_builtins(read_json(given.adapt, AdaptReport)), "checkpoint": "best.pt"}
    if given.label:
        content["label_speed"] = msgspec.to_builtins(read_json(given.label, LabelReport))
    text = given.page.read_text()
    parts = [rows_of(table) for table in tables]
    parts += [
        missing_rows(tables),
        f"Where the labels lose (seed {table.seeds[0].seed}, percent mIoU):",
        ladders_of(table),
    ]
    block = "\n\n".join(part for part in (BEGIN, *parts, END) if part)
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{given.page}: no lines {BEGIN} and {END}")
    write_page(given.page, pattern.sub(lambda _: block, text), content)


if __name__ == "__main__":
    main()
