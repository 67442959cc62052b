"""Optimizers, the learning rate over time, and the averaged weights.

AdamW by default; Muon where the settings say so. The learning rate is one number, which parts of a network take a share of.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tsss_edge.config import TrainConfig
from tsss_edge.frozen import encoder_of
from tsss_edge.machine import has_bf16


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or Muon. The encoder's groups come last, where it has a learning rate of its own.

    Raises: ArtifactError: `encoder_lr` in a stage without an encoder.
    """
    learnt = [p for p in net.parameters() if p.requires_grad]
    encoder = set(encoder_of(net).parameters()) if config.encoder_lr != 1 else set()
    groups = _groups([p for p in learnt if p not in encoder], config)
    if encoder:
        groups += _groups([p for p in learnt if p in encoder], config, share=config.encoder_lr)
    if config.optimizer == "muon":
        return Muon(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)


def _groups(parameters: Sequence[nn.Parameter], config: TrainConfig, share: float = 1.0) -> list[dict[str, Any]]:
    """Matrices and others: no weight decay on biases and batch norms (arXiv 1812.01187, section 3.1)."""
    matrices, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": config.weight_decay, "share": share},
        {"params": others, "weight_decay": 0.0, "share": share},
    ]


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Of an optimizer step, from 0 on: linear warm-up, then a half cosine to zero (arXiv 1608.03983 without restarts)."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * (step / (steps_per_epoch * config.epochs))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """To every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("share", 1.0)  # groups that an older version saved have none


class Average:
    """Exponential moving average of a network's weights and statistics; what is evaluated and saved as best.pt."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards `net`; faster at first (`(1+t)/(10+t)`, as in TensorFlow's moving averages)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        ours, theirs = self.net.state_dict(), net.state_dict()
        floating = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in floating], [theirs[n] for n in floating], 1 - decay)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])


# -- Muon

MATRIX_LR = 6.0  # times the learning rate of the others, which is AdamW's (ours, measured on CamVid)
MOMENTUM = 0.9
BETAS, EPS = (0.9, 0.99), 1e-8
ITERATIONS = 4  # of Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of its polynomial, from the source above


class Muon(torch.optim.Optimizer):
    """Orthogonal steps: convolutions move along the orthogonal matrix nearest to their momentum.

    K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/. Every direction of a weight matrix moves equally
    far, so rare ones are learnt in fewer steps than AdamW needs. Parameters of two or more dimensions are matrices (rows:
    output channels); biases and batch norms take Adam's steps, without decay.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.ndim > 1:
                    lr = group["lr"] * MATRIX_LR
                    p.mul_(1 - lr * group["weight_decay"]).add_(self._orthogonal(p, p.grad), alpha=-lr)
                else:
                    p.add_(self._adam(p, p.grad), alpha=-group["lr"])

    def _orthogonal(self, p: Tensor, gradient: Tensor) -> Tensor:
        momentum: Tensor = self.state[p].setdefault("momentum", torch.zeros_like(p))
        momentum.mul_(MOMENTUM).add_(gradient)
        rows = (gradient + MOMENTUM * momentum).flatten(1)  # Nesterov
        return orthogonalize(rows).mul_(max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5).view(p.shape)

    def _adam(self, p: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state.update(steps=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
        steps, mean, square = state["steps"], state["mean"], state["square"]
        steps += 1
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        step: Tensor = mean / (1 - BETAS[0] ** steps) / ((square / (1 - BETAS[1] ** steps)).sqrt() + EPS)
        return step


def orthogonalize(matrix: Tensor) -> Tensor:
    """(R,C) -> about U V^T of its singular value decomposition, float32; singular values end within 0.7-1.2.

    Newton-Schulz iteration, much cheaper than the decomposition; in bfloat16, which it tolerates, where that is quick.
    """
    a, b, c = COEFFICIENTS
    quick = torch.bfloat16 if matrix.is_cuda or _cpu_has_bf16() else torch.float32
    x: Tensor = (matrix / (matrix.norm() + 1e-7)).to(quick)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x  # the smaller Gram matrix
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal.float()


@cache
def _cpu_has_bf16() -> bool:
    """`has_bf16`, asked once: each matrix of each step wants to know. Without it an edge-m step took 16 times as long (AVX2)."""
    return has_bf16()
