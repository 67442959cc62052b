"""Biases after correction: means equal those of the float layers, by hand and on a network; nothing else moves."""

from __future__ import annotations

from pathlib import Path

import netkit
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tsss_edge.artifacts import OnnxModel
from tsss_edge.calib.bias import correct_biases, measure_shifts, quantized_layers
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.onnxgraph.sessions import run_tensors
from tsss_edge.onnxgraph.view import OnnxGraph


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = tmp_path_factory.mktemp("run")
    return export_onnx(netkit.checkpoint(folder / "best.pt").path, folder / "fused.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return netkit.write_set(tmp_path_factory.mktemp("data") / "set", train=10)


@pytest.fixture(scope="module")
def both(model: OnnxModel, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, OnnxModel]:
    """INT8 with coarse weights, plain and corrected."""
    folder = tmp_path_factory.mktemp("int8")
    plain = calibrate(model, data, folder / "plain.onnx", size=8)
    return plain, calibrate(model, data, folder / "corrected.onnx", size=8, bias_correction=True)


def picture(spec_hw: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, *spec_hw, 3), np.uint8)


def test_every_mean_is_that_of_the_float_layer(model: OnnxModel, both: tuple[OnnxModel, OnnxModel]) -> None:
    plain, _ = both
    pictures = [lambda seed=seed: picture(model.meta.preprocess.size_hw, seed) for seed in range(4)]
    before = measure_shifts(model.graph, plain.graph, pictures)
    corrected = correct_biases(model.graph, plain.graph, pictures)
    after = measure_shifts(model.graph, corrected, pictures)
    assert set(before) == {n.name for n in quantized_layers(plain.graph)} and len(before) > 3
    for name, shift in before.items():
        assert np.abs(after[name]).max() < 1e-3 * max(1e-3, np.abs(shift).max()) + 1e-5, name
    assert max(np.abs(shift).max() for shift in before.values()) > 1e-3


def test_only_biases_of_quantized_layers_change(both: tuple[OnnxModel, OnnxModel]) -> None:
    plain, corrected = both
    layers = {n.name for n in quantized_layers(plain.graph)}
    for old, new in zip(plain.graph.graph.node, corrected.graph.graph.node, strict=True):
        assert (old.name, old.op_type, list(old.input[:2])) == (new.name, new.op_type, list(new.input[:2]))
        assert (list(old.input) != list(new.input)) == (old.name in layers)
    stored, now = ({t.name: numpy_helper.to_array(t) for t in m.graph.graph.initializer} for m in (plain, corrected))
    assert {f"{name}.corrected_bias" for name in layers} == set(now) - set(stored)
    assert all(np.array_equal(now[name], stored[name]) for name in set(now) & set(stored))
    onnx.checker.check_model(corrected.graph, full_check=True)
    unread = [name for name in now if not OnnxGraph(corrected.graph).is_read(name)]
    assert unread == [], "no old bias is left behind"


def test_the_answers_come_nearer_to_the_float_ones(model: OnnxModel, both: tuple[OnnxModel, OnnxModel]) -> None:
    """Weights of two levels a side: so coarse that means move a lot."""
    from tsss_edge.onnxgraph.qdq import PairOptions, insert_qdq

    class Coarse(PairOptions, frozen=True):
        @property
        def weight_levels(self) -> int:
            return 4

    record = both[0].meta.calibration
    assert record is not None
    ranges = {**record.peaks, "transpose": 255.0}
    rough = insert_qdq(model.graph, ranges, Coarse())
    pictures = [lambda seed=seed: picture(model.meta.preprocess.size_hw, seed) for seed in range(8)]
    mended = correct_biases(model.graph, rough, pictures)
    names = [model.graph.graph.output[0].name]
    want, coarse, better = (run_tensors(g, names) for g in (model.graph, rough, mended))
    errors = np.zeros(2)
    for seed in range(100, 104):  # others than those it was corrected on
        shown = picture(model.meta.preprocess.size_hw, seed)
        errors += [float(((run(shown)[names[0]] - want(shown)[names[0]]) ** 2).sum()) for run in (coarse, better)]
    assert errors[1] < 0.7 * errors[0]


def test_the_record_says_so(both: tuple[OnnxModel, OnnxModel]) -> None:
    assert [m.meta.calibration.bias_correction for m in both if m.meta.calibration] == [False, True]


def test_a_layer_without_a_bias_gets_one(model: OnnxModel, both: tuple[OnnxModel, OnnxModel]) -> None:
    bare, quantized = onnx.ModelProto(), onnx.ModelProto()
    bare.CopyFrom(model.graph)
    quantized.CopyFrom(both[0].graph)
    name = quantized_layers(quantized)[0].name
    for graph in (bare, quantized):
        node = next(n for n in graph.graph.node if n.name == name)
        del node.input[2:]
    pictures = [lambda: picture(model.meta.preprocess.size_hw, 0)]
    node = next(n for n in correct_biases(bare, quantized, pictures).graph.node if n.name == name)
    assert node.input[2] == f"{name}.corrected_bias"
