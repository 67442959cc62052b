"""Muon: steps are orthogonal, small parameters take Adam's, decay is where it belongs, state survives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tsss_edge.train import optimizers
from tsss_edge.train.optimizers import MATRIX_LR, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 144), (64, 16), (48, 48)])
def test_all_directions_move_about_equally_far(shape: tuple[int, int]) -> None:
    """A matrix whose singular values spread over a factor of 30 comes out with all of them near 1."""
    rank = min(shape)
    u, v = (
        torch.linalg.qr(torch.randn(side, rank, generator=torch.Generator().manual_seed(side)))[0] for side in shape
    )
    matrix = u @ torch.diag(torch.logspace(0, -1.5, rank)) @ v.T
    got = torch.linalg.svdvals(orthogonalize(matrix))
    assert got.min() > 0.5 and got.max() < 1.25
    assert torch.trace(u.T @ orthogonalize(matrix) @ v) > 0.6 * rank  # in the matrix's own directions, not some others


@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_cpu_multiplies_bfloat16_only_if_it_can(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    """Emulated, it is 16 times as slow. What comes of bfloat16 has eight bits a value."""
    monkeypatch.setattr(optimizers, "_cpu_has_bf16", lambda: has_bf16)
    got = orthogonalize(torch.randn(8, 24, generator=torch.Generator().manual_seed(0)))
    assert got.dtype == torch.float32
    assert torch.equal(got, got.bfloat16().float()) == has_bf16


def step_once(p: Tensor, gradient: Tensor, **settings: float) -> Tensor:
    parameter = nn.Parameter(p.clone())
    parameter.grad = gradient
    Muon([parameter], **settings).step()
    return parameter.detach()


def test_a_bias_takes_adams_first_step_without_decay() -> None:
    """Adam's first step is lr * sign(gradient): from 1 with lr 0.1 to 0.9 and 1.1."""
    moved = step_once(torch.ones(2), torch.tensor([5.0, -0.01]), lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(moved, torch.tensor([0.9, 1.1]), atol=1e-4, rtol=0)


def test_a_weight_decays_by_its_own_rate() -> None:
    """A gradient of zero leaves only the decay: 1 - lr * MATRIX_LR * weight_decay."""
    moved = step_once(torch.ones(4, 4), torch.zeros(4, 4), lr=0.01, weight_decay=0.5)
    torch.testing.assert_close(moved, torch.full((4, 4), 1 - 0.01 * MATRIX_LR * 0.5))


def test_a_convolution_in_channels_last_moves_like_one_that_is_not() -> None:
    weight, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    plain = step_once(weight, gradient, lr=0.01, weight_decay=0.0)
    last = step_once(weight, gradient.to(memory_format=torch.channels_last), lr=0.01, weight_decay=0.0)
    assert torch.equal(plain, last) and not torch.equal(plain, weight)


def test_what_was_loaded_goes_on_as_what_was_saved() -> None:
    def steps(optimizer: Muon, parameters: list[nn.Parameter], seeds: range) -> None:
        for seed in seeds:
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    def fresh() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(6))]

    whole, first, second = fresh(), fresh(), fresh()
    steps(Muon(whole, lr=0.01, weight_decay=0.1), whole, range(4))
    before, after = (Muon(p, lr=0.01, weight_decay=0.1) for p in (first, second))
    steps(before, first, range(2))
    for p, q in zip(second, first, strict=True):
        p.data.copy_(q.data)
    after.load_state_dict(before.state_dict())
    steps(after, second, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(whole, second, strict=True))
