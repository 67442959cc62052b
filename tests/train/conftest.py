"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainkit import write_squares

from tsss_edge.config import TrainConfig


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set, for reading only."""
    return write_squares(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture
def config() -> TrainConfig:
    """Two epochs of three steps, one thread."""
    return TrainConfig(
        size_hw=(64, 64), epochs=2, batch=4, lr=2e-3, warmup_epochs=0.5, ema=0.5, scale_range=(0.9, 1.1), threads=1
    )
