"""CutMix (arXiv 1905.04899) for segmentation: a rectangle of another picture, its targets with it.

It takes the surroundings away from an object, so that a category is not learned by what it mostly stands beside.
"""

from __future__ import annotations

import torch
from torch import Tensor

CUT = (0.2, 0.5)  # side of the rectangle, as a share of the picture's


def cut_and_mix(x: Tensor, shares: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the next picture of the batch into each one: (N,3,H,W) and (N,K,h,w) -> the same shapes.

    One rectangle a batch, on whole stride-8 cells, drawn from (seed, step).
    """
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    cells_h, cells_w = x.shape[-2] // 8, x.shape[-1] // 8
    low, high = CUT
    side = low + (high - low) * float(torch.rand((), generator=draw))
    height, width = max(1, round(side * cells_h)), max(1, round(side * cells_w))
    top = int(torch.randint(cells_h - height + 1, (), generator=draw))
    left = int(torch.randint(cells_w - width + 1, (), generator=draw))
    mixed = []
    for tensor in (x, shares):
        k = tensor.shape[-1] // cells_w
        area = (..., slice(top * k, (top + height) * k), slice(left * k, (left + width) * k))
        pasted = tensor.clone()
        pasted[area] = tensor.roll(1, dims=0)[area]
        mixed.append(pasted)
    return mixed[0], mixed[1]
