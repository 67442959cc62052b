"""The INT8 file for ONNX Runtime: unsigned steps over the same ranges, few nodes left to run, no engine made of it."""

from __future__ import annotations

from pathlib import Path

import netkit
import numpy as np
import onnx
import onnxruntime
import pytest

from tsss_edge.artifacts import OnnxModel
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError
from tsss_edge.export.onnx_export import EngineSources, export_onnx
from tsss_edge.onnxgraph.ort_pairs import steps
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.onnxgraph.sessions import run_tensors
from tsss_edge.onnxgraph.view import OnnxGraph


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxModel]:
    """The float file, the INT8 file for all and the one for ONNX Runtime, with weights on which no processor saturates."""
    folder = tmp_path_factory.mktemp("run")
    floating = export_onnx(netkit.checkpoint(folder / "best.pt").path, folder / "fused.onnx")
    data, options = netkit.write_set(folder / "set", train=4), PairOptions(weight_bits=7)
    made = {
        target: calibrate(floating, data, folder / f"{target}.int8.onnx", size=4, options=options, target=target)  # type: ignore[arg-type]
        for target in ("any", "ort")
    }
    return {"float": floating, **made}


def test_ranges_are_the_file_s_own(files: dict[str, OnnxModel]) -> None:
    signed, unsigned = OnnxGraph(files["any"].graph), OnnxGraph(files["ort"].graph)
    scales, new = signed.activation_scales(), unsigned.activation_scales()
    for tensor, scale in scales.items():
        wanted = scale * 127 / 255 if signed.never_negative(tensor) else scale
        assert new[tensor] == pytest.approx(wanted)
    added = set(new) - set(scales)
    assert "encoder.stages.1.1.second" in added, "the branch of an Add"
    zeros = {
        unsigned.weight(n.input[2]).item()
        for n in unsigned.nodes
        if n.op_type == "QuantizeLinear" and n.input[0] in new
    }
    assert zeros == {0, 128}


def test_both_forms_of_a_range() -> None:
    assert steps(5.1, never_negative=True) == (np.float32(0.02), 0)
    assert steps(1.27, never_negative=False) == (np.float32(0.01), 128)


def test_its_answers_are_nearer_to_the_float_network(files: dict[str, OnnxModel]) -> None:
    runs = {name: run_tensors(model.graph, ["logits"], fused=True) for name, model in files.items()}
    errors: dict[str, list[float]] = {"any": [], "ort": []}
    for seed in range(6):
        answers = {name: np.array(run(netkit.picture(seed)[None])["logits"]) for name, run in runs.items()}
        for name, found in errors.items():
            found.append(float(np.abs(answers[name] - answers["float"]).mean()))
    assert np.mean(errors["ort"]) < np.mean(errors["any"])


def test_onnx_runtime_runs_convolutions_and_sums_in_int8(files: dict[str, OnnxModel], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "run.onnx"), 3
    onnxruntime.InferenceSession(str(files["ort"].path), options, providers=["CPUExecutionProvider"])
    # float: the classifier, and the layer before a Resize
    kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert kinds.count("QLinearConv") > 15 and kinds.count("QLinearAdd") >= 5 and kinds.count("Conv") == 2


def test_no_engine_is_made_of_it(files: dict[str, OnnxModel]) -> None:
    record = files["ort"].meta.calibration
    assert record is not None and record.pairs == "unsigned"
    with pytest.raises(ArtifactError, match="for ONNX Runtime alone; calibrate again without --target ort"):
        EngineSources(files["ort"], load_target("cpu"))
    twin = EngineSources(files["float"], load_target("cpu")).twin
    assert twin is not None and twin.path.name == "any.int8.onnx"
    twin.path.rename(twin.path.with_suffix(".away"))
    assert EngineSources(files["float"], load_target("cpu")).twin is None
    twin.path.with_suffix(".away").rename(twin.path)
