"""Planted faults in an INT8 graph are found and the layer is named."""

from __future__ import annotations

from typing import Any

import chain
import numpy as np
import onnx
import pytest

from tsss_edge.onnxgraph.ort_pairs import unsigned_form
from tsss_edge.onnxgraph.qdq import insert_qdq
from tsss_edge.onnxgraph.view import OnnxGraph
from tsss_edge.parity.int8_checks import NO_ERROR_DB, LayerError, LayerReport, compare_layers, decibels, guilty_layer

LAYERS = (0, 1, 2)


def compare(int8: Any) -> LayerReport:
    return compare_layers(chain.float_chain(), int8, chain.pictures())


def test_healthy_graph_has_no_guilty_layer() -> None:
    report = compare(chain.int8_chain())
    assert report.guilty == "" and report.structure == () == report.scales and report.images == 3
    assert [layer.layer for layer in report.layers] == ["conv0", "conv1", "conv2"]
    for i, layer in enumerate(report.layers):
        assert layer.activation is not None and layer.weight_db is not None
        assert layer.activation.tensor == f"x{i}"
        assert 35 < layer.accumulated_db < 60 and layer.jump_db < 0
        assert layer.activation.used == pytest.approx(1.0, abs=1e-3)  # minmax on the same pictures
        assert layer.activation.saturated == 0


@pytest.mark.parametrize("layer", LAYERS)
def test_scale_times_eight_on_an_activation(layer: int) -> None:
    report = compare(chain.int8_chain(input_scale={layer: 8.0}))
    assert f"layer conv{layer} " in report.guilty
    assert f"the scale of x{layer} is too large: its values use 16 of 127 steps" in report.guilty
    assert len(report.scales) == 1 and f"layer conv{layer}: the scale of x{layer} is too large" in report.scales[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_scale_times_eight_on_weights(layer: int) -> None:
    report = compare(chain.int8_chain(weight_scale={layer: 8.0}))
    assert f"layer conv{layer} " in report.guilty and "its INT8 weights are only" in report.guilty
    assert len(report.scales) == 1 and f"layer conv{layer}: its INT8 weights" in report.scales[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_scale_too_small_clips(layer: int) -> None:
    report = compare(chain.int8_chain(input_scale={layer: 1 / 8}))
    assert f"layer conv{layer} " in report.guilty and f"the scale of x{layer} clips" in report.guilty
    assert report.scales == ()  # a method may clip on purpose: only what it costs is judged


@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_bias(layer: int) -> None:
    report = compare(chain.int8_chain(bias={layer: 1.0}))
    assert f"layer conv{layer} " in report.guilty and "bias or wiring" in report.guilty


def test_the_first_of_two_faults_is_named() -> None:
    assert "layer conv0 " in compare(chain.int8_chain(input_scale={0: 8.0, 2: 8.0})).guilty


def test_quantized_output_is_a_fault_of_form() -> None:
    report = compare(chain.int8_chain(output=True))
    assert report.guilty.startswith("output logits is quantized")
    assert len(report.layers) == 3 and report.layers[2].weight_db is not None  # the layer behind the Q/DQ is compared


def test_two_ends_of_a_pair_that_differ_are_a_fault_of_form() -> None:
    report = compare(chain.int8_chain(dequantize_scale={1: 8.0}))
    assert report.structure == ("x1 is quantized with one scale and dequantized with another",)


def test_decibels_by_hand() -> None:
    assert decibels(100.0, 1.0) == pytest.approx(20.0)
    assert decibels(1.0, 0.0) == NO_ERROR_DB
    assert decibels(0.0, 1.0) == -NO_ERROR_DB


def test_own_error_is_the_slow_formula() -> None:
    """Of x0 = picture / 255, computed here with plain NumPy."""
    report = compare(chain.int8_chain(input_scale={0: 4.0}))
    step = np.float32(chain.measured_ranges()[0] / 127 * 4)
    x = np.concatenate(chain.pictures()).astype(np.float32) * np.float32(1 / 255)
    y = np.round(x.astype(np.float64) / step) * step
    expected = 10 * np.log10((x.astype(np.float64) ** 2).sum() / ((x - y) ** 2).sum())
    first = report.layers[0].activation
    assert first is not None and first.own_db == pytest.approx(expected, abs=1e-3)
    assert first.used == pytest.approx(0.25, rel=1e-3)


def test_share_of_clipped_values() -> None:
    """x0 is uniform on 0 to 1 with 127 steps of 1/1016: all above 127.5 steps are clipped."""
    first = compare(chain.int8_chain(input_scale={0: 1 / 8})).layers[0].activation
    assert first is not None and first.saturated == pytest.approx(1 - 127.5 / 1016, abs=0.01)


def test_unsigned_steps_are_judged_as_they_are() -> None:
    """The form of `--target ort`: 0 to 255 over a range without negative values; the signed one has -128 to 127."""
    signed = OnnxGraph(chain.int8_chain()).activation_roundings()["x1"]
    assert (signed.low, signed.high) == (-128, 127)
    ranges = dict(zip(("x0", "x1", "x2"), chain.measured_ranges(), strict=True))
    report = compare(unsigned_form(insert_qdq(chain.float_chain(), ranges), {}))
    second = report.layers[1].activation
    assert report.guilty == "" and report.scales == ()
    assert second is not None and second.tensor == "x1"
    assert (second.levels, second.saturated, second.used) == (255, 0, pytest.approx(1.0, abs=1e-3))


def test_a_range_that_calibration_saw_is_no_fault_however_little_these_pictures_use_of_it() -> None:
    wide = chain.int8_chain(input_scale={1: 8.0})
    peaks = {"x1": 8 * chain.measured_ranges()[1]}  # one picture of the set reached that far
    assert compare_layers(chain.float_chain(), wide, chain.pictures(), peaks).scales == ()
    assert len(compare_layers(chain.float_chain(), wide, chain.pictures(), {"x1": 1.0}).scales) == 1


def test_a_tensor_that_is_always_zero_is_no_fault() -> None:
    model = chain.float_chain()
    bias = next(t for t in model.graph.initializer if t.name == "b0")
    values = np.full_like(onnx.numpy_helper.to_array(bias), -1000.0)  # the ReLU after it lets nothing through
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "b0"))
    report = compare_layers(model, chain.int8_chain(), chain.pictures())
    second = report.layers[1].activation
    assert second is not None and second.used == 0 and not any("x1" in fault for fault in report.scales)


def test_dead_channels_are_counted() -> None:
    model = chain.float_chain()
    bias = next(t for t in model.graph.initializer if t.name == "b0")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[[1, 5]] = -1000.0  # the ReLU after it lets nothing through
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "b0"))
    report = compare_layers(model, chain.int8_chain(bias={}), chain.pictures())
    second = report.layers[1].activation
    assert second is not None and (second.dead_channels, second.channels) == (2, 8)


def test_weights_behind_a_pair_of_nodes_are_read_too() -> None:
    """Some tools keep float weights and put QuantizeLinear + DequantizeLinear after them."""
    stored = OnnxGraph(chain.int8_chain())
    steps = stored.weight("w1_step")
    weight = chain.weights()[1][0]
    model = chain.int8_chain()
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w1_float"))
    model.graph.node.insert(
        0, onnx.helper.make_node("QuantizeLinear", ["w1_float", "w1_step", "w1_zero"], ["w1_pair"], axis=0)
    )
    next(n for n in model.graph.node if n.output[0] == "w1_dq").input[0] = "w1_pair"
    paired = OnnxGraph(model).constant("w1_dq")
    assert paired is not None
    np.testing.assert_array_equal(paired, stored.constant("w1_dq"))
    assert np.abs(paired - weight).max() <= steps.max() / 2 * 1.0001


@pytest.mark.parametrize(("worst_db", "named"), [(24.0, False), (12.0, True)])
def test_weights_that_are_all_coarse_are_no_fault_but_one_that_stands_out_is(worst_db: float, named: bool) -> None:
    """Seven-bit or per-tensor weights lie under 30 dB everywhere."""
    every = [(f"conv{i}", worst_db if i == 2 else 25.0) for i in range(5)]
    layers = [LayerError(name, f"{name}.out", 20.0, 20.0, 0.0, weight_db, None) for name, weight_db in every]
    assert ("conv2" in guilty_layer(layers)) is named and bool(guilty_layer(layers)) is named
