"""Float graph + ranges by each method -> which method, and which layers stay float so that the drop budget holds.

Everything is judged on a held-back part of the training split (`heldout.py`), on the engine that this machine would
serve. Three parts: the method that changes the labels least; what each layer's INT8 costs, by giving it alone back to
float; and, as long as the budget does not hold, giving back the costliest, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tsss_edge.artifacts import Precision, Struct
from tsss_edge.calib.heldout import Judge, Score
from tsss_edge.calib.methods import Method
from tsss_edge.calib.qdq import insert_qdq
from tsss_edge.calib.ranges import CalibTable
from tsss_edge.errors import GateError
from tsss_edge.onnxgraph.placement import Options, plan
from tsss_edge.onnxgraph.sessions import Network, time_in_turn

MOST_GIVEN_BACK = 0.5  # of the quantized layers: an engine with fewer in INT8 is a float engine with detours


class Step(Struct, frozen=True):
    """One graph that was tried: latency is the median of the network alone in milliseconds, all steps in turn."""

    name: str
    score: Score
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
    steps: tuple[Step, ...]
    layers: tuple[LayerCost, ...]  # costliest first
    chosen: str

    @property
    def result(self) -> Step:
        """The step that was chosen."""
        return next(step for step in self.steps if step.name == self.chosen)

    def summary(self) -> str:
        """For a terminal: every step, then the costliest layers."""
        rows = [f"{self.held_back} held-back training pictures on {self.runs_on}, float mIoU {self.miou_float:.2f}"]
        rows += [_row(step, step.name == self.chosen) for step in self.steps]
        rows += [f"  INT8 of {layer.node} costs {layer.cost:+.3f}" for layer in self.layers[:5]]
        return "\n".join(rows)


def _row(step: Step, chosen: bool) -> str:
    s = step.score
    return (
        f"{'>' if chosen else ' '} {step.name}: drop {s.drop:+.2f} (to {s.drop_high:+.2f}), "
        f"labels changed {s.change:.2f}, {step.latency_ms:.2f} ms"
    )


@dataclass
class _Tried:
    """A step with the network that was scored, kept for timing."""

    name: str
    score: Score
    network: Network
    float_nodes: tuple[str, ...] = ()


def search(
    floating: Any,
    tables: Mapping[Method, CalibTable],
    judge: Judge,
    *,
    max_drop: float | None,
    options: Options | None = None,
    tick: Callable[[], None] = lambda: None,
) -> SearchReport:
    """Choose a method and, with `max_drop`, the layers that stay float.

    Args:    floating: onnx.ModelProto, FP32. tables: ranges of it by each method that may be chosen.
             max_drop: mIoU points that the INT8 graph may lose; the upper end of the drop's interval must hold it.
             tick: called after each INT8 graph that was judged.
    Raises:  GateError: half of the layers are float and the budget still does not hold.
    """
    searcher = _Searcher(floating, judge, options or Options(), tick)
    floats = [searcher.try_float(kind) for kind in judge.compiler.floats]
    by_method = {method: searcher.try_int8(f"INT8 {method}", table) for method, table in tables.items()}
    method = min(by_method, key=lambda m: by_method[m].score.change)
    best, costs = by_method[method], list[LayerCost]()
    given_back: list[_Tried] = []
    if max_drop is not None:
        costs = searcher.layer_costs(tables[method], best.score)
        given_back = searcher.give_back(tables[method], best, costs, max_drop)
    tried = [*floats, *by_method.values(), *given_back]
    times = time_in_turn([t.network for t in tried], judge.samples[0].picture)
    return SearchReport(
        runs_on=judge.compiler.name,
        held_back=len(judge.samples),
        miou_float=judge.miou,
        max_drop=max_drop,
        method=method,
        steps=tuple(
            Step(name=t.name, score=t.score, latency_ms=ms, float_nodes=t.float_nodes)
            for t, ms in zip(tried, times, strict=True)
        ),
        layers=tuple(costs),
        chosen=(given_back[-1] if given_back else best).name,
    )


def graphs_to_judge(
    floating: Any, tables: Mapping[Method, CalibTable], max_drop: float | None, options: Options
) -> int:
    """How many graphs `search` judges, those that are given back not counted."""
    return len(tables) + (len(units_of(floating, options)) if max_drop is not None else 0)


def units_of(floating: Any, options: Options) -> tuple[str, ...]:
    """Names of the nodes that can be given back to float one by one: quantized layers, and Adds with a pair."""
    return tuple(d.node for d in plan(floating, options).decisions if d.quantized)


class _Searcher:
    """Tries graphs, all with the same judge."""

    def __init__(self, floating: Any, judge: Judge, options: Options, tick: Callable[[], None]) -> None:
        self.floating, self.judge, self.options, self.tick = floating, judge, options, tick

    def try_float(self, precision: Precision) -> _Tried:
        return self._judged(precision, self.floating, precision)

    def try_int8(self, name: str, table: CalibTable, float_nodes: tuple[str, ...] = ()) -> _Tried:
        options = self._but(float_nodes)
        return self._judged(name, insert_qdq(self.floating, table, options), "int8", options.float_nodes)

    def _judged(self, name: str, graph: Any, precision: Precision, float_nodes: tuple[str, ...] = ()) -> _Tried:
        network = self.judge.compiler(graph, precision)
        tried = _Tried(name, self.judge.score(network), network, float_nodes)
        if precision == "int8":
            self.tick()
        return tried

    def layer_costs(self, table: CalibTable, whole: Score) -> list[LayerCost]:
        """Each unit alone in float, all others in INT8. A layer does not answer for the Add that loses its pair with it."""
        units = units_of(self.floating, self.options)
        wins = {u: whole.change - self.try_int8(u, table, (u,)).score.change for u in units}
        costs = {u: wins[u] - sum(wins[lost] for lost in self._lost_with(u, units)) for u in units}
        return sorted((LayerCost(node=u, cost=cost) for u, cost in costs.items()), key=lambda c: -c.cost)

    def _lost_with(self, unit: str, units: tuple[str, ...]) -> set[str]:
        """Other units that are float when `unit` is."""
        return set(units) - set(units_of(self.floating, self._but((unit,)))) - {unit}

    def _but(self, float_nodes: tuple[str, ...]) -> Options:
        return msgspec.structs.replace(self.options, float_nodes=(*self.options.float_nodes, *float_nodes))

    def give_back(self, table: CalibTable, best: _Tried, costs: list[LayerCost], max_drop: float) -> list[_Tried]:
        """Costliest first, until the budget holds; nothing when it holds already."""
        tried: list[_Tried] = []
        given: tuple[str, ...] = ()
        for layer in costs:
            last = tried[-1] if tried else best
            if last.score.drop_high <= max_drop:
                return tried
            if len(given) >= MOST_GIVEN_BACK * len(costs):
                break
            given = (*given, layer.node)
            tried.append(self.try_int8(f"INT8 but {len(given)}", table, given))
        last = tried[-1] if tried else best
        if last.score.drop_high > max_drop:
            raise GateError(
                f"with {len(given)} of {len(costs)} layers in float the drop is {last.score.drop:.2f} (up to "
                f"{last.score.drop_high:.2f}), more than {max_drop:.2f}; serve bf16 or FP16, or fine-tune with --qat"
            )
        return tried
