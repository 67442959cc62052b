"""A benchmark file (benchmarks/photos.toml) -> the method on folds of a photo set, with its denominators; resumable.

It differs from the table of `reproduce` in what it compares: folds given by name, each with other strong categories; a
score over the categories that have enough validation pictures; a supervised network of equal epochs and one of equal
optimizer steps, of which the better is the denominator. OUT/seed-N/{supervised,supervised-long,FOLD/...} are runs like any
other, rows on other data stand in OUT/seed-N/ROW/, and what is found there is not made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.config import TrainConfig
from tsss_edge.label.annotate import LabelConfig
from tsss_edge.reproduce.derived import narrowed, with_masks, with_noisy_labels, without_categories
from tsss_edge.train.all import draft_epochs, label_once, with_epochs
from tsss_edge.train.classifier import train_classifier
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.pnet import PLAIN, Switches, train_pnet
from tsss_edge.train.supervised import train_supervised

ZERO = "0"  # name of the fold in which nothing is strong
NOISE = 0.1  # share of wrong image-level labels in the rows that have them


class PartEpochs(Struct, frozen=True):
    """Of each part of the method; P-Net's include its draft's."""

    lnet: int
    lnet_source: int  # where L-Net learns from the source set
    classifier: int
    pnet: int
    long: int = 0  # of the supervised network of equal optimizer steps; 0 leaves it out


class Benchmark(Struct, frozen=True):
    """What a benchmark file says. Every setting in it is fixed before a weak mask of the set is looked at."""

    train: TrainConfig
    epochs: PartEpochs
    folds: dict[str, tuple[str, ...]]  # name -> strong categories
    score: tuple[str, ...]  # object categories of the headline mean, background beside them
    seeds: tuple[int, ...] = (0, 1, 2)
    source_without: tuple[str, ...] = ()  # categories of the source set that the row "strict-source" leaves out
    source_for_all: bool = (
        False  # L-Net learns from the source set in every fold, where no picture is strong as a whole
    )
    only: tuple[
        str, ...
    ] = ()  # leave out every picture that shows another category: for choosing settings on strong ones
    object_above: float = 0.5  # M over which L-Net's row "as it labels" counts an object; a weak one is often less sure
    train_list: str = "train"
    relabel: bool = True
    labels: LabelConfig = LabelConfig()
    switches: Switches = Switches()

    def set_of(self, data: Path, out: Path) -> Path:
        """The set that is used: `data` itself, or where the file narrows it one made of links in OUT/data."""
        if not self.only and self.train_list == "train":
            return data
        return narrowed(data, out / "data", only=self.only, train_list=self.train_list)


@dataclass(frozen=True)
class Variant:
    """One row of the method. `first_seed_only`: rows that say where the method loses, not what it reaches.

    plain: P-Net by cross-entropy alone. with_d, judge: the benchmark's P-Net against D, or with the one that judges quality.
    relabel: the second round of labels, where the benchmark has one. noise: share of wrong image-level labels.
    strict: the source set without the categories that are near the target's.
    """

    protocol: str  # "50" (all folds) or "0"
    name: str
    plain: bool = False
    with_d: bool = False
    judge: bool = False
    relabel: bool = True
    noise: float = 0.0
    strict: bool = False
    first_seed_only: bool = True

    @property
    def key(self) -> str:
        """As the table names it."""
        return f"{self.protocol}:{self.name}"

    @property
    def other_data(self) -> bool:
        """Whether all its parts are made apart, on a set of its own."""
        return bool(self.noise) or self.strict

    def switches(self, benchmark: Benchmark) -> Switches:
        """Of its P-Net."""
        if self.plain:
            return PLAIN
        ours = benchmark.switches
        either = {"adversarial": self.with_d or ours.adversarial, "judge": self.judge or ours.judge}
        return msgspec.structs.replace(ours, **either)

    @property
    def folder(self) -> str:
        """Of its P-Net, in that of the fold."""
        return "pnet" if self.name == "full" or self.other_data else self.name


VARIANTS = (
    Variant("50", "full", first_seed_only=False),
    Variant("0", "full", first_seed_only=False),
    Variant("50", "labels-only", plain=True, relabel=False),
    Variant("0", "labels-only", plain=True, relabel=False),
    Variant("50", "with-d", with_d=True, first_seed_only=False),  # at 0% no picture is strong, so neither D has a part
    Variant("50", "with-judge", judge=True, first_seed_only=False),
    Variant("50", "noisy-labels", noise=NOISE),
    Variant("0", "noisy-labels", noise=NOISE),
    Variant("0", "strict-source", strict=True),
)


TAKEN = frozenset({ZERO, "supervised", "supervised-long", "masked", *(v.name for v in VARIANTS if v.other_data)})
"""Folders of a seed that are no fold of the file."""


@dataclass(frozen=True)
class WorkStep:
    """One piece of work, named as its folder. Done again it costs a look. `layer`: after all steps of lower ones."""

    name: str
    layer: int
    call: Callable[[], object]


LAYERS = ("lnet", "classifier", "labels", "relabels", "pnet")


@dataclass(frozen=True)
class BenchmarkRun:
    """One seed of a benchmark in its folder. rows: the keys that are wanted beside the denominators; None: all."""

    benchmark: Benchmark
    data: Path
    source: Path | None
    out: Path
    seed: int
    rows: tuple[str, ...] | None = None

    @property
    def config(self) -> TrainConfig:
        """The training settings with this seed."""
        return msgspec.structs.replace(self.benchmark.train, seed=self.seed)

    def folds(self, protocol: str | None = None) -> dict[str, tuple[str, ...]]:
        """Strong categories by fold, of one protocol or of both; "0" is there when a source set is."""
        half = self.benchmark.folds if protocol in (None, "50") else {}
        zero: dict[str, tuple[str, ...]] = {ZERO: ()} if self.source and protocol in (None, "0") else {}
        return {**half, **zero}

    def keys(self) -> tuple[str, ...]:
        """Every row that this benchmark can make, in the table's order, whatever `rows` says."""
        networks = [f"100:{name}" for name in self.supervised_names()]
        lnets = [f"{protocol}:lnet" for protocol in ("50", "0") if self.folds(protocol)]
        return (*networks, *lnets, *(v.key for v in self._possible()))

    def variants(self, *, first: bool) -> list[Variant]:
        """The wanted rows of the method of this seed; `first`: it makes those of one seed too."""
        return [v for v in self._possible() if (first or not v.first_seed_only) and self._wants(v.key)]

    def _possible(self) -> list[Variant]:
        """One that differs from "full" in nothing is left out, as is 0% without a source."""
        known = [v for v in VARIANTS if v.protocol != "0" or self.source]
        return [v for v in known if v.name == "full" or v.other_data or self._differs(v)]

    def lnet_protocols(self) -> list[str]:
        """Those whose L-Nets are wanted as rows of their own."""
        return [p for p in ("50", "0") if self.folds(p) and self._wants(f"{p}:lnet")]

    def _wants(self, key: str) -> bool:
        return self.rows is None or key in self.rows

    def _differs(self, variant: Variant) -> bool:
        ours = (self.benchmark.switches, self.benchmark.relabel)
        return (variant.switches(self.benchmark), variant.relabel and ours[1]) != ours

    def steps(self, *, first: bool) -> list[WorkStep]:
        """All work of this seed, by layers; in one, what the table needs first comes first."""
        found = [WorkStep(name, 0, partial(self.supervised, name)) for name in self.supervised_names()]
        for fold in (fold for protocol in self.lnet_protocols() for fold in self.folds(protocol)):
            found.append(WorkStep(f"{fold}/lnet", LAYERS.index("lnet"), partial(self.lnet, fold)))
        for variant in self.variants(first=first):
            for fold in self.folds(variant.protocol):
                prefix = f"{variant.name}/{fold}" if variant.other_data else fold
                for part in self._parts(variant):
                    name = f"{prefix}/{variant.folder if part == 'pnet' else part}"
                    found.append(WorkStep(name, LAYERS.index(part), partial(self.do, part, fold, variant)))
        unique = {step.name: step for step in reversed(found)}  # rows share networks and labels
        return sorted(reversed(unique.values()), key=lambda step: step.layer)

    def _parts(self, variant: Variant) -> list[str]:
        second = self.benchmark.relabel and variant.relabel
        return [part for part in LAYERS if part != "relabels" or second]

    def do(self, part: str, fold: str, variant: Variant) -> object:
        """One part of a row, for one fold."""
        run = self.of(variant)
        if part == "pnet":
            return run.pnet(fold, variant)
        parts = {"lnet": run.lnet, "classifier": run.classifier, "labels": run.label, "relabels": run.relabel}
        return parts[part](fold)

    def of(self, variant: Variant) -> BenchmarkRun:
        """The run that makes a row: this one or, where data differ, one in a folder of its own on data made for it."""
        if not variant.other_data:
            return self
        out, data, source = self.out / variant.name, self.data, self.source
        if variant.noise:
            data = with_noisy_labels(data, out / "data", share=variant.noise, seed=self.seed)
        if variant.strict and source is not None:
            source = without_categories(source, out / "source", self.benchmark.source_without)
        return dataclasses.replace(self, data=data, source=source, out=out)

    # -- parts; each trains, or finds what was trained

    def lnet(self, fold: str) -> Checkpoint:
        """The fold's L-Net."""
        epochs, source = self.benchmark.epochs, self._source(fold)
        config = with_epochs(self.config, epochs.lnet_source if source else epochs.lnet)
        strong = self.folds()[fold]
        return train_lnet(config, self.data, self.out / fold / "lnet", strong=strong, source=source, resume=True)

    def _source(self, fold: str) -> Path | None:
        return self.source if fold == ZERO or self.benchmark.source_for_all else None

    def supervised_names(self) -> tuple[str, ...]:
        """Folders of the supervised networks, which start from the same weights as the method."""
        return ("supervised", "supervised-long") if self.benchmark.epochs.long else ("supervised",)

    def supervised(self, name: str) -> Checkpoint:
        """The supervised network of as many epochs as P-Net, or of as many steps as all parts of the method; on pictures with masks."""
        epochs = self.benchmark.epochs.long if name == "supervised-long" else self.benchmark.epochs.pnet
        data = with_masks(self.data, self.out / "masked")
        return train_supervised(with_epochs(self.config, epochs), data, self.out / name, resume=True)

    def classifier(self, fold: str) -> Checkpoint:
        """The fold's classifier; after its L-Net."""
        config, run = with_epochs(self.config, self.benchmark.epochs.classifier), self.out / fold
        strong = self.folds()[fold]
        return train_classifier(config, self.data, run / "classifier", lnet=run / "lnet", strong=strong, resume=True)

    def label(self, fold: str) -> None:
        """The fold's labels Lw; after its classifier."""
        run = self.out / fold
        self._label(fold, run, run / "labels", self._source(fold))

    def relabel(self, fold: str) -> None:
        """A draft of P-Net and its labels; after `label`."""
        run = self.out / fold
        self._pnet(fold, "draft", run / "lnet", run / "labels", draft_epochs(self._whole), PLAIN)
        self._label(fold, run / "draft", run / "relabels", None)

    def pnet(self, fold: str, variant: Variant) -> Checkpoint:
        """A row's P-Net; after `label` or, where the row has a second round, `relabel`."""
        run, whole, switches = self.out / fold, self._whole, variant.switches(self.benchmark)
        if not (self.benchmark.relabel and variant.relabel):
            return self._pnet(fold, variant.folder, run / "lnet", run / "labels", whole.epochs, switches)
        epochs = whole.epochs - draft_epochs(whole)
        return self._pnet(fold, variant.folder, run / "draft", run / "relabels", epochs, switches)

    @property
    def _whole(self) -> TrainConfig:
        return with_epochs(self.config, self.benchmark.epochs.pnet)

    def _label(self, fold: str, run: Path, out: Path, source: Path | None) -> None:
        strong, settings = self.folds()[fold], self.benchmark.labels
        label_once(
            run, self.data, out, strong=strong, source=source, config=settings, device=self.config.device, resume=True
        )

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


def choose_keys(run: BenchmarkRun, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """`names` checked against what the benchmark can make; None (all) stays None.

    Raises: ValueError: a row that it cannot make, such as one of the 0% protocol without a source set.
    """
    known = run.keys()
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; this benchmark, on these sets, has {', '.join(known)}")
    return None if names is None else tuple(names)
