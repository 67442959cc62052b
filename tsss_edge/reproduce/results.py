"""The folder of a benchmark, finished or not -> its result: rows, ratios, and what has not been run yet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from tsss_edge import __version__
from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.config import read_toml
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.files import write_json
from tsss_edge.label.write import MANIFEST
from tsss_edge.reproduce.benchmark import TAKEN, ZERO, Benchmark, BenchmarkRun, Variant, choose_keys
from tsss_edge.reproduce.foldscore import (
    ObjectScore,
    fitted_score,
    label_scores,
    net_score,
    object_score,
    on_both,
    ready,
)
from tsss_edge.reproduce.pool import Task, threads_each, workers
from tsss_edge.reproduce.table import PAPER, Spread
from tsss_edge.reproduce.trivial import everything, filled, fit_low_level, foreground_iou, most_frequent
from tsss_edge.scoring import Mask, Views, net_answers
from tsss_edge.train.runfolder import epochs_done


class Cell(Struct, frozen=True):
    """What one network of a row and a fold reached. IoU in percent; `miou7` is the benchmark's headline mean."""

    seed: int
    fold: str  # "" of a supervised network
    miou7: float | None = None
    miou: float | None = None
    object_strong: float | None = None
    object_weak: float | None = None
    per_class: dict[str, float | None] = msgspec.field(default_factory=dict)
    seconds: float = 0.0


class ResultRow(Struct, frozen=True):
    """One row. `ratio`: of miou7 to the denominator of the same seed, folds averaged; None where one was not run."""

    key: str
    cells: tuple[Cell, ...]
    miou7: Spread | None = None
    ratio: Spread | None = None


class BenchmarkResult(Struct, frozen=True):
    """`ratios`: of "full" by protocol, as far as they were run. `missing`: work steps of the wanted rows that were not finished."""

    miou7: float | None  # of the denominator: the better supervised network, mean over seeds
    ratios: dict[str, float]
    rows: tuple[ResultRow, ...]
    trivial: tuple[ResultRow, ...]
    missing: tuple[str, ...]
    benchmark: Benchmark
    data_sha256: dict[str, str]
    paper_ratios: dict[str, float]
    tool: str

    def summary(self) -> str:
        """For a terminal."""
        lines = [f"{row.key:<24} {row.miou7.text() if row.miou7 else '-':>16}" for row in self.rows]
        return "\n".join([*lines, f"not yet run: {', '.join(self.missing) or 'nothing'}"])


RESULT = "benchmark.json"  # in the folder of a benchmark


def read_benchmark(path: Path, data: Path) -> Benchmark:
    """A benchmark file. Raises: ArtifactError: not one, it names categories that the set `data` lacks, or a fold's name is taken."""
    benchmark, classes = read_toml(path, Benchmark), VocDataset.open(data).classes
    try:
        for names in (*benchmark.folds.values(), benchmark.score, benchmark.only):
            classes.ids(names)
        _ = benchmark.train.preprocess  # the size can be one that no network takes
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    for fold in benchmark.folds:
        if fold in TAKEN or "/" in fold or fold.startswith("."):
            raise ArtifactError(
                f"{path}: a fold is named {fold!r}; its name becomes a folder beside {', '.join(sorted(TAKEN))}: choose another"
            )
    if not benchmark.folds or not benchmark.seeds:
        raise ArtifactError(f"{path}: needs at least one fold and one seed")
    if benchmark.only and not set(benchmark.score) <= set(benchmark.only):
        raise ArtifactError(f"{path}: scores categories that `only` leaves out")
    return benchmark


def run_benchmark(
    benchmark: Benchmark,
    data: Path,
    source: Path | None,
    out: Path,
    *,
    jobs: int | None = None,
    rows: Sequence[str] | None = None,
    ray: str | None = None,
) -> BenchmarkResult:
    """Do all work that is left, seed by seed, and collect; OUT/benchmark.json is written after every seed.

    Args:   jobs: networks that train at once, a process each; with `train.threads` 0 they share the cores out.
            ray: address of a Ray cluster that trains them.
            rows: keys such as "50:full" (default: all); the supervised networks are always among them.
    Raises: ValueError: an unknown row. DataError, ArtifactError: as the stages.
    """
    threads = threads_each(benchmark.train.threads, jobs, ray=ray)
    settings = msgspec.structs.replace(benchmark.train, threads=threads)
    runs = seed_runs(msgspec.structs.replace(benchmark, train=settings), data, source, out, rows)
    with workers(jobs, out / "jobs.log", ray=ray, threads=threads, gpu=benchmark.train.device != "cpu") as do:
        for run in runs:
            for _, layer in groupby(run.steps(first=run is runs[0]), key=lambda step: step.layer):
                do([Task(step.name, step.call) for step in layer])
            result = collect(benchmark, data, source, out, rows=rows)
            write_json(out / RESULT, result)
    return result


def seed_runs(
    benchmark: Benchmark, data: Path, source: Path | None, out: Path, rows: Sequence[str] | None = None
) -> list[BenchmarkRun]:
    """One run a seed, first seed first. Raises: ValueError: an unknown row, or an unknown category of the source set."""
    chosen = choose_keys(BenchmarkRun(benchmark, data, source, out, benchmark.seeds[0]), rows)
    data = benchmark.set_of(data, out)
    runs = [BenchmarkRun(benchmark, data, source, out / f"seed-{seed}", seed, chosen) for seed in benchmark.seeds]
    if source is not None and any(variant.strict for variant in runs[0].variants(first=True)):
        VocDataset.open(source).classes.ids(benchmark.source_without)
    return runs


def collect(
    benchmark: Benchmark, data: Path, source: Path | None, out: Path, *, rows: Sequence[str] | None = None
) -> BenchmarkResult:
    """Read and score what is there of a benchmark, or of some `rows` of it; trains nothing.

    Raises: ValueError: an unknown row.
    """
    runs = seed_runs(benchmark, data, source, out, rows)
    data = runs[0].data
    supervised = {name: _cells(runs, _supervised, name) for name in runs[0].supervised_names()}
    better = {
        run.seed: max(values)
        for run in runs
        if len(values := [c.miou7 for cells in supervised.values() for c in cells if c.seed == run.seed and c.miou7])
        == len(supervised)
    }
    found = [_row(f"100:{name}", cells, better) for name, cells in supervised.items()]
    found += [_row(f"{p}:lnet", _cells(runs, _lnets, p), better) for p in runs[0].lnet_protocols()]
    found += [_row(f"{p}:lnet-as-it-labels", _cells(runs, _labelling, p), better) for p in runs[0].lnet_protocols()]
    found += [_row(v.key, _cells(runs, _pnets, v), better) for v in runs[0].variants(first=True)]
    dataset = VocDataset.open(data)
    full = {row.key: row for row in found}
    return BenchmarkResult(
        miou7=statistics.fmean(better.values()) if better else None,
        ratios={p: row.ratio.mean for p in ("50", "0") if (row := full.get(f"{p}:full")) and row.ratio},
        rows=tuple(row for row in found if row.cells),
        trivial=tuple(trivial_rows(runs[0])),
        missing=tuple(missing(runs)),
        benchmark=benchmark,
        data_sha256={split: dataset.split_hash(split) for split in ("train", "val")},
        paper_ratios=PAPER,
        tool=f"tsss-edge {__version__}",
    )


def finished(folder: Path) -> Checkpoint | None:
    """The best checkpoint of a run whose last epoch is done; None of one under way, or not begun."""
    if not (folder / "best.pt").is_file():
        return None
    checkpoint = Checkpoint.load(folder)
    return checkpoint if epochs_done(folder) >= int(checkpoint.meta.training.get("epochs", 0)) else None


def missing(runs: Sequence[BenchmarkRun]) -> Iterator[str]:
    """Names of the steps of all seeds that were not finished."""
    for run in runs:
        for step in run.steps(first=run is runs[0]):
            folder = run.out / step.name
            if not (folder / "manifest.json").is_file() and finished(folder) is None:
                yield f"seed-{run.seed}/{step.name}"


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def _cells(
    runs: Sequence[BenchmarkRun], read: Callable[[BenchmarkRun, Any], Iterator[Cell]], what: object
) -> tuple[Cell, ...]:
    return tuple(cell for run in runs for cell in read(run, what))


def _supervised(run: BenchmarkRun, name: str) -> Iterator[Cell]:
    if checkpoint := finished(run.out / name):
        yield _net_cell(run, "", checkpoint)


def _lnets(run: BenchmarkRun, protocol: str) -> Iterator[Cell]:
    for fold, strong in run.folds(protocol).items():
        if checkpoint := finished(run.out / fold / "lnet"):
            yield _lnet_cell(run, fold, object_score(checkpoint, run.data, _parted_by(run, strong)))


def _labelling(run: BenchmarkRun, protocol: str) -> Iterator[Cell]:
    """L-Nets as their labels were made, where they were."""
    for fold, strong in run.folds(protocol).items():
        folder = run.out / fold
        if (folder / "labels" / MANIFEST).is_file():
            above = run.benchmark.object_above
            yield _lnet_cell(run, fold, fitted_score(folder, run.data, _parted_by(run, strong), above))


def _lnet_cell(run: BenchmarkRun, fold: str, score: ObjectScore) -> Cell:
    return Cell(seed=run.seed, fold=fold, object_strong=score.strong, object_weak=score.weak, seconds=score.seconds)


def _pnets(run: BenchmarkRun, variant: Variant) -> Iterator[Cell]:
    base = run.out / variant.name if variant.other_data else run.out
    for fold in run.folds(variant.protocol):
        if checkpoint := finished(base / fold / variant.folder):
            yield _net_cell(run, fold, checkpoint)


def _net_cell(run: BenchmarkRun, fold: str, checkpoint: Checkpoint) -> Cell:
    score = net_score(checkpoint, run.data, run.benchmark.score)
    return Cell(
        seed=run.seed,
        fold=fold,
        miou7=score.headline,
        miou=score.miou,
        per_class=score.per_class,
        seconds=score.seconds,
    )


def _parted_by(run: BenchmarkRun, strong: Sequence[str]) -> Sequence[str]:
    """At 0% nothing is strong; its validation pictures are parted as in the first fold, so that the two compare."""
    return strong or next(iter(run.benchmark.folds.values()))


def _row(key: str, cells: tuple[Cell, ...], better: dict[int, float]) -> ResultRow:
    by_seed: dict[int, list[float]] = {}
    for cell in cells:
        if cell.miou7 is not None:
            by_seed.setdefault(cell.seed, []).append(cell.miou7)
    means = {seed: statistics.fmean(values) for seed, values in by_seed.items()}
    ratios = [mean / better[seed] for seed, mean in means.items() if seed in better]
    return ResultRow(
        key=key,
        cells=cells,
        miou7=Spread.of(list(means.values())) if means else None,
        ratio=Spread.of(ratios) if ratios else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Trivial rows


def trivial_rows(run: BenchmarkRun) -> Iterator[ResultRow]:
    """Of the first seed: what no method reaches as well."""
    dataset, spec = VocDataset.open(run.data), run.config.preprocess

    def everything_iou(ids: Sequence[str]) -> float:
        return foreground_iou(Views(dataset, ids, spec), everything)

    whole, low = [], []
    for fold, strong in run.folds().items():
        parts = Supervision(dataset, tuple(_parted_by(run, strong)))
        whole.append(_object_cell(run, fold, on_both(parts, everything_iou)))
        learned = _low_level(run, fold, dataset)
        low.append(
            _object_cell(
                run,
                fold,
                on_both(parts, lambda ids, f=learned: foreground_iou(Views(dataset, ids, spec), f)),  # type: ignore[misc]
            )
        )
    yield ResultRow(key="everything-is-object", cells=tuple(whole))
    yield ResultRow(key="low-level-features", cells=tuple(low))
    for key, named in (("filled-most-frequent", False), ("filled-most-frequent-of-its-labels", True)):
        if cells := tuple(_filled_cells(run, dataset, named=named)):
            yield _row(key, cells, {})


def _object_cell(run: BenchmarkRun, fold: str, iou: tuple[float | None, float | None]) -> Cell:
    return Cell(seed=run.seed, fold=fold, object_strong=iou[0], object_weak=iou[1])


def _low_level(run: BenchmarkRun, fold: str, dataset: VocDataset) -> Callable[[Mask], Mask]:
    """The logistic regression that learns from the masks that the fold's L-Net learns from."""
    if run.source is not None and (fold == ZERO or run.benchmark.source_for_all):
        other = VocDataset.open(run.source)
        return fit_low_level(other, other.ids("train"), other.mask, seed=run.seed).foreground
    supervision = Supervision(dataset, run.folds()[fold])
    ids = supervision.strong_ids("train")
    return fit_low_level(dataset, ids, supervision.pixel_mask, seed=run.seed).foreground


def _filled_cells(run: BenchmarkRun, dataset: VocDataset, *, named: bool) -> Iterator[Cell]:
    """L-Net's foreground with one category in it; `named`: one that the picture's own label names."""
    order = most_frequent(dataset, dataset.image_labels)
    for fold in run.folds():
        checkpoint = finished(run.out / fold / "lnet")
        if checkpoint is None:
            continue
        views = Views(dataset, dataset.ids("val"), checkpoint.meta.preprocess)
        found = filled(foregrounds(checkpoint, views), order, dataset.image_labels if named else None)
        headline, miou, _ = label_scores(found, dataset, run.benchmark.score)
        yield Cell(seed=run.seed, fold=fold, miou7=headline, miou=miou)


def foregrounds(lnet: Checkpoint, views: Views) -> Iterator[tuple[str, Mask]]:
    """(id, 1 where L-Net sees an object) of each picture: (H,W) uint8 at its mask's size."""
    for answer in net_answers(ready(lnet), views):
        yield answer.id, answer.objects
