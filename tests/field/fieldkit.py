"""Figures, frames and folders that the tests of the field share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, FieldProfile
from tsss_edge.field.collector import Collector, CollectPlan, Offered
from tsss_edge.field.figures import profile_of

CLASSES = Classes(names=("background", "cat", "dog"))
NAMES = ("confidence", "neighbours")


def profile(pictures: int = 200, seed: int = 0) -> FieldProfile:
    """Two figures, both uniform in 0.5-1."""
    rng = np.random.default_rng(seed)
    made = profile_of(NAMES, list(rng.uniform(0.5, 1.0, (pictures, 2)).astype(np.float32)))
    assert made is not None
    return made


def offered(frame: int, *, towards: int = 0, at_s: float | None = None, **changes: Any) -> Offered:
    """A frame whose features point along one axis of 16."""
    features = np.full(16, 0.01, np.float32)
    features[towards] = 1.0
    image = np.random.default_rng(frame).integers(0, 255, (32, 48, 3)).astype(np.uint8)
    labels: NDArray[np.uint8] = np.zeros((32, 48), np.uint8)
    labels[:8] = 1
    values = {"unknown": 0.0, "entropy": 0.5, **changes}
    return Offered(float(frame if at_s is None else at_s), frame, image, labels, features, **values)


def collector(root: Path, *, budget: int = 1 << 30, period_s: float = 10.0) -> Collector:
    plan = CollectPlan(root, budget, period_s)
    return Collector(plan, CLASSES, features="encoder", source="s", engine="e.xml", wait=True)
