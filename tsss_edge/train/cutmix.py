"""CutMix (arXiv 1905.04899) for segmentation: a rectangle of another picture, its targets with it.

It takes the surroundings away from an object, so that a category is not learned by what it mostly stands beside.
"""

from __future__ import annotations

import torch
from torch import Tensor

CUT = (0.2, 0.5)  # side of the rectangle, as a share of the picture's


def cut_and_mix(seed: int, step: int, x: Tensor, *targets: Tensor) -> tuple[Tensor, ...]:
    """Paste a rectangle of the next picture of the batch into each one, with all that belongs to its pixels.

    One rectangle a batch, on whole stride-8 cells, drawn from (seed, step).
    Args:    x: (N,3,H,W). targets: (N,C,h,w) each, on a grid of H/8 cells or a multiple of it.
    Returns: x and targets, in the same shapes.
    """
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    cells_h, cells_w = x.shape[-2] // 8, x.shape[-1] // 8
    low, high = CUT
    side = low + (high - low) * float(torch.rand((), generator=draw))
    height, width = max(1, round(side * cells_h)), max(1, round(side * cells_w))
    top = int(torch.randint(cells_h - height + 1, (), generator=draw))
    left = int(torch.randint(cells_w - width + 1, (), generator=draw))
    mixed = []
    for tensor in (x, *targets):
        k = tensor.shape[-1] // cells_w
        area = (..., slice(top * k, (top + height) * k), slice(left * k, (left + width) * k))
        pasted = tensor.clone()
        pasted[area] = tensor.roll(1, dims=0)[area]
        mixed.append(pasted)
    return tuple(mixed)
