"""CutMix on hand-made tensors, and as a switch of a supervised network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trainkit import same_weights

from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.train.losses import cut_and_mix
from tsss_edge.train.supervised import train_supervised


def test_cutmix_pastes_the_same_rectangle_of_the_neighbour_into_picture_and_target() -> None:
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 64, 64).contiguous()  # picture i is i everywhere
    shares = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 4, 16, 16).contiguous()  # cells of 4 pixels
    mixed, targets = cut_and_mix(0, 3, x, shares)
    assert 0 < mixed[0].mean() < 0.5
    torch.testing.assert_close(mixed[:, :1, ::4, ::4], targets[:, :1], rtol=0, atol=0)
    torch.testing.assert_close(mixed[0] + mixed[1], torch.ones(3, 64, 64), rtol=0, atol=0)
    again, _ = cut_and_mix(0, 3, x, shares)
    assert torch.equal(mixed, again)


def test_a_supervised_network_learns_with_cutmix_and_goes_on_only_with_it(squares: Path, tmp_path: Path) -> None:
    config = TrainConfig(size_hw=(64, 64), epochs=1, batch=4, threads=1)
    plain = train_supervised(config, squares, tmp_path / "plain")
    mixed = train_supervised(config, squares, tmp_path / "mixed", cutmix=True)
    assert not same_weights(plain.path, mixed.path)
    with pytest.raises(ArtifactError, match="switches"):
        train_supervised(config, squares, tmp_path / "mixed", resume=True)
