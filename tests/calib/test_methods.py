"""Four ways to choose a range, each beside a slow or hand-made answer."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tsss_edge.calib.methods import (
    DEAD_RANGE,
    ENTROPY_QUANTA,
    METHODS,
    Histogram,
    Method,
    choose_range,
    entropy,
    minmax,
    mse,
    percentile,
)


def of(values: NDArray[np.floating] | list[float]) -> Histogram:
    histogram = Histogram()
    histogram.update(np.asarray(values, np.float32))
    return histogram


def long_tail(seed: int = 0) -> NDArray[np.float32]:
    """A million half-normal values below 4, and one far outlier."""
    values = np.abs(np.random.default_rng(seed).normal(0, 1, 1_000_000))
    return np.append(np.minimum(values, 4.0), 20.0).astype(np.float32)


def test_minmax_is_the_peak() -> None:
    assert minmax(of([1.0, -3.0, 2.0])) == 3.0


def test_percentile_by_hand() -> None:
    """Magnitudes 0.5/1024, 1.5/1024, ...: one in each of the lower 1024 bins; half of them lie below 0.5."""
    histogram = of((np.arange(1024) + 0.5) / 1024)
    assert percentile(histogram, 50) == pytest.approx(0.5)
    assert percentile(histogram, 99) == pytest.approx(0.99, abs=1e-3)


def test_percentile_counts_zeros_and_drops_the_outlier() -> None:
    values = np.append(np.zeros(999_000), np.full(1000, 1.0)).astype(np.float32)
    assert percentile(of(values)) == pytest.approx(1.0, abs=2e-3)
    values = np.append(np.ones(99_999), 64.0).astype(np.float32)
    assert percentile(of(values)) < 1.1


def slow_mse(values: NDArray[np.float32], limit: float) -> float:
    step = limit / 127
    x = values.astype(np.float64)
    return float(((x - np.clip(np.round(x / step), -127, 127) * step) ** 2).sum())


def test_mse_has_the_least_squared_error() -> None:
    """Of all 128 candidates, up to what the bins blur."""
    values = np.abs(np.random.default_rng(1).laplace(0, 1, 50_000)).astype(np.float32)
    chosen = mse(of(values))
    candidates = values.max() * np.arange(1, 129) / 128
    least = min(slow_mse(values, float(c)) for c in candidates)
    assert slow_mse(values, chosen) <= 1.01 * least
    assert chosen < 0.95 * values.max()  # clipping pays on this tail


def test_mse_keeps_what_is_evenly_spread() -> None:
    assert mse(of(np.linspace(0, 8, 100_001))) == pytest.approx(8.0, rel=0.02)


def slow_entropy(histogram: Histogram, stride: int = 8) -> float:
    """Migacz' pseudo-code of 2017, loop by loop."""
    counts = histogram.counts.astype(float).copy()
    counts[0] = 0
    last = int(np.flatnonzero(counts)[-1]) + 1
    best, best_end = np.inf, last
    for end in [*range(ENTROPY_QUANTA, last, stride), last]:
        p = counts[:end].copy()
        p[-1] += counts[end:].sum()
        q = np.zeros(end)
        starts = [i * end // ENTROPY_QUANTA for i in range(ENTROPY_QUANTA)] + [end]
        for a, b in pairwise(starts):
            filled = [i for i in range(a, b) if counts[i] > 0]
            for i in filled:
                q[i] = counts[a:b].sum() / len(filled)
        p, q = p / p.sum(), q / max(q.sum(), 1.0)
        divergence = sum(p[i] * np.log(p[i] / max(q[i], 1e-12)) for i in range(end) if p[i] > 0)
        if divergence < best:
            best, best_end = divergence, end
    return histogram.peak if best_end == last else float(histogram.edges[best_end])


@pytest.mark.parametrize(("seed", "zeros"), [(0, 0), (1, 0), (2, 200_000)])
def test_entropy_is_the_slow_loop(seed: int, zeros: int) -> None:
    """The many zeros behind a ReLU say nothing about the range."""
    values = np.append(np.random.default_rng(seed).laplace(0, 1, 30_000), np.zeros(zeros)).astype(np.float32)
    assert entropy(of(values)) == pytest.approx(slow_entropy(of(values)), rel=1e-12)


def test_entropy_of_few_bins_is_the_peak() -> None:
    assert entropy(of([0.0, 0.001, 0.002, 0.0])) == pytest.approx(0.002)


def test_all_but_minmax_cut_an_outlier() -> None:
    histogram = of(long_tail())
    chosen = {m: choose_range(histogram, m) for m in METHODS}
    assert chosen["minmax"] == 20.0
    assert all(3.0 < chosen[m] < 12 for m in METHODS if m != "minmax"), chosen


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), method=st.sampled_from(METHODS))
def test_a_range_is_positive_and_not_above_the_peak(values: list[float], method: Method) -> None:
    histogram = of(values)
    chosen = choose_range(histogram, method)
    assert DEAD_RANGE <= chosen <= max(histogram.peak, DEAD_RANGE)


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_tensor_gets_a_range(method: Method) -> None:
    assert choose_range(of(np.zeros(10)), method) == DEAD_RANGE


@pytest.mark.parametrize("method", METHODS)
def test_twice_the_values_give_twice_the_range(method: Method) -> None:
    values = long_tail(3)
    assert choose_range(of(2 * values), method) == pytest.approx(2 * choose_range(of(values), method), rel=1e-9)
