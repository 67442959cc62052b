"""A masked set -> the method's table: supervised, 50% and 0% strong, with each part on and off, over seeds; resumable.

OUT/seed-N/{supervised, 50/{lnet,classifier,labels,draft,relabels,pnet,VARIANT}, 0/...} are runs like any other; OUT/table.json and
OUT/table.html are written after every seed. Started again on the same folder it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Checkpoint, read_json, write_json
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import strong_from_fraction
from tsss_edge.data.voc import VocDataset
from tsss_edge.reproduce.page import write_page
from tsss_edge.reproduce.score import Score, scored
from tsss_edge.reproduce.table import Seed, Table, tabulate
from tsss_edge.train.all import PLAIN, first_round, second_round
from tsss_edge.train.label import LabelReport
from tsss_edge.train.ladder import Ladder, ladder
from tsss_edge.train.pnet import Switches, train_pnet
from tsss_edge.train.supervised import train_supervised
from tsss_edge.train.validate import Views


@dataclass(frozen=True)
class RowPlan:
    """One row of the table: which folder of a seed holds its network, and how that is made or looked at."""

    protocol: str  # "100", "50" or "0": percent of the categories that are strong
    name: str
    folder: str
    switches: Switches = field(default_factory=Switches)
    relabel: bool = True
    flip: bool = False

    @property
    def key(self) -> str:
        """As `--rows` names it."""
        return f"{self.protocol}:{self.name}"


ROWS = (
    RowPlan("100", "supervised", "supervised"),
    RowPlan("50", "full", "50/pnet"),
    RowPlan("50", "labels-only", "50/labels-only", PLAIN, relabel=False),
    RowPlan("50", "without-relabel", "50/without-relabel", relabel=False),
    RowPlan("50", "without-d", "50/without-d", Switches(adversarial=False)),
    RowPlan("50", "without-teacher", "50/without-teacher", Switches(mean_teacher=False)),
    RowPlan("50", "cutmix", "50/cutmix", Switches(cutmix=True)),
    RowPlan("50", "flips", "50/pnet", flip=True),
    RowPlan("0", "full", "0/pnet"),
    RowPlan("0", "labels-only", "0/labels-only", PLAIN, relabel=False),
    RowPlan("0", "flips", "0/pnet", flip=True),
)


def reproduce(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    source: Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    strong: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
) -> Table:
    """Train and measure every row for every seed; a row whose network is there is not trained again.

    Args:    source: the masks' set of the 0% protocol; without it that protocol is left out.
             strong: strong categories of the 50% protocol; by default the first half by id.
             rows: keys such as "50:full" (default: all); "100:supervised" is always among them.
    Raises:  ValueError: an unknown row or no seed. DataError, ArtifactError: as the stages.
    """
    chosen = choose_rows(rows, with_source=source is not None)
    if not seeds:
        raise ValueError("no seed; give at least one")
    dataset = VocDataset.open(data)
    strong = strong_from_fraction(dataset.classes, 0.5) if strong is None else tuple(strong)
    views = Views(dataset, dataset.ids("val"), config.preprocess)
    finished: list[Seed] = []
    for seed in seeds:
        run = _SeedRun(msgspec.structs.replace(config, seed=seed), data, source, strong, out / f"seed-{seed}")
        finished.append(run.results(chosen, views, ladders=not finished))
        table = tabulate(finished, [(plan.key, plan.protocol, plan.name) for plan in chosen], config, dataset)
        write_json(out / "table.json", table)
        write_page(table, out, dataset, strong)
    return table


def choose_rows(names: Sequence[str] | None, *, with_source: bool) -> tuple[RowPlan, ...]:
    """The rows to make, in the table's order. Raises: ValueError: an unknown name, or 0% without a source set."""
    known = {plan.key: plan for plan in ROWS}
    wanted = set(known if names is None else names) | {"100:supervised"}
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}")
    if names is not None and not with_source and any(name.startswith("0:") for name in names):
        raise ValueError("rows of the 0% protocol need a source set; give --source")
    return tuple(plan for key, plan in known.items() if key in wanted and (with_source or plan.protocol != "0"))


@dataclass(frozen=True)
class _SeedRun:
    """Everything of one seed."""

    config: TrainConfig
    data: Path
    source: Path | None
    strong: tuple[str, ...]
    out: Path

    def results(self, rows: Sequence[RowPlan], views: Views, *, ladders: bool) -> Seed:
        scores = {plan.key: self._score(plan, views) for plan in rows}
        protocols = [p for p in ("50", "0") if any(plan.protocol == p for plan in rows)]
        return Seed(
            seed=self.config.seed,
            scores=scores,
            labels=self._reports(protocols, "labels"),
            relabels=self._reports(protocols, "relabels"),
            ladders={p: self._ladder(p) for p in protocols if ladders},
        )

    def _reports(self, protocols: Sequence[str], folder: str) -> dict[str, LabelReport]:
        paths = {p: self.out / p / folder / "manifest.json" for p in protocols}
        return {p: read_json(path, LabelReport) for p, path in paths.items() if path.is_file()}

    def _score(self, plan: RowPlan, views: Views) -> Score:
        checkpoint = self._trained(plan)
        return scored(checkpoint, views, self.strong, flip=plan.flip)

    def _trained(self, plan: RowPlan) -> Checkpoint:
        folder = self.out / plan.folder
        if plan.protocol == "100":
            return train_supervised(self.config, self.data, folder, resume=True)
        run, source = self.out / plan.protocol, self.source if plan.protocol == "0" else None
        strong = () if plan.protocol == "0" else self.strong
        first_round(self.config, self.data, run, strong=strong, source=source, resume=True)
        start, labels = run / "lnet", run / "labels"
        if plan.relabel:
            start, labels = second_round(self.config, self.data, run, strong=strong, resume=True)
        folders = {"lnet": start, "labels": labels}
        return train_pnet(self.config, self.data, folder, strong=strong, switches=plan.switches, resume=True, **folders)

    def _ladder(self, protocol: str) -> Ladder:
        """Kept beside the run: it takes a minute."""
        path = self.out / protocol / "ladder.json"
        if not path.is_file():
            write_json(path, ladder(self.out / protocol, self.data, device=self.config.device))
        return read_json(path, Ladder)
