"""A benchmark file (photos.toml) -> the method on folds of a photo set, with its denominators; resumable.

A benchmark differs from the table of `reproduce` in what it compares: folds given by name, each with other strong
categories; a score over the categories that have enough validation pictures; a supervised network of equal epochs and one
of equal optimizer steps, of which the better is the denominator. OUT/seed-N/{supervised,supervised-long,FOLD/...} are runs
like any other, and what is found there is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.annotate import LabelConfig
from tsss_edge.train.all import draft_epochs, label_once, with_epochs
from tsss_edge.train.classifier import train_classifier
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.pnet import PLAIN, Switches, train_pnet
from tsss_edge.train.supervised import train_supervised

ZERO = "0"  # name of the fold in which nothing is strong


class Epochs(Struct, frozen=True):
    """Of each part of the method; P-Net's include its draft's."""

    lnet: int
    lnet_source: int  # where L-Net learns from the source set
    classifier: int
    pnet: int
    long: int = 0  # of the supervised network of equal optimizer steps; 0 leaves it out


class Benchmark(Struct, frozen=True):
    """What a benchmark file says. Every setting in it is fixed before a weak mask of the set is looked at."""

    train: TrainConfig
    epochs: Epochs
    folds: dict[str, tuple[str, ...]]  # name -> strong categories
    score: tuple[str, ...]  # object categories of the headline mean, background beside them
    seeds: tuple[int, ...] = (0, 1, 2)
    source_without: tuple[str, ...] = ()  # categories of the source set that a strict 0% leaves out
    relabel: bool = True
    labels: LabelConfig = LabelConfig()
    switches: Switches = Switches()


@dataclass(frozen=True)
class Step:
    """One piece of work, named as its folder. Done again it costs a look."""

    name: str
    call: Callable[[], object]


@dataclass(frozen=True)
class BenchmarkRun:
    """One seed of a benchmark in its folder."""

    benchmark: Benchmark
    data: Path
    source: Path | None
    out: Path
    seed: int

    @property
    def config(self) -> TrainConfig:
        """The training settings with this seed."""
        return msgspec.structs.replace(self.benchmark.train, seed=self.seed)

    def folds(self) -> dict[str, tuple[str, ...]]:
        """Strong categories by fold; "0" is there when a source set is."""
        return {**self.benchmark.folds, **({ZERO: ()} if self.source else {})}

    def steps(self) -> Iterator[Step]:
        """In the order in which numbers are wanted: L-Nets, the supervised network, then fold by fold."""
        for fold in self.folds():
            yield Step(f"{fold}/lnet", lambda fold=fold: self.lnet(fold))  # type: ignore[misc]
        yield Step("supervised", lambda: self.supervised("supervised", self.benchmark.epochs.pnet))
        for fold in self.folds():
            yield Step(f"{fold}/classifier", lambda fold=fold: self.classifier(fold))  # type: ignore[misc]
            yield Step(f"{fold}/labels", lambda fold=fold: self.label(fold))  # type: ignore[misc]
            if self.benchmark.relabel:
                yield Step(f"{fold}/relabels", lambda fold=fold: self.relabel(fold))  # type: ignore[misc]
            yield Step(f"{fold}/pnet", lambda fold=fold: self.pnet(fold))  # type: ignore[misc]
        if self.benchmark.epochs.long:
            yield Step("supervised-long", lambda: self.supervised("supervised-long", self.benchmark.epochs.long))

    def lnet(self, fold: str) -> Checkpoint:
        """Train the fold's L-Net, or find it."""
        epochs, source = self.benchmark.epochs, self.source if fold == ZERO else None
        config = with_epochs(self.config, epochs.lnet_source if source else epochs.lnet)
        strong = self.folds()[fold]
        return train_lnet(config, self.data, self.out / fold / "lnet", strong=strong, source=source, resume=True)

    def supervised(self, folder: str, epochs: int) -> Checkpoint:
        """Train the supervised network, from the same initial weights as the method, or find it."""
        return train_supervised(with_epochs(self.config, epochs), self.data, self.out / folder, resume=True)

    def classifier(self, fold: str) -> Checkpoint:
        """Train the fold's classifier, or find it; after its L-Net."""
        config, run = with_epochs(self.config, self.benchmark.epochs.classifier), self.out / fold
        return train_classifier(
            config, self.data, run / "classifier", lnet=run / "lnet", strong=self.folds()[fold], resume=True
        )

    def label(self, fold: str) -> None:
        """The fold's labels Lw; after its classifier."""
        run, source = self.out / fold, self.source if fold == ZERO else None
        label_once(
            run,
            self.data,
            run / "labels",
            strong=self.folds()[fold],
            source=source,
            config=self.benchmark.labels,
            device=self.config.device,
            resume=True,
        )

    def relabel(self, fold: str) -> None:
        """A draft of P-Net and its labels; after `label`."""
        run = self.out / fold
        self._pnet(fold, "draft", run / "lnet", run / "labels", draft_epochs(self._whole), PLAIN)
        label_once(
            run / "draft",
            self.data,
            run / "relabels",
            strong=self.folds()[fold],
            config=self.benchmark.labels,
            device=self.config.device,
            resume=True,
        )

    def pnet(self, fold: str) -> Checkpoint:
        """The fold's P-Net; after `label` or, where the benchmark has a second round, `relabel`."""
        run, whole = self.out / fold, self._whole
        if not self.benchmark.relabel:
            return self._pnet(fold, "pnet", run / "lnet", run / "labels", whole.epochs, self.benchmark.switches)
        epochs = whole.epochs - draft_epochs(whole)
        return self._pnet(fold, "pnet", run / "draft", run / "relabels", epochs, self.benchmark.switches)

    @property
    def _whole(self) -> TrainConfig:
        return with_epochs(self.config, self.benchmark.epochs.pnet)

    def _pnet(self, fold: str, folder: str, start: Path, labels: Path, epochs: int, switches: Switches) -> Checkpoint:
        return train_pnet(
            with_epochs(self.config, epochs),
            self.data,
            self.out / fold / folder,
            lnet=start,
            labels=labels,
            strong=self.folds()[fold],
            switches=switches,
            resume=True,
        )


def weak_names(data: Path, strong: tuple[str, ...]) -> tuple[str, ...]:
    """Categories of a set that are weak in a fold."""
    return Supervision(VocDataset.open(data), strong).weak
