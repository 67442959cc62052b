"""Gradients -> orthogonal steps: convolutions move along the orthogonal matrix nearest to their momentum.

Muon (K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/): every direction of a weight matrix moves
equally far, so rare ones are learnt in fewer steps than AdamW needs. Biases and batch norms take Adam's steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MATRIX_LR = 6.0  # times the learning rate of the others, which is AdamW's (ours, measured on CamVid)
MOMENTUM = 0.9
BETAS, EPS = (0.9, 0.99), 1e-8
ITERATIONS = 4  # of Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of its polynomial, from the source above


class Muon(torch.optim.Optimizer):
    """Parameters of two or more dimensions as matrices (rows: output channels), the others by Adam without decay."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        parameters = list(parameters)
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = [
            {"params": matrices, "lr_factor": MATRIX_LR, "weight_decay": weight_decay},
            {"params": others, "lr_factor": 1.0, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            lr = group["lr"] * group["lr_factor"]
            for p in group["params"]:
                if p.grad is not None:
                    step = self._orthogonal(p, p.grad) if p.ndim > 1 else self._adam(p, p.grad)
                    p.mul_(1 - lr * group["weight_decay"]).add_(step, alpha=-lr)

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

    Newton-Schulz iteration in bfloat16, which it tolerates; much cheaper than the decomposition.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x  # the smaller Gram matrix
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal.float()
