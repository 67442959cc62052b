"""Scores of each seed -> the table: means, spread, and ratios to the supervised network of the same seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from tsss_edge import __version__
from tsss_edge.artifacts import Struct
from tsss_edge.config import TrainConfig
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.write import LabelReport
from tsss_edge.reproduce.score import Score
from tsss_edge.train.ladder import Ladder

PAPER = {"50": 0.965, "0": 0.894}  # ratios on PASCAL VOC 2012, arXiv 1711.06828; never measured here
SUPERVISED = "100:supervised"


class Seed(Struct, frozen=True):
    """What one seed gave; rows by key ("50:full"), labels (first and second round) and, for the first seed,
    ladders by protocol ("50", "0")."""

    seed: int
    scores: dict[str, Score]
    labels: dict[str, LabelReport]
    relabels: dict[str, LabelReport]
    ladders: dict[str, Ladder]


class Spread(Struct, frozen=True):
    """Over seeds. `deviation` is the sample standard deviation, None for a single seed."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises: statistics.StatisticsError: no value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), deviation=deviation, values=tuple(values))

    def text(self, digits: int = 2) -> str:
        """`71.23 +- 0.45`."""
        tail = "" if self.deviation is None else f" +- {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{tail}"


class Row(Struct, frozen=True):
    """One row of the table; IoU in percent, `ratio` of its mIoU to the supervised one of the same seed."""

    protocol: str
    name: str
    miou: Spread
    ratio: Spread
    miou_strong: Spread
    miou_weak: Spread
    object_iou: Spread
    seconds: Spread


class Table(Struct, frozen=True):
    """What `reproduce` writes as table.json. `ratios`: full method / supervised, by protocol, mean over seeds."""

    ratios: dict[str, float]
    rows: tuple[Row, ...]
    seeds: tuple[Seed, ...]
    config: dict[str, Any]
    data_sha256: dict[str, str]  # of train and val
    paper_ratios: dict[str, float]
    tool: str

    def summary(self) -> str:
        """For a terminal."""
        lines = [f"{'strong':>6} {'row':<18} {'mIoU':>16} {'ratio':>18} {'strong':>8} {'weak':>8}"]
        lines += [
            f"{row.protocol + '%':>6} {row.name:<18} {row.miou.text():>16} {row.ratio.text(4):>18} "
            f"{row.miou_strong.mean:8.2f} {row.miou_weak.mean:8.2f}"
            for row in self.rows
        ]
        return "\n".join(lines)


def tabulate(
    seeds: Sequence[Seed], rows: Sequence[tuple[str, str, str]], config: TrainConfig, dataset: VocDataset
) -> Table:
    """Aggregate. `rows` are (key, protocol, name) in the table's order."""
    made = tuple(_row(seeds, *row) for row in rows)
    return Table(
        ratios={row.protocol: row.ratio.mean for row in made if row.name == "full"},
        rows=made,
        seeds=tuple(seeds),
        config=json.loads(msgspec.json.encode(config)),
        data_sha256={split: dataset.split_hash(split) for split in ("train", "val")},
        paper_ratios=PAPER,
        tool=f"tsss-edge {__version__}",
    )


def _row(seeds: Sequence[Seed], key: str, protocol: str, name: str) -> Row:
    scores = [seed.scores[key] for seed in seeds]
    ratios = [seed.scores[key].miou / seed.scores[SUPERVISED].miou for seed in seeds]
    fields = ("miou", "miou_strong", "miou_weak", "object_iou", "seconds")
    spreads = {name: Spread.of([getattr(score, name) for score in scores]) for name in fields}
    return Row(protocol=protocol, name=name, ratio=Spread.of(ratios), **spreads)
