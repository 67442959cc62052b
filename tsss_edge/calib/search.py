"""Float graph + ranges by each method -> which method, and which layers stay float so that the drop budget holds.

Everything is judged on a held-back part of the training split, on the engine that this machine would serve. Three parts:
the method that changes the labels least; what each layer's INT8 costs, by giving it alone back to float; and, as long as
the budget does not hold, giving back the costliest, one after the other.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Struct
from tsss_edge.backends.base import import_extra
from tsss_edge.calib.methods import Method
from tsss_edge.calib.ranges import CalibTable
from tsss_edge.calib.sets import HeldBackPicture
from tsss_edge.errors import DataError, GateError
from tsss_edge.files import write_bytes
from tsss_edge.machine import progress
from tsss_edge.metrics import ConfusionMatrix, miou_drop_interval
from tsss_edge.onnxgraph.qdq import PairOptions, insert_qdq, plan
from tsss_edge.onnxgraph.sessions import Compiler, RunPicture, time_in_turn
from tsss_edge.ranks import gathered, of_all_processes, part_of, this_process

LEVEL = 0.68  # of the interval whose upper end is `drop_high`: one standard error for a normal distribution
ENOUGH = (
    0.3  # mIoU points: a method whose `drop_high` is no more ends the search for a method, where no budget is given
)
MOST_GIVEN_BACK = 0.5  # of the quantized layers: an engine with fewer in INT8 is a float engine with detours
COLOURS = {"chosen": "#c8102e", "front": "#1f6f8b", "other": "#8a949a"}  # of points; their sizes differ too


class HeldBackScore(Struct, frozen=True):
    """A graph on the held-back pictures.

    miou: against the masks, percent. drop: mIoU of the float graph - `miou`, points; drop_high: upper end of its 68%
    bootstrap interval over pictures.
    change: 100 - mIoU against the float graph's own labels, points. It counts every pixel that flips, for better or
    worse, and so ranks errors that are too small for `drop`, in which flips cancel: measured on edge-s, the order of
    layers by `change` on training pictures is that on validation pictures, the order by `drop` is chance.
    """

    miou: float
    drop: float
    drop_high: float
    change: float


class Judge:
    """Scores INT8 graphs of one float graph on the same pictures. Under torchrun each process runs its part of them."""

    def __init__(
        self, floating: Any, pictures: Sequence[HeldBackPicture], num_classes: int, compiler: Compiler
    ) -> None:
        """Args:   floating: onnx.ModelProto, FP32.
        Raises: DataError: no pixel of the pictures is labelled.
        """
        self.pictures, self.compiler, self._num_classes = tuple(pictures), compiler, num_classes
        self._mine = part_of(self.pictures)
        self._masks = [picture.mask for picture in self._mine]
        self._float_labels = self._labels(compiler(floating, "fp32"))
        self._float = self._matrix(self._float_labels, self._masks)
        self.miou = self._float.miou
        if not np.isfinite(self.miou):
            raise DataError("the held-back pictures have no labelled pixel (every mask is 255); nothing to choose by")

    def score(self, run: RunPicture) -> HeldBackScore:
        """Run a graph on all pictures."""
        labels = self._labels(run)
        mine = self._matrix(labels, self._masks)
        alike = self._matrix(labels, self._float_labels).miou
        _, high = miou_drop_interval(self._float.per_image, mine.per_image, level=LEVEL)
        return HeldBackScore(miou=mine.miou, drop=self.miou - mine.miou, drop_high=high, change=100.0 - alike)

    def _labels(self, run: RunPicture) -> list[NDArray[np.uint8]]:
        return [picture.labels(run) for picture in self._mine]

    def _matrix(self, labels: Sequence[NDArray[np.uint8]], truth: Sequence[NDArray[np.uint8]]) -> ConfusionMatrix:
        matrix = ConfusionMatrix(self._num_classes)
        for one, its_truth in zip(labels, truth, strict=True):
            matrix.update(one, its_truth)
        return of_all_processes(matrix)


# ---------------------------------------------------------------------------------------------------------------------
# The report


class TriedGraph(Struct, frozen=True):
    """One graph that was tried. latency_ms: median of the network alone, all graphs in turn."""

    name: str
    score: HeldBackScore
    latency_ms: float
    float_nodes: tuple[str, ...] = ()


class LayerCost(Struct, frozen=True):
    """What INT8 of one layer (or of the skip input of one Add) costs: `change` with it minus `change` without it, points."""

    node: str
    cost: float


class SearchReport(Struct, frozen=True):
    """What was tried on the way to an INT8 graph. `chosen` names one of `steps`."""

    runs_on: str
    held_back: int
    miou_float: float
    max_drop: float | None  # None: only the method was chosen
    method: Method
    steps: tuple[TriedGraph, ...]
    layers: tuple[LayerCost, ...]  # costliest first
    chosen: str

    @property
    def result(self) -> TriedGraph:
        """The graph that was chosen."""
        return next(step for step in self.steps if step.name == self.chosen)


def draw_search(report: SearchReport, path: Path) -> None:
    """Write a plot (SVG): mIoU drop against latency of every graph, with a line up to `drop_high`, and the budget.

    Raises: UnavailableError: matplotlib is not installed.
    """
    matplotlib, figures = (import_extra(name, "report") for name in ("matplotlib", "matplotlib.figure"))
    figure = figures.Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.subplots()
    what = f"{report.held_back} held-back training pictures on {report.runs_on}, float mIoU {report.miou_float:.2f}"
    axes.set(title=what, xlabel="network alone, median milliseconds", ylabel="mIoU drop, points (up is worse)")
    front = {step.name for step in pareto_front(report.steps)}
    for step in report.steps:
        kind = "chosen" if step.name == report.chosen else "front" if step.name in front else "other"
        axes.vlines(step.latency_ms, step.score.drop, step.score.drop_high, COLOURS[kind])
        axes.scatter(step.latency_ms, step.score.drop, 25 if kind == "other" else 60, COLOURS[kind])
        at = (step.latency_ms, step.score.drop)
        axes.annotate(step.name, at, (8, 0), textcoords="offset points", va="center", parse_math=False)
    if report.max_drop is not None:
        axes.axhline(report.max_drop, color=COLOURS["chosen"], linestyle="--", label=f"budget {report.max_drop:.2f}")
        axes.legend()
    axes.set_xlim(left=0)
    content = io.BytesIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": path.name}
    ):  # text stays text, same bytes twice
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_bytes(path, content.getvalue())


def pareto_front(steps: Sequence[TriedGraph]) -> list[TriedGraph]:
    """Graphs that no other beats in both latency and drop, fastest first."""
    front: list[TriedGraph] = []
    for step in sorted(steps, key=lambda s: (s.latency_ms, s.score.drop)):
        if not front or step.score.drop < front[-1].score.drop:
            front.append(step)
    return front


# ---------------------------------------------------------------------------------------------------------------------
# The search


@dataclass
class _Scored:
    """A graph that was tried, with the function that was scored, kept for timing."""

    name: str
    score: HeldBackScore
    run: RunPicture
    float_nodes: tuple[str, ...] = ()


def search(
    floating: Any,
    tables: Mapping[Method, CalibTable],
    judge: Judge,
    *,
    max_drop: float | None,
    method_drop: float | None = None,
    options: PairOptions | None = None,
) -> SearchReport:
    """Choose a method and, with `max_drop`, the layers that stay float. Shows a progress bar on a terminal.

    Args:    floating: onnx.ModelProto, FP32. tables: ranges of it by each method that may be chosen, tried in this order; the
             first that holds the budget ends it, and where none does the one with the least `change` is taken.
             max_drop: mIoU points that the INT8 graph may lose; the upper end of the drop's interval must hold it. None:
             methods are held to `method_drop` (None: `ENOUGH`), and no layer is given back.
    Raises:  GateError: half of the layers are float and the budget still does not hold.
    """
    options, costs, given_back = options or PairOptions(), list[LayerCost](), list[_Scored]()
    units = units_of(floating, options) if max_drop is not None else ()
    with progress("search", len(tables) + len(units)) as tick:  # what is given back is not known in advance
        searcher = _Searcher(floating, judge, options, tick)
        floats = searcher.floats()
        enough = next(d for d in (max_drop, method_drop, ENOUGH) if d is not None)
        by_method = searcher.methods(tables, enough)
        least = min(by_method, key=lambda m: by_method[m].score.change)
        method = next((m for m, tried in by_method.items() if tried.score.drop_high <= enough), least)
        best = by_method[method]
        if max_drop is not None:
            costs = searcher.layer_costs(tables[method], best.score, units)
            given_back = searcher.give_back(tables[method], best, costs, max_drop)
    tried = [*floats, *by_method.values(), *given_back]
    runs, writes = [t.run for t in tried], this_process().writes  # the others wait, so that the machine is still
    times = gathered(time_in_turn(runs, judge.pictures[0].picture) if writes else [])[0]
    return SearchReport(
        runs_on=judge.compiler.name,
        held_back=len(judge.pictures),
        miou_float=judge.miou,
        max_drop=max_drop,
        method=method,
        steps=tuple(
            TriedGraph(name=t.name, score=t.score, latency_ms=ms, float_nodes=t.float_nodes)
            for t, ms in zip(tried, times, strict=True)
        ),
        layers=tuple(costs),
        chosen=(given_back[-1] if given_back else best).name,
    )


def units_of(floating: Any, options: PairOptions) -> tuple[str, ...]:
    """Names of the nodes that can be given back to float one by one: quantized layers, and Adds with a pair."""
    return tuple(d.node for d in plan(floating, options).decisions if d.quantized)


class _Searcher:
    """Tries graphs, all with the same judge."""

    def __init__(self, floating: Any, judge: Judge, options: PairOptions, tick: Callable[[], None]) -> None:
        self.floating, self.judge, self.options, self.tick = floating, judge, options, tick

    def try_int8(self, name: str, table: CalibTable, float_nodes: tuple[str, ...] = ()) -> _Scored:
        options = self._but(float_nodes)
        run = self.judge.compiler(insert_qdq(self.floating, table.ranges, options), "int8", table.others)
        tried = _Scored(name, self.judge.score(run), run, options.float_nodes)
        self.tick()
        return tried

    def methods(self, tables: Mapping[Method, CalibTable], enough: float) -> dict[Method, _Scored]:
        """All that were tried: in their order, until one holds `enough`."""
        tried: dict[Method, _Scored] = {}
        for method, table in tables.items():
            tried[method] = self.try_int8(f"INT8 {method}", table)
            if tried[method].score.drop_high <= enough:
                break
        for _ in range(len(tables) - len(tried)):  # done, for the progress bar
            self.tick()
        return tried

    def floats(self) -> list[_Scored]:
        """The float graph, in each precision that it is served in here."""
        runs = {kind: self.judge.compiler(self.floating, kind) for kind in self.judge.compiler.floats}
        return [_Scored(kind, self.judge.score(run), run) for kind, run in runs.items()]

    def layer_costs(self, table: CalibTable, whole: HeldBackScore, units: tuple[str, ...]) -> list[LayerCost]:
        """Each unit alone in float, all others in INT8. A layer does not answer for the Add that loses its pair with it."""
        wins = {u: whole.change - self.try_int8(u, table, (u,)).score.change for u in units}
        costs = {u: wins[u] - sum(wins[lost] for lost in self._lost_with(u, units)) for u in units}
        return sorted((LayerCost(node=u, cost=cost) for u, cost in costs.items()), key=lambda c: -c.cost)

    def _lost_with(self, unit: str, units: tuple[str, ...]) -> set[str]:
        """Other units that are float when `unit` is."""
        return set(units) - set(units_of(self.floating, self._but((unit,)))) - {unit}

    def _but(self, float_nodes: tuple[str, ...]) -> PairOptions:
        return msgspec.structs.replace(self.options, float_nodes=(*self.options.float_nodes, *float_nodes))

    def give_back(self, table: CalibTable, best: _Scored, costs: list[LayerCost], max_drop: float) -> list[_Scored]:
        """Costliest first, until the budget holds; nothing when it holds already. Raises: GateError: it never does."""
        tried: list[_Scored] = []
        given: tuple[str, ...] = ()
        last = best
        for layer in costs:
            if last.score.drop_high <= max_drop or len(given) >= MOST_GIVEN_BACK * len(costs):
                break
            given = (*given, layer.node)
            last = self.try_int8(f"INT8 but {len(given)}", table, given)
            tried.append(last)
        if last.score.drop_high > max_drop:
            raise GateError(
                f"with {len(given)} of {len(costs)} layers in float the drop is {last.score.drop:.2f} (up to "
                f"{last.score.drop_high:.2f}), more than {max_drop:.2f}; serve bf16 or FP16, or fine-tune with --qat"
            )
        return tried
