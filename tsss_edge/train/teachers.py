"""Trained networks whose answers a supervised network learns beside its masks.

Distillation of answers (Hinton and others, arXiv 1503.02531) cell by cell: a mask names one class, a teacher says how much of
the others it sees, and it says so beyond the masks too. Of several teachers the mean of their probabilities counts.
"""
# Letters: N batch, K class, H, W network input, h = H/8, w = W/8.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tsss_edge.artifacts import Checkpoint, Classes
from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.models import SegNet, load_model, pick_device

ANSWERS_WEIGHT = 1.0  # beside the cross-entropy of the masks


class TeacherNets:
    """Networks of the same classes and input values, in eval mode, where the student is trained."""

    def __init__(self, nets: Sequence[SegNet]) -> None:
        self._nets = [net.eval().requires_grad_(False) for net in nets]

    @classmethod
    def of(cls, config: TrainConfig, classes: Classes) -> TeacherNets | None:
        """Those of the settings, None without any.

        Raises: ArtifactError: no such run, one without classes, or with others, or that sees other input values.
        """
        found = [Checkpoint.load(Path(run)) for run in config.teachers]
        for checkpoint in found:
            meta = checkpoint.meta
            if meta.stage not in ("supervised", "pnet") or meta.classes != classes:
                raise ArtifactError(
                    f"{checkpoint.path}: a teacher must be a supervised network or P-Net of the classes "
                    f"{', '.join(classes.names)}; this is a {meta.stage} of {', '.join(meta.classes.names)}"
                )
            if meta.preprocess.scale != config.preprocess.scale:
                raise ArtifactError(
                    f"{checkpoint.path}: sees values times {meta.preprocess.scale:g}, this run times "
                    f"{config.preprocess.scale:g}; a teacher must see what the student sees"
                )
        device = pick_device(config.device)
        return cls([load_model(c).to(device) for c in found]) if found else None

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """(N,3,H,W) network input -> (N,K,h,w) mean probabilities, float32."""
        return torch.stack([net(x)[0].float().softmax(dim=1) for net in self._nets]).mean(dim=0)


def answers_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's (N,K,h,w) from the teachers' probabilities, a mean over cells; 0 when equal."""
    divergence = F.kl_div(F.log_softmax(logits.float(), dim=1), answers, reduction="none")
    return divergence.sum(dim=1).mean()
