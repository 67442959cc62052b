"""A trained network -> the inference network that is deployed: uint8 pictures in, batch norm and normalisation folded away.

The fold is exact but for rounding: batch norm in eval mode is an affine map of each channel, and `value / 255 * scale`
without mean subtraction commutes with zero padding, so both vanish into convolution weights. A mean does not commute with
padding: where the network has one (models/lite.py) it stays as one subtraction, in pixel values.
"""
# Letters: N batch, C channel, H height, W width, K class.

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tsss_edge.artifacts import Head
from tsss_edge.errors import ArtifactError
from tsss_edge.models import SegNet
from tsss_edge.models.lite import Normalize

Net = TypeVar("Net", bound=nn.Module)

STRIDE = 8  # of logits and objectness
_KINDS = {
    "to": "cast",
    "permute": "transpose",
    "interpolate": "resize",
}  # PyTorch's name of a call -> the name of its node


class FusedNet(nn.Module):
    """One encoder pass, all heads that were asked for, by output name.

    Input: (N,H,W,3) uint8 RGB. Outputs: `logits` (N,K,H/8,W/8) float32; `labels` (N,H,W) uint8, bilinear x8 with
    half-pixel centres and argmax; `objectness` (N,1,H/8,W/8) float32, a logit.
    """

    def __init__(self, net: SegNet, *, scale: float = 1.0, head: Head = "logits", objectness: bool = False) -> None:
        """Args:   net: trained, left as it is. scale: of its `Preprocess`.
        Raises: ArtifactError: `net` lacks a head that was asked for, or a batch norm cannot be folded.
        """
        super().__init__()
        if net.class_head is None:
            raise ArtifactError("an L-Net has no class output; export a P-Net or supervised checkpoint")
        if objectness and net.object_head is None:
            raise ArtifactError("this network has no objectness output; export without --objectness")
        self.net = fold(net, scale)
        self.outputs = tuple(
            name
            for name, wanted in (
                ("logits", head in ("logits", "both")),
                ("labels", head in ("labels", "both")),
                ("objectness", objectness),
            )
            if wanted
        )
        if not objectness:
            self.net.object_head = None

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = image.to(torch.float32).permute(0, 3, 1, 2)  # cast first: TensorRT refuses to transpose uint8
        heads = self.net(x)
        found = {"logits": heads.logits, "objectness": heads.objectness}
        if "labels" in self.outputs:
            wide = F.interpolate(heads.logits, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
            # Through float: TensorRT makes uint8 from float and half only (NvInfer.h, DataType::kUINT8, 8.5 to 11.1).
            found["labels"] = wide.argmax(1).to(torch.float32).to(torch.uint8)
        return {name: found[name] for name in self.outputs}


def fold(net: SegNet, scale: float) -> SegNet:
    """A copy of `net` in eval mode that takes pixel values 0-255 and has no batch norm.

    Raises: ArtifactError: a batch norm does not directly follow a convolution, or there is no convolution at all.
    """
    folded = fold_norms(net)
    first = next((m for m in folded.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ArtifactError("the network has no convolution to fold the input scale into")
    step = pixel_step(folded, scale)
    first.weight.data = (first.weight.double() * step).float()
    for normalize in _normalizations(folded):
        normalize.gain, normalize.offset = 1.0, round(normalize.offset / step, 6)
    return folded


def fold_norms(net: Net) -> Net:
    """A copy of `net` in eval mode without batch norm. Raises: ArtifactError: one does not directly follow a convolution."""
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    for sequence in [m for m in folded.modules() if isinstance(m, nn.Sequential)]:
        for (name, conv), (norm_name, norm) in list(pairwise(sequence.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(sequence, name, fold_batch_norm(conv, norm))
                setattr(sequence, norm_name, nn.Identity())
    if left := [name for name, m in folded.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]:
        raise ArtifactError(f"batch norm {left[0]} does not follow a convolution, so it cannot be folded away")
    return folded


def pixel_step(net: nn.Module, scale: float) -> float:
    """By how much what the first convolution sees grows when a pixel value (0-255) grows by one."""
    step = scale / 255
    for normalize in _normalizations(net):
        step *= normalize.gain
    return step


def _normalizations(net: nn.Module) -> list[Normalize]:
    return [m for m in net.modules() if isinstance(m, Normalize)]


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does what `conv` and then `norm` (eval mode) do; computed in float64.

    y = (conv(x) - mean) / sqrt(var + eps) * gamma + beta (arXiv 1502.03167, algorithm 2).
    """
    assert norm.running_mean is not None and norm.running_var is not None
    one = torch.ones_like(norm.running_mean)
    gamma = (norm.weight if norm.weight is not None else one).double()
    beta = (norm.bias if norm.bias is not None else 0 * one).double()
    factor = gamma / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = (conv.bias if conv.bias is not None else 0 * one).double()
    fused = copy.deepcopy(conv)
    fused.weight = nn.Parameter((conv.weight.double() * factor[:, None, None, None]).float(), requires_grad=False)
    fused.bias = nn.Parameter(((bias - norm.running_mean.double()) * factor + beta).float(), requires_grad=False)
    return fused


def layer_names(traced: fx.GraphModule) -> dict[fx.Node, str]:
    """Readable unique names of the calls of a traced network, in order.

    A convolution that is the only one of its nn.Sequential takes that Sequential's path; other calls take their module's
    path and the kind of call.
    """
    names: dict[fx.Node, str] = {}
    seen: Counter[str] = Counter()
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        name = _layer_name(node, modules).removeprefix("net.")
        seen[name] += 1
        names[node] = name if seen[name] == 1 else f"{name}.{seen[name]}"
    return names


def _layer_name(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op != "call_module":
        stack = list(node.meta.get("nn_module_stack", {}))
        kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "call")
        return ".".join([*stack[-1:], _KINDS.get(kind, kind)]).lstrip(".")
    path = str(node.target)
    parent, _, last = path.rpartition(".")
    if not last.isdigit():
        return path
    if isinstance(modules[path], nn.Conv2d):
        alone = sum(isinstance(m, nn.Conv2d) for m in modules[parent].children()) == 1
        return parent if alone else path
    return f"{parent}.{type(modules[path]).__name__.lower()}"
