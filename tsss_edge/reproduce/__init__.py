"""A masked set -> the method's table: supervised, 50% and 0% strong, with each part on and off, over seeds; resumable.

OUT/seed-N/{supervised, supervised-cutmix, 50/{lnet,classifier,labels,draft,relabels,pnet,VARIANT}, 0/...} are runs like any
other; OUT/table.json and OUT/table.html are written after every seed. Started again on the same folder it goes on where it
stopped. Networks that do not wait for each other may train side by side (`jobs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import strong_from_fraction
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import write_json
from tsss_edge.reproduce.jobs import done, threads_each
from tsss_edge.reproduce.page import write_page
from tsss_edge.reproduce.rows import ROWS, RowPlan, choose_rows
from tsss_edge.reproduce.seed import SeedRun
from tsss_edge.reproduce.table import Seed, Table, tabulate

__all__ = ["ROWS", "RowPlan", "choose_rows", "reproduce"]


def reproduce(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    source: Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    strong: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    jobs: int = 1,
) -> Table:
    """Train and measure every row for every seed; a row whose network is there is not trained again.

    Args:    source: the masks' set of the 0% protocol; without it that protocol is left out.
             strong: strong categories of the 50% protocol; by default the first half by id.
             rows: keys such as "50:full" (default: all); "100:supervised" is always among them.
             jobs: networks that train at once, a process each; with `config.threads` 0 they share the cores out.
    Raises:  ValueError: an unknown row or no seed. DataError, ArtifactError: as the stages.
    """
    chosen = choose_rows(rows, with_source=source is not None)
    if not seeds:
        raise ValueError("no seed; give at least one")
    dataset = VocDataset.open(data)
    strong = strong_from_fraction(dataset.classes, 0.5) if strong is None else tuple(strong)
    config = msgspec.structs.replace(config, threads=threads_each(config.threads, jobs))
    runs = [
        SeedRun(msgspec.structs.replace(config, seed=seed), data, source, strong, out / f"seed-{seed}")
        for seed in seeds
    ]
    work = [run.tasks(chosen, ladders=run is runs[0]) for run in runs]  # where labels lose: of the first seed alone
    waiting = [{task.name for task in tasks} for tasks in work]
    finished: dict[int, Seed] = {}
    for name in done([task for tasks in work for task in tasks], jobs, out / "jobs.log"):
        for names in waiting:
            names.discard(name)
        complete = [place for place, names in enumerate(waiting) if not names and place not in finished]
        if not complete:
            continue
        finished |= {place: runs[place].result(chosen, ladders=place == 0) for place in complete}
        results = [finished[place] for place in sorted(finished)]
        table = tabulate(results, [(plan.key, plan.protocol, plan.name) for plan in chosen], config, dataset)
        write_json(out / "table.json", table)
        write_page(table, out, dataset, strong)
    return table
