"""The learning rate over time and by part of a network; the averaged weights."""

from __future__ import annotations

import pytest
import torch

from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.models import build_model
from tsss_edge.train.optimizers import Average, learning_rate, make_optimizer, set_learning_rate


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=1.0)
    rates = [learning_rate(config, step, 10) for step in (0, 4, 9, 50, 99)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[1] == pytest.approx(0.5, abs=0.01)
    assert rates[3] == pytest.approx(0.5)
    assert rates[4] < 1e-3
    assert rates[2] == max(rates)


def test_average_moves_by_one_minus_decay() -> None:
    net = torch.nn.Linear(1, 1)
    average = Average(net, 0.9)
    with torch.no_grad():
        net.weight += 1
    before = average.net.weight.item()
    average.update(net, step=10_000)
    assert average.net.weight.item() == pytest.approx(before + 0.1, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_encoder_takes_its_share_of_each_step(optimizer: str) -> None:
    """Same network, same gradients: with a tenth of the rate every tensor of the encoder moves a tenth as far, the others as before."""
    moved = {}
    for share in (1.0, 0.1):
        torch.manual_seed(0)
        net = build_model("edge-s", num_classes=3)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        config = TrainConfig(optimizer=optimizer, weight_decay=0.0, encoder_lr=share)  # type: ignore[arg-type]
        step = make_optimizer(net, config)
        for n, p in enumerate(net.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
        set_learning_rate(step, 0.01)
        step.step()
        moved[share] = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    for name, whole in moved[1.0].items():
        share = 0.1 if name.startswith("encoder.") else 1.0
        torch.testing.assert_close(moved[0.1][name], share * whole, atol=2e-6, rtol=0, msg=name)
        assert whole.abs().max() > 1e-3, name


def test_frozen_stages_are_in_no_group() -> None:
    net = build_model("edge-s", num_classes=3)
    net.encoder.requires_grad_(False)
    optimizer = make_optimizer(net, TrainConfig(encoder_lr=0.1))
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(given) == sum(p.requires_grad for p in net.parameters())


def test_a_stage_without_an_encoder_takes_no_rate_for_it() -> None:
    with pytest.raises(ArtifactError, match="encoder_lr = 1"):
        make_optimizer(torch.nn.Linear(2, 2), TrainConfig(encoder_lr=0.5))


def test_groups_of_an_older_run_take_the_whole_rate() -> None:
    """Their saved state names no share."""
    optimizer = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]
