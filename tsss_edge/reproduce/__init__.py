"""A masked set -> the method's table: supervised, 50% and 0% strong, with each part on and off, over seeds; resumable.

OUT/seed-N/{supervised, supervised-cutmix, 50/{lnet,classifier,labels,draft,relabels,pnet,VARIANT}, 0/...} are runs like any
other. OUT/table.json and table.html are written after every seed. Small networks use two cores better in two processes (`jobs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import strong_from_fraction
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.files import read_json, write_json
from tsss_edge.label.write import LabelReport, report_of
from tsss_edge.reproduce.pool import Task, threads_each, workers
from tsss_edge.reproduce.scores import Ladder, RowScore, ladder, scored
from tsss_edge.reproduce.table import SUPERVISED, Seed, Table, tabulate, write_page
from tsss_edge.scoring import Views
from tsss_edge.train.all import first_round, last_pnet, only_pnet, second_round
from tsss_edge.train.pnet import PLAIN, Switches
from tsss_edge.train.supervised import train_supervised


@dataclass(frozen=True)
class RowPlan:
    """A row of the table: the folder of its network in a seed's run, and how that is made. A supervised one uses CutMix alone."""

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

    @property
    def wave(self) -> int:
        """What its network waits for: 0 nothing, 1 the first round of labels, 2 the second."""
        return 0 if self.protocol == "100" else 1 + self.relabel


ROWS = (
    RowPlan("100", "supervised", "supervised", PLAIN),
    RowPlan("100", "cutmix", "supervised-cutmix"),
    RowPlan("100", "flips", "supervised", PLAIN, flip=True),
    RowPlan("50", "full", "50/pnet"),
    RowPlan("50", "labels-only", "50/labels-only", PLAIN, relabel=False),
    RowPlan("50", "without-relabel", "50/without-relabel", relabel=False),
    RowPlan("50", "with-d", "50/with-d", Switches(adversarial=True)),
    RowPlan("50", "without-cutmix", "50/without-cutmix", Switches(cutmix=False)),
    RowPlan("50", "teacher", "50/teacher", Switches(mean_teacher=True)),
    RowPlan("50", "flips", "50/pnet", flip=True),
    RowPlan("0", "full", "0/pnet"),
    RowPlan("0", "labels-only", "0/labels-only", PLAIN, relabel=False),
    RowPlan("0", "without-cutmix", "0/without-cutmix", Switches(cutmix=False)),
    RowPlan("0", "teacher", "0/teacher", Switches(mean_teacher=True)),
    RowPlan("0", "flips", "0/pnet", flip=True),
)


def choose_rows(names: Sequence[str] | None, *, with_source: bool) -> tuple[RowPlan, ...]:
    """The rows to make, in the table's order. Raises: ValueError: an unknown name, or 0% without a source set."""
    known = {plan.key: plan for plan in ROWS}
    wanted = set(known if names is None else names) | {SUPERVISED}
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}")
    if names is not None and not with_source and any(name.startswith("0:") for name in names):
        raise ValueError("rows of the 0% protocol need a source set; give --source")
    return tuple(plan for key, plan in known.items() if key in wanted and (with_source or plan.protocol != "0"))


def reproduce(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    source: Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    strong: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    jobs: int | None = None,
    ray: str | None = None,
) -> Table:
    """Train and measure every row for every seed; a row whose network is there is not trained again.

    Args:    source: the masks' set of the 0% protocol; without it that protocol is left out.
             strong: strong categories of the 50% protocol; by default the first half by id.
             rows: keys such as "50:full" (default: all); "100:supervised" is always among them.
             jobs: networks that train at once (default: 1, on a cluster as many as fit), a process each; with
             `config.threads` 0 they share the cores out.
             ray: address of a Ray cluster that trains them (`pool.workers`).
    Raises:  ValueError: an unknown row or no seed. DataError, ArtifactError: as the stages. UnavailableError: no cluster.
    """
    chosen = choose_rows(rows, with_source=source is not None)
    if not seeds:
        raise ValueError("no seed; give at least one")
    dataset = VocDataset.open(data)
    strong = strong_from_fraction(dataset.classes, 0.5) if strong is None else tuple(strong)
    require_both_halves(dataset, strong)
    config = msgspec.structs.replace(config, threads=threads_each(config.threads, jobs, ray=ray))
    results: list[Seed] = []
    with workers(jobs, out / "jobs.log", ray=ray, threads=config.threads, gpu=config.device != "cpu") as do_all:
        for seed in seeds:
            settings = msgspec.structs.replace(config, seed=seed)
            run = SeedRun(settings, data, source, strong, out / f"seed-{seed}", chosen, ladders=not results)
            for wave in run.waves():
                do_all(wave)
            results.append(run.result())
            table = tabulate(results, [(plan.key, plan.protocol, plan.name) for plan in chosen], config, dataset)
            write_json(out / "table.json", table)
            write_page(table, out, dataset, strong)
    return table


def require_both_halves(dataset: VocDataset, strong: Sequence[str]) -> None:
    """Raise DataError unless val shows strong categories and weak ones: the table compares the two."""
    shown = frozenset[int]().union(*(dataset.image_labels(i) for i in dataset.ids("val")))
    halves = {"strong": shown & set(dataset.classes.ids(tuple(strong)))}
    halves["weak"] = shown - halves["strong"]
    if empty := [half for half, ids in halves.items() if not ids]:
        raise DataError(
            f"{dataset.root}: val shows no {empty[0]} category (strong are {', '.join(strong) or 'none'}), and the table compares "
            "strong ones with weak ones; name others with --strong"
        )


@dataclass(frozen=True)
class SeedRun:
    """One seed in its folder `out`; what is there is not made again. strong: of the 50% protocol. ladders: where labels lose."""

    config: TrainConfig
    data: Path
    source: Path | None
    strong: tuple[str, ...]
    out: Path
    rows: tuple[RowPlan, ...]
    ladders: bool

    def waves(self) -> tuple[list[Task], ...]:
        """All that `result` reads. Tasks of one wave can run side by side; a wave needs those before it."""
        relabelled = [p for p in self.protocols if any(plan.relabel for plan in self.rows if plan.protocol == p)]
        first = [self._task(p, "labels", partial(self.first_round, p)) for p in self.protocols]
        second = [self._task(p, "relabels", partial(self.second_round, p)) for p in relabelled]
        ladders = [self._task(p, "ladder", partial(self.ladder, p)) for p in self.protocols if self.ladders]
        return [*first, *self._networks(0)], [*second, *self._networks(1), *ladders], self._networks(2)

    def _networks(self, wave: int) -> list[Task]:
        """A task for each network of a wave; several rows may look at one."""
        folders: dict[str, list[RowPlan]] = {}
        for plan in self.rows:
            if plan.wave == wave:
                folders.setdefault(plan.folder, []).append(plan)
        return [self._task(p[0].protocol, p[0].name, partial(self.network, p)) for p in folders.values()]

    def _task(self, protocol: str, what: str, call: Callable[[], object]) -> Task:
        return Task(f"seed {self.config.seed}, {protocol}:{what}", call)

    def result(self) -> Seed:
        """Of finished tasks."""
        return Seed(
            seed=self.config.seed,
            scores={plan.key: self._scored(plan, Checkpoint.load(self.out / plan.folder)) for plan in self.rows},
            labels=self._reports("labels"),
            relabels=self._reports("relabels"),
            ladders={protocol: self.ladder(protocol) for protocol in self.protocols if self.ladders},
        )

    @property
    def protocols(self) -> list[str]:
        """Those with weak categories, among the rows."""
        return [protocol for protocol in ("50", "0") if any(plan.protocol == protocol for plan in self.rows)]

    def first_round(self, protocol: str) -> None:
        """L-Net, classifier and labels."""
        strong, source = self._split(protocol)
        first_round(self.config, self.data, self.out / protocol, strong=strong, source=source, resume=True)

    def second_round(self, protocol: str) -> None:
        """The draft and its labels."""
        strong, _ = self._split(protocol)
        second_round(self.config, self.data, self.out / protocol, strong=strong, resume=True)

    def network(self, plans: Sequence[RowPlan]) -> None:
        """Train the network of some rows and measure it for each."""
        plan, folder = plans[0], self.out / plans[0].folder
        if plan.protocol == "100":
            found = train_supervised(self.config, self.data, folder, cutmix=plan.switches.cutmix, resume=True)
        else:
            run, (strong, _) = self.out / plan.protocol, self._split(plan.protocol)
            train = last_pnet if plan.relabel else only_pnet
            found = train(self.config, self.data, run, folder, strong=strong, switches=plan.switches, resume=True)
        for plan in plans:
            self._scored(plan, found)

    def _scored(self, plan: RowPlan, network: Checkpoint) -> RowScore:
        dataset = VocDataset.open(self.data)
        views = Views(dataset, dataset.ids("val"), self.config.preprocess)
        return scored(network, views, self.strong, flip=plan.flip)

    def ladder(self, protocol: str) -> Ladder:
        """Where the labels of the first round lose. Kept beside the run: it takes a minute."""
        path = self.out / protocol / "ladder.json"
        if not path.is_file():
            write_json(path, ladder(self.out / protocol, self.data, device=self.config.device))
        return read_json(path, Ladder)

    def _reports(self, folder: str) -> dict[str, LabelReport]:
        found = {p: report_of(self.out / p / folder) for p in self.protocols}
        return {p: report for p, report in found.items() if report is not None}

    def _split(self, protocol: str) -> tuple[tuple[str, ...], Path | None]:
        """Strong categories and source set of a protocol."""
        return ((), self.source) if protocol == "0" else (self.strong, None)
