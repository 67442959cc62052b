"""Architectures by name. A run's L-Net and P-Net share one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tsss_edge.artifacts import Checkpoint
from tsss_edge.errors import ArtifactError
from tsss_edge.models.edge import EDGE_M, EDGE_S, edge_net
from tsss_edge.models.lite import LITE0, LITE1, LITE2, lite_net
from tsss_edge.models.segnet import Heads, SegNet
from tsss_edge.models.vgg16 import vgg16_largefov

__all__ = ["ARCHITECTURES", "Heads", "SegNet", "build_model", "load_model"]

ARCHITECTURES: dict[str, Callable[..., SegNet]] = {
    "edge-s": partial(edge_net, EDGE_S),
    "edge-m": partial(edge_net, EDGE_M),
    "lite0": partial(lite_net, LITE0),
    "lite1": partial(lite_net, LITE1),
    "lite2": partial(lite_net, LITE2),
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
    num_classes = 0 if meta.stage == "lnet" else len(meta.classes)
    net = build_model(meta.arch, num_classes=num_classes)
    try:
        net.load_state_dict(checkpoint.state())
    except RuntimeError as error:
        raise ArtifactError(
            f"{checkpoint.path}: its weights do not fit architecture {meta.arch}; use its own --arch"
        ) from error
    return net.eval()
