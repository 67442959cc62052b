"""Histograms of magnitudes: what they hold depends on the values alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsss_edge.calib.methods import BINS, LEAST_EXPONENT, Histogram, exponent_of

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def of(chunks: Sequence[Sequence[float]]) -> Histogram:
    histogram = Histogram()
    for chunk in chunks:
        histogram.update(np.array(chunk, np.float32))
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return a.peak == b.peak and a.exponent == b.exponent and np.array_equal(a.counts, b.counts)


def test_by_hand() -> None:
    """Magnitudes 0, 0.25, 1 and 3 in 2048 bins over [0, 4): bins 0, 128, 512, 1536."""
    histogram = of([[0.0, -0.25, 1.0], [-3.0]])
    assert (histogram.peak, histogram.exponent, histogram.counts.sum()) == (3.0, 2, 4)
    assert {int(b): int(histogram.counts[b]) for b in np.flatnonzero(histogram.counts)} == {
        0: 1,
        128: 1,
        512: 1,
        1536: 1,
    }
    assert histogram.edges[[0, 1, BINS]].tolist() == [0.0, 4 / BINS, 4.0]
    assert histogram.centres[0] == 2 / BINS


@settings(max_examples=200, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=40), data=st.data())
def test_order_and_chunks_do_not_matter(values: list[float], data: st.DataObject) -> None:
    mixed = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    chunks = [mixed[a:b] for a, b in zip([0, *cuts], [*cuts, len(mixed)], strict=True)]
    assert same(of([values]), of(chunks))


@settings(max_examples=200, deadline=None)
@given(a=st.lists(FLOATS, max_size=20), b=st.lists(FLOATS, max_size=20))
def test_merging_is_counting_together(a: list[float], b: list[float]) -> None:
    for first, second in ((a, b), (b, a)):
        merged = of([first])
        merged.merge(of([second]))
        assert same(merged, of([a + b]))


@settings(max_examples=100, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=40))
def test_counts_are_those_of_the_final_range(values: list[float]) -> None:
    """Growing in steps gives what counting over the last range at once gives."""
    histogram = of([[v] for v in values])
    magnitudes = np.abs(np.array(values, np.float32)).astype(np.float64)
    bins = (magnitudes * math.ldexp(BINS, -histogram.exponent)).astype(int)
    if histogram.exponent == LEAST_EXPONENT:
        bins[:] = 0
    assert np.array_equal(histogram.counts, np.bincount(bins, minlength=BINS))
    assert histogram.peak == magnitudes.max()


def test_memory_does_not_grow() -> None:
    histogram = Histogram()
    sizes = set()
    for i in range(50):
        histogram.update(np.random.default_rng(i).normal(0, 2.0**i, 1000).astype(np.float32))
        sizes.add(histogram.counts.nbytes)
    assert sizes == {BINS * 8} and histogram.counts.sum() == 50_000


def test_peak_alone_is_followed_without_counting() -> None:
    histogram = Histogram()
    histogram.update(np.array([1.0, -7.0], np.float32), counted=False)
    assert histogram.peak == 7.0 and histogram.counts.sum() == 0


def test_an_empty_array_changes_nothing() -> None:
    histogram = of([[2.0], []])
    assert same(histogram, of([[2.0]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        of([[1.0, bad, 2.0]])


@pytest.mark.parametrize(
    ("peak", "exponent"), [(0.0, LEAST_EXPONENT), (0.5, 0), (1.0, 1), (1.5, 1), (1e-40, LEAST_EXPONENT)]
)
def test_exponent(peak: float, exponent: int) -> None:
    assert exponent_of(peak) == exponent
