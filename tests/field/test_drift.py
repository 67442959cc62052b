"""Drift: the distance by hand, no alarm without change, an alarm with one, hysteresis."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fieldkit import NAMES, profile
from scipy.stats import ks_2samp

from tsss_edge.field.drift import Drift, DriftWatch, distances, limit


def feed(watch: DriftWatch, values: np.ndarray, start: int = 0) -> list[tuple[int, bool]]:
    """Every change of state: (frame, raised)."""
    changes = []
    for n, row in enumerate(values.astype(np.float32), start=start):
        if watch.add(n, row):
            assert watch.state is not None
            changes.append((n, watch.state.raised))
    return changes


def one_sided(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    above, below = distances(np.array(ours)[:, None], np.array(theirs)[:, None])
    return float(above[0]), float(below[0])


def test_distances_by_hand() -> None:
    ours, theirs = [1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]
    assert one_sided(ours, theirs) == (0.5, 0.0)  # at 2: half of ours, none of theirs
    assert one_sided(theirs, ours) == (0.0, 0.5)
    assert one_sided(ours, ours) == (0.0, 0.0)
    assert one_sided([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]) == (0.25, 0.0)  # ties
    assert one_sided([1.0, np.nan, np.nan, 2.0], [1.0, 2.0]) == (0.0, 0.0)


def test_distances_are_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, theirs = rng.integers(0, 9, 30) / 8.0, np.sort(rng.integers(2, 12, 40) / 8.0)
        found = max(one_sided(ours.tolist(), theirs.tolist()))
        assert found == pytest.approx(ks_2samp(ours, theirs, method="asymp").statistic)


def test_the_limit_is_smirnovs() -> None:
    assert limit(100, 100, alpha=0.05) == pytest.approx(1.358 * math.sqrt(2 / 100), rel=1e-3)  # his table: 1.358


def test_no_alarm_in_an_hour_without_change() -> None:
    values = np.random.default_rng(1).uniform(0.5, 1.0, (3600, 2))
    assert feed(DriftWatch(profile(), NAMES), values) == []


def test_a_change_is_raised_named_and_cleared_when_it_is_over() -> None:
    rng, watch = np.random.default_rng(2), DriftWatch(profile(), NAMES, window=100)
    same, other = rng.uniform(0.5, 1.0, (300, 2)), rng.uniform(0.5, 1.0, (300, 2))
    other[:, 0] -= 0.2
    changes = feed(watch, np.concatenate([same, other, same, same]))
    assert [raised for _, raised in changes] == [True, False]
    assert 300 < changes[0][0] < 400 and 600 < changes[1][0] < 800


def test_the_state_names_figure_and_frames() -> None:
    rng, watch = np.random.default_rng(3), DriftWatch(profile(), NAMES, window=50)
    values = rng.uniform(0.5, 1.0, (100, 2))
    values[:, 0] -= 0.4
    values[90, 0] = 0.0
    feed(watch, values)
    state = watch.state
    assert isinstance(state, Drift) and state.raised and state.figure == "confidence"
    assert state.moved[0].now < state.moved[0].profile == pytest.approx(0.75, abs=0.03)
    assert state.examples[0] == 90
    assert state.alarms == 1


def test_frames_that_show_the_drift_are_those_in_the_tail_to_which_it_moved() -> None:
    watch = DriftWatch(profile(), NAMES, window=50)
    usual, low = np.array([0.6, 0.75], np.float32), np.array([0.4, 0.75], np.float32)
    feed(watch, np.random.default_rng(6).uniform(0.5, 1.0, (100, 2)))
    assert not watch.shows(low)  # nothing is raised
    values = np.random.default_rng(7).uniform(0.5, 1.0, (100, 2))
    values[:, 0] -= 0.3
    feed(watch, values)
    assert watch.shows(low) and not watch.shows(usual)
    assert not watch.shows(np.array([0.99, 0.75], np.float32))  # the other side


@pytest.mark.parametrize(("shift", "raised"), [(-0.4, True), (0.4, False)])
def test_neighbours_drift_only_when_they_agree_less(shift: float, raised: bool) -> None:
    watch = DriftWatch(profile(), NAMES, window=50)
    values = np.random.default_rng(4).uniform(0.5, 1.0, (100, 2))
    values[:, 1] += shift
    feed(watch, values)
    assert watch.state is not None and watch.state.raised is raised


def test_a_figure_that_most_frames_lack_is_passed_over() -> None:
    watch = DriftWatch(profile(), NAMES, window=50)
    values = np.full((100, 2), np.nan)
    values[:, 1] = np.random.default_rng(5).uniform(0.5, 1.0, 100)
    assert feed(watch, values) == []
    assert watch.state is not None and watch.state.figure == "neighbours"
