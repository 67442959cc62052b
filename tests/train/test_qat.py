"""Quantization-aware fine-tuning: the roundings in training are those of the INT8 graph."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import netkit
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tsss_edge.artifacts import Checkpoint, OnnxModel, Preprocess
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.models import load_model
from tsss_edge.models.fused import FusedNet
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.train import qat
from tsss_edge.train.qat import LR_SHARE, RoundedConv, Rounding, find_checkpoint, load_calibration, rounded, train_qat

KEPT = ("encoder.stages.1.1.second", "decoder.smooth.0")  # layers that stay float, one with its Add
CONFIG = TrainConfig(epochs=1, batch=2, threads=1, amp=False, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt, fused.onnx, fused.int8.onnx and a set."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = netkit.checkpoint(folder / "best.pt", spec=Preprocess(size_hw=netkit.SPEC.size_hw, scale=1.0))
    data = netkit.write_set(folder / "data", train=6)
    floating = export_onnx(checkpoint.path, folder / "fused.onnx", objectness=True)
    calibrate(floating, data, folder / "fused.int8.onnx", method="mse", options=PairOptions(float_nodes=KEPT))
    return folder


def int8_logits(path: Path, picture: np.ndarray) -> np.ndarray:
    """ONNX Runtime, each node as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": picture})[0]


def network_input(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255


def test_the_rounded_net_is_the_int8_graph(folder: Path) -> None:
    """To float32's rounding on most pictures. On the others a value lies so near a tie that two sums in another order round it
    to different steps: what follows from it differs, still far less than the float net does. (Which pictures: by processor.)"""
    model, table = load_calibration(folder / "fused.int8.onnx")
    net = load_model(find_checkpoint(model))
    quantized = rounded(load_model(find_checkpoint(model)), model, table).eval()
    errors = []
    for seed in range(12):
        picture = netkit.picture(seed)[None]
        with torch.inference_mode():
            found, floating = (n(network_input(picture)).logits.numpy() for n in (quantized, net))
        expected = int8_logits(model.path, picture)
        errors.append(np.abs(found - expected).mean() / np.abs(floating - expected).mean())
    assert np.median(errors) < 1e-4
    assert max(errors) < 0.5


def test_roundings_are_where_the_pairs_are(folder: Path) -> None:
    model, table = load_calibration(folder / "fused.int8.onnx")
    net = rounded(load_model(find_checkpoint(model)), model, table)
    nodes = onnx.load(model.path).graph.node
    activations = sum(n.op_type == "QuantizeLinear" and not n.input[0].endswith(".weight") for n in nodes)
    weights = sum(n.op_type == "QuantizeLinear" and n.input[0].endswith(".weight") for n in nodes)
    assert sum(isinstance(m, Rounding) for m in net.modules()) == activations > 10
    assert sum(isinstance(m, RoundedConv) for m in net.modules()) == weights > 10


def test_parameters_keep_their_names(folder: Path) -> None:
    model, table = load_calibration(folder / "fused.int8.onnx")
    plain = load_model(find_checkpoint(model))
    names = set(plain.state_dict())
    assert set(rounded(plain, model, table).state_dict()) == names


def test_rounded_weights_before_and_after_folding_are_the_same() -> None:
    """The batch norm's factor scales the largest weight of a channel and its steps alike."""
    net = netkit.network()
    folded = FusedNet(net).net
    plain, fused = net.encoder.stages[1][0][0], folded.encoder.stages[1][0][0]
    factor = fused.weight.abs().amax((1, 2, 3)) / plain.weight.abs().amax((1, 2, 3))
    x = torch.eye(plain.in_channels)[:, :, None, None].expand(-1, -1, 3, 3)
    a, b = (RoundedConv.like(c)(x) - (c.bias[:, None, None] if c.bias is not None else 0) for c in (plain, fused))
    torch.testing.assert_close(a.abs() * factor[:, None, None], b.abs(), rtol=1e-4, atol=1e-5)


def test_weights_of_seven_bits_are_rounded_to_them(folder: Path) -> None:
    model, table = load_calibration(folder / "fused.int8.onnx")
    seven = rounded(load_model(find_checkpoint(model)), model, msgspec.structs.replace(table, weight_bits=7))
    assert {m.levels for m in seven.modules() if isinstance(m, RoundedConv)} == {63}
    conv = torch.nn.Conv2d(16, 8, 1, bias=False)
    answers = RoundedConv.like(conv, 63)(torch.eye(16)[:, :, None, None])[:, :, 0, 0].detach()
    steps = answers / conv.weight.detach().abs().amax((1, 2, 3)) * 63
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert float(steps.abs().max()) == pytest.approx(63)


def test_gradients_pass_a_rounding_and_stop_where_it_clips() -> None:
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 5.0], requires_grad=True)
    y = Rounding(1.27)(x)
    assert y.tolist() == pytest.approx([-1.28, -0.4, 0.0, 0.7, 1.27])
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_a_run_gives_an_ordinary_checkpoint(folder: Path, tmp_path: Path) -> None:
    result = train_qat(CONFIG, folder / "data", tmp_path / "run", calib=folder / "fused.int8.onnx")
    start = Checkpoint.load(folder / "best.pt")
    assert (result.meta.arch, result.meta.preprocess) == (start.meta.arch, start.meta.preprocess)
    assert result.meta.training["lr"] == pytest.approx(CONFIG.lr * LR_SHARE) and result.meta.metrics["miou"] > 0
    before, after = start.state(), result.state()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert "encoder.stem.0.weight" in moved and set(before) == set(after)
    exported = export_onnx(result.path, tmp_path / "fused.onnx")
    assert calibrate(exported, folder / "data", tmp_path / "q.onnx").meta.calibration is not None


def test_the_rate_is_a_share_of_the_one_that_trained_the_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Checkpoint.load(folder / "best.pt")
    meta = msgspec.structs.replace(start.meta, training={"lr": 0.1, "optimizer": "muon"})
    asked: list[TrainConfig] = []
    monkeypatch.setattr(qat, "find_checkpoint", lambda model: msgspec.structs.replace(start, meta=meta))
    monkeypatch.setattr(qat, "train", lambda stage, config, out, resume: asked.append(config))
    for as_trained in (True, False):
        train_qat(CONFIG, folder / "data", tmp_path, calib=folder / "fused.int8.onnx", as_trained=as_trained)
    assert [config.optimizer for config in asked] == ["muon", CONFIG.optimizer]
    assert [config.lr for config in asked] == pytest.approx([0.1 * LR_SHARE, CONFIG.lr * LR_SHARE])


def test_a_rate_that_was_given_wins_and_another_network_is_refused(
    folder: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def spy(*_: object, as_trained: bool, **__: object) -> Checkpoint:
        asked.append(as_trained)
        return Checkpoint.load(folder / "best.pt")

    monkeypatch.setattr(qat, "train_qat", spy)
    command = ("train", "supervised", "--data", folder / "data", "--qat", folder / "fused.int8.onnx", "--out", tmp_path)
    for options in ((), ("--lr", "0.1"), ("--set", "optimizer=muon")):
        assert run(*command, *options)[0] == 0
    assert asked == [True, False, False]
    for options in (("--arch", "edge-m"), ("--size", "64")):
        code, _, err = run(*command, *options)
        assert code == 2 and "--qat goes on from" in err


# -- what does not belong together


def test_a_float_graph_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="is fp32; give the INT8 file"):
        load_calibration(folder / "fused.onnx")


def test_a_table_of_another_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("fused.int8.onnx", "fused.int8.ranges.json"):
        shutil.copy(folder / name, tmp_path / name)
    table = tmp_path / "fused.int8.ranges.json"
    sha256 = OnnxModel.load(folder / "fused.onnx").sha256
    text = re.sub(r'"digest": "\w+"', '"digest": ""', table.read_text())  # else the digest tells the change first
    table.write_text(text.replace(sha256, "0" * 64))
    with pytest.raises(ArtifactError, match=r"fused\.int8\.ranges\.json is of another graph"):
        load_calibration(tmp_path / "fused.int8.onnx")


def test_a_checkpoint_that_is_not_there_is_asked_for(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "fused.int8.onnx", tmp_path / "q.onnx")
    netkit.checkpoint(tmp_path / "best.pt", seed=9)  # another one
    with pytest.raises(ArtifactError, match=r"its checkpoint is neither in"):
        find_checkpoint(OnnxModel.load(tmp_path / "q.onnx"))
