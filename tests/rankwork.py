"""What processes share under torchrun: labels, calibration, validation. Run in one process and in two, it must give the same.

Usage: rankwork.py FOLDER OUT, where FOLDER holds what `prepare` made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import netkit
import torch
from trainkit import STRONG, write_squares

import tsss_edge.calib.calibrate as calibration
from tsss_edge.artifacts import Checkpoint, OnnxModel
from tsss_edge.config import TrainConfig
from tsss_edge.data.voc import VocDataset
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.files import write_json
from tsss_edge.label.write import write_labels
from tsss_edge.models import load_model
from tsss_edge.onnxgraph.sessions import OnnxRuntimeCompiler
from tsss_edge.ranks import this_process
from tsss_edge.scoring import Views, object_iou
from tsss_edge.train.all import first_round
from tsss_edge.train.board import ClassValidation
from tsss_edge.train.classifier import label_accuracy


def prepare(folder: Path, config: TrainConfig) -> None:
    """A set of three batches, an L-Net and a classifier after one epoch, a float graph."""
    data = write_squares(folder / "data", train=60, val=36)
    first_round(config, data, folder / "run", strong=STRONG, source=None, resume=False)
    netkit.write_set(folder / "other", train=21, val=3)
    export_onnx(netkit.checkpoint(folder / "best.pt").path, folder / "fused.onnx")


def work(folder: Path, out: Path) -> None:
    """Everything that is shared, with its results in `out`."""
    torch.set_num_threads(1)
    write_labels(folder / "run", folder / "data", out / "labels")
    calibration.pick_compiler = OnnxRuntimeCompiler  # the same answers on every machine
    floating = OnnxModel.load(folder / "fused.onnx")
    calibration.calibrate(floating, folder / "other", out / "auto.onnx", method="auto", size=9)
    calibration.calibrate(floating, folder / "other", out / "plain.onnx", method="entropy", size=12)
    scores = validated(folder)
    if this_process().writes:
        write_json(out / "scores.json", scores)


def validated(folder: Path) -> dict[str, float]:
    """What the stages' validations say."""
    dataset, lnet = VocDataset.open(folder / "data"), Checkpoint.load(folder / "run/lnet")
    views = Views(dataset, dataset.ids("val"), lnet.meta.preprocess)
    net = load_model(lnet)
    torch.manual_seed(0)
    classes = torch.nn.Conv2d(1, len(dataset.classes), 1)

    class Guess(torch.nn.Module):
        """Classes from L-Net's objectness: bad ones, but of a network. It gives heads, or scores as a classifier does."""

        def __init__(self, *, scores: bool) -> None:
            super().__init__()
            self.net, self.head, self.scores = net, classes, scores

        def forward(self, x: torch.Tensor) -> Any:
            heads = self.net(x)
            logits = self.head(heads.objectness)
            return SimpleNamespace(scores=logits.mean(dim=(2, 3))) if self.scores else heads._replace(logits=logits)

    return {
        **ClassValidation(views)(Guess(scores=False)),
        "object_iou": object_iou(net, views),
        **label_accuracy(Guess(scores=True), views, dataset.image_labels),
    }


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
