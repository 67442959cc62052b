"""Method, layer costs and fallback, with a judge whose scores are known; then the same on a real network."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import netkit
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import tsss_edge.calib.search as module
from tsss_edge.artifacts import Classes, Precision
from tsss_edge.backends.base import Outputs
from tsss_edge.calib.calibrate import AUTO
from tsss_edge.calib.methods import METHODS, Method
from tsss_edge.calib.ranges import CalibTable, collect, make_table
from tsss_edge.calib.search import (
    HeldBackScore,
    Judge,
    LayerCost,
    SearchReport,
    TriedGraph,
    draw_search,
    pareto_front,
    search,
    units_of,
)
from tsss_edge.calib.sets import HeldBackPicture, held_back_ids, load_held_back
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError, GateError, UnavailableError
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.onnxgraph.qdq import PairOptions, explain, insert_qdq, wanted_tensors
from tsss_edge.onnxgraph.sessions import (
    NO_PEAKS,
    OnnxRuntimeCompiler,
    OpenVinoCompiler,
    RunPicture,
    pick_compiler,
    time_in_turn,
)


@pytest.fixture(scope="module")
def floating(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run")
    return onnx.load(export_onnx(netkit.checkpoint(folder / "best.pt").path, folder / "f.onnx").path)


COSTS = {"encoder.stem": 0.4, "encoder.stages.1.1.add": 0.3, "decoder.smooth.0": 0.2}  # others cost nothing
METHOD_COST: dict[Method, float] = {"minmax": 0.9, "percentile": 0.5, "mse": 0.1, "entropy": 0.3}


@dataclass
class FakeJudge:
    """Its compiler keeps the graph; the score is the sum of the costs of the nodes in INT8 and of the method's cost."""

    judged: list[Any] = field(default_factory=list)
    miou: float = 70.0
    pictures: Sequence[HeldBackPicture] = ()
    floor: float = 0.0

    def __post_init__(self) -> None:
        blank = np.zeros((1, *netkit.SPEC.size_hw, 3), np.uint8)
        self.pictures = [HeldBackPicture(blank, blank[0, ..., 0], netkit.SPEC.place(netkit.SPEC.size_hw))]

    @property
    def compiler(self) -> FakeJudge:
        return self

    name = "fake"
    floats: tuple[Precision, ...] = ("fp32",)

    def __call__(self, graph: Any, precision: Precision, peaks: Mapping[str, float] = NO_PEAKS) -> RunPicture:
        return _GraphNetwork(graph, precision)

    def score(self, network: Any) -> HeldBackScore:
        self.judged.append(network)
        if network.precision == "fp32":
            return HeldBackScore(miou=70.0, drop=0.0, drop_high=0.0, change=0.0)
        quantized = {d.node for d in explain(network.graph) if d.quantized}
        change = sum(COSTS.get(node, 0.0) for node in quantized) + self.floor
        change += METHOD_COST[method_of(network.graph)]
        return HeldBackScore(miou=70 - change, drop=change - 0.05, drop_high=change, change=change)


@dataclass
class _GraphNetwork:
    graph: Any
    precision: Precision

    def __call__(self, picture: NDArray[np.uint8]) -> Outputs:
        return {}


def method_of(graph: Any) -> Method:
    """Tables of the tests have ranges of 1, 2, 3 or 4, by method."""
    scale = next(t for t in graph.graph.initializer if t.name.endswith(".scale") and not t.dims)
    value = float(onnx.numpy_helper.to_array(scale))
    return METHODS[round(value * 127) - 1]


def tables(graph: Any, methods: Sequence[Method] = METHODS) -> dict[Method, CalibTable]:
    return {
        m: CalibTable(
            method=m, images=1, onnx_sha256="", preprocess="", peaks={},
            ranges={t: METHODS.index(m) + 1.0 for t in wanted_tensors(graph)},
        )
        for m in methods
    }  # fmt: skip


def run(graph: Any, judge: FakeJudge, max_drop: float | None, **options: Any) -> SearchReport:
    return search(graph, tables(graph), judge, max_drop=max_drop, **options)  # type: ignore[arg-type]


def test_the_method_that_changes_least_is_kept(floating: Any) -> None:
    report = run(floating, FakeJudge(), None)
    assert report.method == "mse" and report.chosen == "INT8 mse" and report.layers == ()
    assert [s.name for s in report.steps] == ["fp32", *(f"INT8 {m}" for m in METHODS)]
    assert report.result.float_nodes == ()


def test_the_first_method_that_is_good_enough_ends_the_search_for_one(floating: Any) -> None:
    """mse changes 1.0 in all. A budget of 1.05 needs no other method."""
    first = search(floating, tables(floating, AUTO), FakeJudge(), max_drop=1.05)  # type: ignore[arg-type]
    assert [s.name for s in first.steps] == ["fp32", "INT8 mse"] and first.method == "mse"
    most = search(floating, tables(floating, ("minmax", "percentile", "mse")), FakeJudge(), max_drop=1.45)  # type: ignore[arg-type]
    assert most.method == "percentile", "mse would change less, but nobody needs to know"


def test_without_a_budget_a_method_is_held_to_the_usual_one(floating: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENOUGH", 1.05)
    report = search(floating, tables(floating, AUTO), FakeJudge(), max_drop=None)  # type: ignore[arg-type]
    assert [s.name for s in report.steps] == ["fp32", "INT8 mse"] and report.chosen == "INT8 mse"


def test_a_method_may_have_a_budget_of_its_own(floating: Any) -> None:
    """`calibrate --method auto --max-drop 1.45` without --search: percentile holds it, and no layer is given back."""
    three = tables(floating, ("minmax", "percentile", "mse"))
    report = search(floating, three, FakeJudge(), max_drop=None, method_drop=1.45)  # type: ignore[arg-type]
    assert report.method == "percentile" and report.layers == () and report.result.float_nodes == ()


def test_auto_knows_every_method() -> None:
    assert sorted(AUTO) == sorted(METHODS)


def test_layers_are_ranked_by_what_they_cost(floating: Any) -> None:
    report = run(floating, FakeJudge(), 5.0)
    assert [layer.node for layer in report.layers[:3]] == list(COSTS)
    assert [layer.cost for layer in report.layers[:3]] == pytest.approx(list(COSTS.values()))
    assert len(report.layers) == len(units_of(floating, PairOptions()))
    assert report.chosen == "INT8 minmax"  # the budget holds: no other method is tried, nothing is given back


def test_the_costliest_go_back_to_float_until_the_budget_holds(floating: Any) -> None:
    """1.0 in all: 0.1 for the method, 0.9 for three nodes; a budget of 0.45 needs the first two back."""
    report = run(floating, FakeJudge(), 0.45)
    assert [s.name for s in report.steps[-2:]] == ["INT8 but 1", "INT8 but 2"]
    assert report.chosen == "INT8 but 2" and report.result.float_nodes == tuple(COSTS)[:2]
    assert report.result.score.drop_high <= 0.45 < report.steps[-2].score.drop_high


def test_the_upper_end_of_the_interval_must_hold(floating: Any) -> None:
    """drop 0.25 would hold 0.28, its upper end 0.3 does not."""
    assert run(floating, FakeJudge(), 0.28).result.float_nodes == tuple(COSTS)
    assert run(floating, FakeJudge(), 0.31).result.float_nodes == tuple(COSTS)[:2]


def test_a_budget_that_cannot_hold_is_a_failed_gate(floating: Any) -> None:
    judge = FakeJudge(floor=1.0)
    units = len(units_of(floating, PairOptions()))
    with pytest.raises(GateError, match=rf"with {(units + 1) // 2} of {units} layers in float .* --qat"):
        run(floating, judge, 0.3)


def test_layers_kept_by_the_caller_stay_kept(floating: Any) -> None:
    report = run(floating, FakeJudge(), 0.45, options=PairOptions(float_nodes=("decoder.smooth.0",)))
    assert report.result.float_nodes == ("decoder.smooth.0", "encoder.stem")
    assert all(layer.node != "decoder.smooth.0" for layer in report.layers)


def test_progress_is_told_in_advance(floating: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    ticks: list[int] = []

    @contextmanager
    def watched(what: str, total: int) -> Iterator[Callable[[], None]]:
        told.append(total)
        yield lambda: ticks.append(1)

    monkeypatch.setattr(module, "progress", watched)
    run(floating, FakeJudge(), 5.0)
    assert told == [len(ticks)] == [4 + len(units_of(floating, PairOptions()))]
    run(floating, FakeJudge(), None)
    assert told[1:] == [4]


# ---------------------------------------------------------------------------------------------------------------------
# The judge


CLASSES = Classes(names=("background", "cat", "dog"))


def samples(masks: list[NDArray[np.uint8]]) -> list[HeldBackPicture]:
    return [
        HeldBackPicture(np.full((1, 64, 64, 3), i, np.uint8), m, netkit.SPEC.place((64, 64)))
        for i, m in enumerate(masks)
    ]


class LabelCompiler:
    """A graph is a list of label maps, one a picture."""

    name = "labels"
    floats: tuple[Precision, ...] = ("fp32",)

    def __call__(self, graph: Any, precision: Precision, peaks: Mapping[str, float] = NO_PEAKS) -> RunPicture:
        return lambda picture: {"labels": graph[int(picture[0, 0, 0, 0])][None]}


def halves(left: int, right: int) -> NDArray[np.uint8]:
    mask = np.full((64, 64), right, np.uint8)
    mask[:, :32] = left
    return mask


def judge_of(truth: list[NDArray[np.uint8]], floats: list[NDArray[np.uint8]]) -> Judge:
    spec = netkit.SPEC.__class__(size_hw=(64, 64))
    made = [HeldBackPicture(np.full((1, 64, 64, 3), i, np.uint8), m, spec.place((64, 64))) for i, m in enumerate(truth)]
    return Judge(floats, made, len(CLASSES), LabelCompiler())


def test_scores_by_hand() -> None:
    """Truth cat|dog; float says so; INT8 says cat|cat: IoU 50 for cat, 0 for dog."""
    judge = judge_of([halves(1, 2)], [halves(1, 2)])
    assert judge.miou == 100.0
    score = judge.score(LabelCompiler()([halves(1, 1)], "int8"))
    assert (score.miou, score.drop, score.change) == (25.0, 75.0, 75.0)


def test_change_counts_flips_for_the_better_too() -> None:
    judge = judge_of([halves(1, 2)], [halves(1, 1)])
    score = judge.score(LabelCompiler()([halves(1, 2)], "int8"))
    assert score.drop == -75.0 and score.change == pytest.approx(75.0)  # cat 50 of 100, dog 0


def test_drop_high_is_above_the_drop_when_pictures_differ() -> None:
    truth = [halves(1, 2), halves(0, 1), halves(2, 0)]
    judge = judge_of(truth, truth)
    score = judge.score(LabelCompiler()([halves(1, 1), *truth[1:]], "int8"))
    assert 0 < score.drop < score.drop_high


def test_pictures_without_a_label_tell_nothing() -> None:
    with pytest.raises(DataError, match="no labelled pixel"):
        judge_of([halves(255, 255)], [halves(1, 2)])


def test_held_back_pictures_have_masks_and_are_a_fifth(tmp_path: Path) -> None:
    dataset = VocDataset.open(netkit.write_set(tmp_path, train=20))
    dataset.mask_path("t3").unlink()
    (tmp_path / "image_labels.csv").write_text("id,class ids\n" + "".join(f"t{i},1\n" for i in range(20)))
    dataset = VocDataset.open(tmp_path)
    held = held_back_ids(dataset, "train", seed=0)
    assert len(held) == 4 and "t3" not in held
    assert not set(held) & set(held_back_ids(dataset, "train", seed=0, without=held))
    with pytest.raises(DataError, match="no picture with a mask is left"):
        held_back_ids(dataset, "train", seed=0, without=dataset.ids("train"))


# ---------------------------------------------------------------------------------------------------------------------
# Networks


@pytest.mark.parametrize("compiler", [OnnxRuntimeCompiler(), OpenVinoCompiler()], ids=lambda c: c.name)
def test_compilers_give_the_graph_s_own_answers(tmp_path: Path, compiler: Any) -> None:
    """Of a graph made for batches of 2, on one picture."""
    pytest.importorskip("openvino")
    checkpoint = netkit.checkpoint(tmp_path / "best.pt")
    two = onnx.load(export_onnx(checkpoint.path, tmp_path / "f.onnx", head="both", batch=2).path)
    one = onnx.load(export_onnx(checkpoint.path, tmp_path / "g.onnx", head="both").path)
    picture = netkit.picture(5)[None]
    found, expected = compiler(two, "fp32")(picture), OnnxRuntimeCompiler()(one, "fp32")(picture)
    assert set(found) == {"logits", "labels"} and found["labels"].shape == (1, 64, 96)
    np.testing.assert_allclose(
        found["logits"], expected["logits"], rtol=0, atol=1e-3 * np.abs(expected["logits"]).max()
    )
    assert "fp32" in compiler.floats


def test_without_openvino_onnx_runtime_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_compiler().name == "OpenVINO"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert pick_compiler().name == "ONNX Runtime"


def test_networks_take_turns() -> None:
    order: list[int] = []
    networks: list[RunPicture] = [lambda _, i=i: order.append(i) or {} for i in range(2)]  # type: ignore[misc]
    times = time_in_turn(networks, np.zeros((1, 1, 1, 3), np.uint8), rounds=3)
    assert order == [0, 1] * 4 and len(times) == 2 and all(t >= 0 for t in times)


def test_search_on_a_real_network(tmp_path: Path, floating: Any) -> None:
    """Every step is what its graph really gives."""
    dataset = VocDataset.open(netkit.write_set(tmp_path, train=10, size_hw=netkit.SPEC.size_hw))
    samples = load_held_back(dataset, dataset.ids("train")[:3], netkit.SPEC)
    histograms = collect(floating, wanted_tensors(floating), [lambda s=s: s.picture for s in samples])
    table = make_table(histograms, "minmax", images=3, onnx_sha256="", preprocess="", exact={})
    judge = Judge(floating, samples, len(netkit.CLASSES), OnnxRuntimeCompiler())
    report = search(floating, {"minmax": table}, judge, max_drop=100.0)
    whole = judge.score(OnnxRuntimeCompiler()(insert_qdq(floating, table.ranges), "int8"))
    assert report.result.score == whole and whole.change > 0
    first = report.layers[0]
    without = insert_qdq(floating, table.ranges, PairOptions(float_nodes=(first.node,)))
    assert first.cost == whole.change - judge.score(OnnxRuntimeCompiler()(without, "int8")).change


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def step(name: str, drop: float, ms: float, *, nodes: tuple[str, ...] = ()) -> TriedGraph:
    score = HeldBackScore(miou=70 - drop, drop=drop, drop_high=drop + 0.1, change=drop)
    return TriedGraph(name=name, score=score, latency_ms=ms, float_nodes=nodes)


STEPS = (
    step("FP32", 0.0, 10.0),
    step("INT8 a<b", 0.8, 3.0),
    step("INT8 c", 0.5, 4.0),
    step("INT8 but 1", 0.2, 4.0, nodes=("stem",)),
)


def test_the_front_holds_what_nothing_beats() -> None:
    assert [s.name for s in pareto_front(STEPS)] == ["INT8 a<b", "INT8 but 1", "FP32"]
    assert [s.name for s in pareto_front((*STEPS, step("as good and slower", 0.2, 5.0)))] == [
        "INT8 a<b",
        "INT8 but 1",
        "FP32",
    ]


def test_the_plot_names_every_graph_and_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = SearchReport(
        runs_on="OpenVINO", held_back=9, miou_float=70.0, max_drop=0.3, method="mse", steps=STEPS,
        layers=(LayerCost(node="stem", cost=0.3),), chosen="INT8 but 1",
    )  # fmt: skip
    files = [tmp_path / folder / "q.search.svg" for folder in ("first", "second")]
    for file in files:
        file.parent.mkdir()
        draw_search(report, file)
    texts = [t.text for t in ElementTree.parse(files[0]).getroot().iter("{http://www.w3.org/2000/svg}text")]
    title = "9 held-back training pictures on OpenVINO, float mIoU 70.00"
    assert {*(s.name for s in STEPS), "budget 0.30", title} <= set(texts)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = SearchReport(
        runs_on="OpenVINO", held_back=9, miou_float=70.0, max_drop=None, method="mse", steps=STEPS, layers=(),
        chosen="FP32",
    )  # fmt: skip
    with pytest.raises(UnavailableError, match=r"pip install 'tsss-edge\[report\]'"):
        draw_search(report, tmp_path / "q.search.svg")
    assert not list(tmp_path.iterdir())
