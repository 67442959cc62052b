"""The networks of the study by name, made known to `train`, and how each becomes a float ONNX artifact."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor, nn

import tsss_edge
from front.light import BiSeNetV2, FastScnn, PpLiteSegT
from front.two_branches import Ddrnet23Slim, PidnetS
from front.variants import VARIANTS
from tsss_edge.artifacts import Checkpoint, OnnxModel
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.models import ARCHITECTURES, load_model
from tsss_edge.models.segnet import SegNet

Body = type[Ddrnet23Slim] | type[PidnetS] | type[PpLiteSegT] | type[BiSeNetV2] | type[FastScnn]

OTHERS: dict[str, Body] = {
    "ddrnet-23-slim": Ddrnet23Slim,
    "pidnet-s": PidnetS,
    "pp-liteseg-t": PpLiteSegT,
    "bisenetv2": BiSeNetV2,
    "fast-scnn": FastScnn,
}
OURS = ("edge-s", "edge-m", "lite0")
PRETRAINED = ("lite0",)  # starts from ImageNet weights, its stages up to stride 16 as they are


PAPERS = {
    "edge-s": "ours",
    "edge-m": "ours",
    "lite0": "arXiv 1905.11946, our decoder",
    "ddrnet-23-slim": "arXiv 2101.06085",
    "pidnet-s": "arXiv 2206.02066",
    "pp-liteseg-t": "arXiv 2204.02681",
    "bisenetv2": "arXiv 2004.02147",
    "fast-scnn": "arXiv 1902.04502",
    "edge-s-s2d2": "ours, space-to-depth as arXiv 2003.13630",
    "edge-s-s2d4": "ours, space-to-depth as arXiv 2003.13630",
    "edge-s-pyramid": "ours, pyramid as arXiv 1612.01105",
}


def segmentation_net(body: Body, *, num_classes: int, objectness: bool = True) -> SegNet:
    """A body that ends at stride 8, with the heads of every network of ours."""
    return SegNet(body(), nn.Identity(), body.channels, num_classes=num_classes, objectness=objectness)


def register() -> None:
    """Make the other networks architectures of this process, so that `train_supervised` and `load_model` know them."""
    ARCHITECTURES.update({name: partial(segmentation_net, body) for name, body in OTHERS.items()} | VARIANTS)


class ClassLogits(nn.Module):
    """A network's class logits alone, as a foreign module gives them."""

    def __init__(self, net: SegNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).logits
        return logits


def float_graph(checkpoint: Checkpoint, out: Path) -> OnnxModel:
    """Ours by `export`, the others by `import`, as a user would bring them."""
    if checkpoint.meta.arch in OURS:
        return export_onnx(checkpoint, out)
    size_hw = checkpoint.meta.preprocess.size_hw
    tsss_edge.import_model(ClassLogits(load_model(checkpoint)), out, classes=checkpoint.meta.classes, example=size_hw)
    return OnnxModel.load(out)
