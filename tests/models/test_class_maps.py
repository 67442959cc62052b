"""Pooling inside the foreground, with hand-made maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Preprocess
from tsss_edge.errors import ArtifactError
from tsss_edge.models import build_model, load_classifier
from tsss_edge.models.segnet import Classifier, pool

CLASSES = Classes(names=("background", "cat", "dog"))


def test_pool_of_a_constant_map_is_the_constant() -> None:
    assert pool(torch.full((1, 2, 3, 3), 1.5), torch.rand(1, 1, 3, 3)).tolist() == [[pytest.approx(1.5)] * 2]


def test_pool_listens_to_the_foreground_only() -> None:
    maps = torch.zeros(1, 1, 2, 2)
    maps[..., 0, 0] = 5  # loud, in the background
    weight = torch.ones(1, 1, 2, 2)
    weight[..., 0, 0] = 0
    quiet = pool(maps, weight, sharpness=1.0)
    assert quiet.item() == pytest.approx(0, abs=0.01)  # exp(5) * 1e-4 / 3 = 0.005
    assert pool(maps, torch.ones(1, 1, 2, 2), sharpness=1.0).item() > 3


def test_pool_lies_between_mean_and_maximum() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    ones = torch.ones(1, 1, 2, 2)
    values = [pool(maps, ones, sharpness=r).item() for r in (0.01, 1.0, 100.0)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1.5, abs=0.02)
    assert values[2] == pytest.approx(3.0, abs=0.02)


def save(path: Path, stage: str) -> Checkpoint:
    meta = CheckpointMeta(stage=stage, arch="edge-s", classes=CLASSES, preprocess=Preprocess(size_hw=(64, 64)))
    net = Classifier(build_model("edge-s", num_classes=3))
    return Checkpoint.save(path, meta, net.state_dict())


def test_load_gives_the_same_maps_and_refuses_other_stages(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "c.pt", "classifier")
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        maps, scores, _ = load_classifier(checkpoint)(x)
    assert maps.shape == (1, 3, 8, 8)
    assert scores.shape == (1, 3)
    with pytest.raises(ArtifactError, match="expected a classifier"):
        load_classifier(save(tmp_path / "p.pt", "pnet"))
