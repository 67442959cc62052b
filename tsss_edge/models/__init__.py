"""Architectures by name. A run's L-Net and P-Net share one."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from tsss_edge.artifacts import Checkpoint
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.models.edge import EDGE_M, EDGE_S, edge_net
from tsss_edge.models.lite import LITE0, LITE1, LITE2, PlainBlock, lite_net
from tsss_edge.models.segnet import Classifier, Heads, SegNet, network_input
from tsss_edge.models.vgg16 import vgg16_largefov

__all__ = ["Heads", "SegNet", "network_input"]

ARCHITECTURES: dict[str, Callable[..., SegNet]] = {
    "edge-s": partial(edge_net, EDGE_S),
    "edge-m": partial(edge_net, EDGE_M),
    "lite0": partial(lite_net, LITE0),
    "lite1": partial(lite_net, LITE1),
    "lite2": partial(lite_net, LITE2),
    "plain0": partial(lite_net, LITE0, block=PlainBlock),
    "vgg16-largefov": vgg16_largefov,
}


def build_model(arch: str, *, num_classes: int, objectness: bool = True) -> SegNet:
    """A network with fresh weights. `num_classes` 0 leaves the class head out (L-Net).

    Raises: ArtifactError: unknown architecture.
    """
    if arch not in ARCHITECTURES:
        raise ArtifactError(f"unknown architecture {arch!r}; choose from {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[arch](num_classes=num_classes, objectness=objectness)


def load_model(checkpoint: Checkpoint) -> SegNet:
    """The network of a checkpoint with its weights, in eval mode, on the CPU.

    Raises: ArtifactError: the weights belong to another architecture, or hold NaN.
    """
    meta = checkpoint.meta
    net = build_model(meta.arch, num_classes=0 if meta.stage in ("lnet", "distilled") else len(meta.classes))
    load_weights(net, checkpoint)
    return net.eval()


def load_weights(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Give `net` the weights of a checkpoint. Raises: ArtifactError: they are of another network, or hold NaN."""
    try:
        net.load_state_dict(checkpoint.state())
    except RuntimeError as error:
        raise ArtifactError(f"{checkpoint.path}: its weights do not fit {checkpoint.meta.arch}") from error


def load_classifier(checkpoint: Checkpoint) -> Classifier:
    """The classifier of a checkpoint, in eval mode. Raises: ArtifactError: another stage, or weights that do not fit."""
    meta = checkpoint.meta
    if meta.stage != "classifier":
        raise ArtifactError(f"{checkpoint.path}: is a {meta.stage} checkpoint; expected a classifier's")
    classifier = Classifier(build_model(meta.arch, num_classes=len(meta.classes)))
    load_weights(classifier, checkpoint)
    return classifier.eval()


def pick_device(name: str) -> torch.device:
    """ "auto" -> the GPU where there is one, else the CPU; "cuda" under torchrun is the GPU of this process.

    Raises: UnavailableError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnavailableError(f"PyTorch knows no device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("PyTorch finds no CUDA GPU on this machine; set device to cpu or auto")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device
