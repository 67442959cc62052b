"""Everything that the table needs of one seed, as tasks that can run side by side, and read together at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import read_json, write_json
from tsss_edge.label.write import LabelReport
from tsss_edge.reproduce.jobs import Task
from tsss_edge.reproduce.rows import RowPlan
from tsss_edge.reproduce.score import Score, scored
from tsss_edge.reproduce.table import Seed
from tsss_edge.train.all import first_round, last_pnet, only_pnet, second_round
from tsss_edge.train.ladder import Ladder, ladder
from tsss_edge.train.supervised import train_supervised
from tsss_edge.train.validate import Views


@dataclass(frozen=True)
class SeedRun:
    """One seed in its folder `out`; what is found there is not made again. `strong`: of the 50% protocol."""

    config: TrainConfig
    data: Path
    source: Path | None
    strong: tuple[str, ...]
    out: Path

    def tasks(self, rows: Sequence[RowPlan], *, ladders: bool) -> list[Task]:
        """What `result` reads; those that others wait for come first."""
        first, second, networks = [], [], []
        for protocol in _protocols(rows):
            first.append(Task(self._name(protocol, "labels"), partial(self.first_round, protocol)))
            if any(plan.relabel for plan in rows if plan.protocol == protocol):
                call = partial(self.second_round, protocol)
                second.append(Task(self._name(protocol, "relabels"), call, (self._name(protocol, "labels"),)))
        for place, plan in enumerate(rows):
            same = [row for row in rows[:place] if row.folder == plan.folder]  # looks at the same network otherwise
            needs = [self._name(row.protocol, row.name) for row in same]
            if plan.protocol != "100":
                needs.append(self._name(plan.protocol, "relabels" if plan.relabel else "labels"))
            networks.append(Task(self._name(plan.protocol, plan.name), partial(self.score, plan), tuple(needs)))
        last = [
            Task(self._name(protocol, "ladder"), partial(self.ladder, protocol), (self._name(protocol, "labels"),))
            for protocol in _protocols(rows)
            if ladders
        ]
        return [*first, *second, *networks, *last]

    def result(self, rows: Sequence[RowPlan], *, ladders: bool) -> Seed:
        """Of finished tasks."""
        protocols = _protocols(rows)
        return Seed(
            seed=self.config.seed,
            scores={plan.key: self._scored(plan, Checkpoint.load(self.out / plan.folder)) for plan in rows},
            labels=self._reports(protocols, "labels"),
            relabels=self._reports(protocols, "relabels"),
            ladders={protocol: self.ladder(protocol) for protocol in protocols if ladders},
        )

    def first_round(self, protocol: str) -> None:
        """L-Net, classifier and labels."""
        strong, source = self._split(protocol)
        first_round(self.config, self.data, self.out / protocol, strong=strong, source=source, resume=True)

    def second_round(self, protocol: str) -> None:
        """The draft and its labels; after the first round."""
        strong, _ = self._split(protocol)
        second_round(self.config, self.data, self.out / protocol, strong=strong, resume=True)

    def score(self, plan: RowPlan) -> Score:
        """Train a row's network and measure it; after the rounds of labels that it needs."""
        return self._scored(plan, self._network(plan))

    def _scored(self, plan: RowPlan, network: Checkpoint) -> Score:
        dataset = VocDataset.open(self.data)
        views = Views(dataset, dataset.ids("val"), self.config.preprocess)
        return scored(network, views, self.strong, flip=plan.flip)

    def _network(self, plan: RowPlan) -> Checkpoint:
        folder = self.out / plan.folder
        if plan.protocol == "100":
            return train_supervised(self.config, self.data, folder, cutmix=plan.switches.cutmix, resume=True)
        run, (strong, _) = self.out / plan.protocol, self._split(plan.protocol)
        train = last_pnet if plan.relabel else only_pnet
        return train(self.config, self.data, run, folder, strong=strong, switches=plan.switches, resume=True)

    def ladder(self, protocol: str) -> Ladder:
        """Where the labels of the first round lose. Kept beside the run: it takes a minute."""
        path = self.out / protocol / "ladder.json"
        if not path.is_file():
            write_json(path, ladder(self.out / protocol, self.data, device=self.config.device))
        return read_json(path, Ladder)

    def _reports(self, protocols: Sequence[str], folder: str) -> dict[str, LabelReport]:
        paths = {p: self.out / p / folder / "manifest.json" for p in protocols}
        return {p: read_json(path, LabelReport) for p, path in paths.items() if path.is_file()}

    def _split(self, protocol: str) -> tuple[tuple[str, ...], Path | None]:
        """Strong categories and source set of a protocol."""
        return ((), self.source) if protocol == "0" else (self.strong, None)

    def _name(self, protocol: str, what: str) -> str:
        return f"seed {self.config.seed}, {protocol}:{what}"


def _protocols(rows: Sequence[RowPlan]) -> list[str]:
    return [protocol for protocol in ("50", "0") if any(plan.protocol == protocol for plan in rows)]
