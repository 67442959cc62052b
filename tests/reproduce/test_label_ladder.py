"""The rungs on hand-made evidence: what is taken from the truth and what is not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from trainkit import STRONG

from tsss_edge.artifacts import Checkpoint, Preprocess
from tsss_edge.config import TrainConfig
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.label.annotate import Evidence, LabelConfig
from tsss_edge.reproduce.scores import Rungs, ladder
from tsss_edge.scoring import Views
from tsss_edge.train.lnet import train_lnet


def test_without_foreground_only_the_true_one_helps(squares: Path) -> None:
    dataset = VocDataset.open(squares)
    ids = [i for i in dataset.ids("train") if dataset.image_labels(i) == {3}]
    count = Rungs(Views(dataset, ids, Preprocess(size_hw=(64, 64))), LabelConfig())
    blind = Evidence(
        objectness=np.zeros((8, 8), np.float32),
        maps=np.zeros((4, 8, 8), np.float32),
        features=np.ones((4, 8, 8), np.float32),
        colors=np.zeros((3, 8, 8), np.float32),
    )
    for image_id in ids:
        count.add(image_id, blind)
    result = count.result()
    assert result.images == len(ids) > 0
    assert (result.maps_in_true_foreground, result.diffusion_in_true_foreground) == (
        100,
        100,
    )  # one category: no choice
    assert result.object_iou == 0
    assert result.lw < 50  # everything is background


def test_it_says_what_is_missing(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    train_lnet(config, squares, tmp_path / "run", strong=STRONG)
    with pytest.raises(ArtifactError, match="no classifier"):
        ladder(tmp_path / "run", squares)
    lnet = Checkpoint.load(tmp_path / "run")
    Checkpoint.save(lnet.path, msgspec.structs.replace(lnet.meta, strong=("red", "green", "blue")), lnet.state())
    with pytest.raises(DataError, match="no weak image"):
        ladder(tmp_path / "run", squares)
