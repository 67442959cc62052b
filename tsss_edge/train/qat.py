"""A trained checkpoint + the INT8 graph made of it -> a checkpoint that INT8 hurts less (quantization-aware fine-tuning).

The network trains with the roundings of its INT8 graph: same tensors, same ranges. The result is an ordinary checkpoint.
Gradients pass a rounding unchanged and stop where a value is clipped (arXiv 1712.05877, section 3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, fx, nn

from tsss_edge.artifacts import Checkpoint, OnnxModel, require_same_preprocess
from tsss_edge.calib.ranges import CalibTable
from tsss_edge.config import TrainConfig
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.export.onnx_export import build_graph
from tsss_edge.files import sha256_file
from tsss_edge.label.annotate import training_of
from tsss_edge.models import SegNet, load_model
from tsss_edge.models.fused import FusedNet, layer_names, pixel_step
from tsss_edge.onnxgraph.qdq import LEAST_SCALE, PairOptions, PairPlan, plan
from tsss_edge.onnxgraph.view import LEVELS, OnnxGraph
from tsss_edge.train.loop import train
from tsss_edge.train.supervised import supervised_stage

QAT_EPOCHS = 4  # by default: roundings are learnt fast, and longer training would be training, not repair (ours)
LR_SHARE = 0.05  # of the learning rate that trained the network (ours)


def train_qat(
    config: TrainConfig, data: Path, out: Path, *, calib: Path, as_trained: bool = False, resume: bool = False
) -> Checkpoint:
    """Fine-tune on the masks of all categories with INT8 roundings; "val" chooses best.pt by the mIoU of the rounded net.

    Args:    config: architecture and input are the checkpoint's, the learning rate is `LR_SHARE` of the config's.
             as_trained: optimizer and learning rate are those that the checkpoint says it was trained with, not the config's.
             calib: INT8 ONNX file by `calibrate`, with its `.ranges.json`; its checkpoint is found by hash beside it.
    Raises:  ArtifactError: not an INT8 graph of ours, its table or checkpoint is missing. DataError: unusable data set.
    """
    model, table = load_calibration(calib)
    start = find_checkpoint(model)
    rate = training_of(start) if as_trained else config
    config = msgspec.structs.replace(
        config,
        arch=start.meta.arch,
        size_hw=start.meta.preprocess.size_hw,
        fit=start.meta.preprocess.fit,
        optimizer=rate.optimizer,
        lr=rate.lr * LR_SHARE,
    )
    require_same_preprocess(config.preprocess, start.meta.preprocess, str(start.path))
    dataset = VocDataset.open(data)
    if dataset.classes != start.meta.classes:
        raise ArtifactError(f"{start.path}: was trained for other classes than {data}; fine-tune on its own set")
    stage = supervised_stage(config, dataset, rounded(load_model(start), model, table))
    return train(stage, config, out, resume=resume)


def load_calibration(path: Path) -> tuple[OnnxModel, CalibTable]:
    """An INT8 graph and its ranges. Raises: ArtifactError: one is missing, or they do not belong together."""
    model = OnnxModel.load(path)
    if model.meta.calibration is None:
        raise ArtifactError(f"{path}: is {model.meta.precision}; give the INT8 file that `tsss-edge calibrate` writes")
    table = CalibTable.load(path.with_suffix(".ranges.json"))
    if table.onnx_sha256 != model.meta.calibration.onnx_sha256:
        raise ArtifactError(f"{path}: {path.with_suffix('.ranges.json').name} is of another graph; calibrate again")
    return model, table


def find_checkpoint(model: OnnxModel) -> Checkpoint:
    """The checkpoint a graph was exported from: a `.pt` with its hash, in the graph's folder or the one above."""
    folder = model.path.resolve().parent
    for path in (*sorted(folder.glob("*.pt")), *sorted(folder.parent.glob("*.pt"))):
        if sha256_file(path) == model.meta.checkpoint_sha256:
            return Checkpoint.load(path)
    raise ArtifactError(f"{model.path}: its checkpoint is neither in {folder} nor above; copy it there")


def rounded(net: SegNet, model: OnnxModel, table: CalibTable) -> fx.GraphModule:
    """`net` with the roundings of its INT8 graph; the same parameters under the same names.

    Weights are rounded before the batch norm's factor is folded in. That is the same: a factor of an output channel
    scales its largest weight, and so its steps, alike.
    """
    scale = model.meta.preprocess.scale
    fused = FusedNet(net, scale=scale, head=model.meta.head, objectness=model.meta.objectness)
    graph = build_graph(fused, model.meta, 1)
    options = PairOptions(float_nodes=model.meta.float_nodes, weight_bits=table.weight_bits)
    decided = plan(graph, options)
    if missing := [t for t in decided.activations if t not in table.ranges]:
        raise ArtifactError(f"{model.path}: its table has no range for {missing[0]}; calibrate again")
    lookup = OnnxGraph(graph)
    ranges = {
        t: table.ranges[t] * (pixel_step(net, scale) if lookup.is_picture(t) else 1.0) for t in decided.activations
    }
    sources = {(node.name, i): node.input[i] for node in lookup.nodes for i in range(len(node.input))}
    return _with_roundings(net, decided, ranges, sources, options.weight_levels)


def _with_roundings(
    net: SegNet, decided: PairPlan, ranges: dict[str, float], sources: dict[tuple[str, int], str], weight_levels: int
) -> fx.GraphModule:
    traced = fx.symbolic_trace(net)
    by_name = {name: node for node, name in layer_names(traced).items()}
    made: dict[str, fx.Node] = {}
    for name, index in decided.inputs:
        tensor, user = sources[name, index], by_name[name]
        if tensor not in made:
            made[tensor] = _round_after(traced, user.args[index], f"round_{len(made)}", ranges[tensor])
        user.update_arg(index, made[tensor])
    for name in decided.weights:
        path = str(by_name[name].target)
        traced.set_submodule(path, RoundedConv.like(traced.get_submodule(path), weight_levels))
    traced.recompile()
    return traced


def _round_after(traced: fx.GraphModule, source: Any, name: str, limit: float) -> fx.Node:
    assert isinstance(source, fx.Node)
    traced.add_submodule(name, Rounding(limit))
    with traced.graph.inserting_after(source):
        return traced.graph.call_module(name, (source,))


class Rounding(nn.Module):
    """Quantize and dequantize an activation, symmetric INT8; no parameters, so checkpoints do not change."""

    def __init__(self, limit: float) -> None:
        """Args: limit: the magnitude that becomes 127."""
        super().__init__()
        self.step = limit / LEVELS

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.fake_quantize_per_tensor_affine(x.float(), self.step, 0, -LEVELS - 1, LEVELS)
        return result


class RoundedConv(nn.Conv2d):
    """A convolution whose weight is rounded to INT8, one step an output channel; `levels` steps on each side."""

    levels = LEVELS

    @classmethod
    def like(cls, conv: nn.Module, levels: int = LEVELS) -> RoundedConv:
        """Shares the parameters of `conv`."""
        assert isinstance(conv, nn.Conv2d)
        shape: dict[str, Any] = {
            name: getattr(conv, name)
            for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        }
        twin = cls(**shape, bias=conv.bias is not None, device="meta")
        twin.weight, twin.bias, twin.levels = conv.weight, conv.bias, levels
        return twin

    def forward(self, x: Tensor) -> Tensor:
        steps = (self.weight.detach().abs().amax((1, 2, 3)) / self.levels).clamp_min(LEAST_SCALE)
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(self.weight, steps, zeros, 0, -self.levels, self.levels)
        result: Tensor = self._conv_forward(x, weight, self.bias)
        return result
