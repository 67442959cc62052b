"""Streams of values -> a histogram of their magnitudes -> the range that INT8 shall cover: minmax, percentile, MSE, entropy.

The histogram does not depend on order, batch size or number of workers. `BINS` equal bins cover [0, 2^exponent). A larger
value doubles the range, which adds neighbouring bins in pairs. Bin edges are binary fractions, so the result is exactly
what direct counting over the final range would give.
Every method returns a positive number not above the largest magnitude seen. A tensor that was always 0 gets `DEAD_RANGE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tsss_edge.onnxgraph.view import LEVELS

Method = Literal["minmax", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)

BINS = 2048
LEAST_EXPONENT = -100  # values below 2^-100 are counted as 0
DEAD_RANGE = 1e-6  # TensorRT wants scales above 0
PERCENTILE = 99.99  # of all values, zeros included; between the 99.9 and 99.999 that peers offer
ENTROPY_QUANTA = 128  # levels that the entropy method reduces a distribution to (TensorRT's INT8 calibration, GTC 2017)


class Histogram:
    """Magnitudes of one tensor. `peak` is the exact largest one; `counts` (BINS,) int64; zeros are in bin 0."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.exponent = LEAST_EXPONENT
        self.counts = np.zeros(BINS, np.int64)

    def update(self, values: NDArray[np.float32], *, counted: bool = True) -> None:
        """Add values of any shape; `counted` False follows the peak only.

        Raises: ValueError: a value is NaN or infinite.
        """
        peak = max(float(values.max()), -float(values.min())) if values.size else 0.0
        if not math.isfinite(peak):
            raise ValueError("NaN or infinity among the values")
        self.peak = max(self.peak, peak)
        self._grow(exponent_of(peak))
        if counted:
            factor = np.float32(math.ldexp(BINS, -self.exponent)) if self.exponent > LEAST_EXPONENT else np.float32(0)
            _counter()(np.ascontiguousarray(values).reshape(-1), factor, self.counts)

    def merge(self, other: Histogram) -> None:
        """Add everything that `other` has seen."""
        self._grow(other.exponent)
        self.peak = max(self.peak, other.peak)
        self.counts += _halved(other.counts, self.exponent - other.exponent)

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _halved(self.counts, exponent - self.exponent)
            self.exponent = exponent

    @property
    def edges(self) -> NDArray[np.float64]:
        """(BINS+1,) borders of the bins."""
        return np.arange(BINS + 1) * math.ldexp(1.0, self.exponent) / BINS

    @property
    def centres(self) -> NDArray[np.float64]:
        """(BINS,) middles of the bins."""
        return (np.arange(BINS) + 0.5) * math.ldexp(1.0, self.exponent) / BINS


def exponent_of(peak: float) -> int:
    """Least e of `LEAST_EXPONENT` or more with peak < 2^e."""
    return max(math.frexp(peak)[1], LEAST_EXPONENT) if peak else LEAST_EXPONENT


def _halved(counts: NDArray[np.int64], times: int) -> NDArray[np.int64]:
    """Counts over a range that is 2^times as large."""
    for _ in range(min(times, BINS.bit_length())):  # all are in bin 0 then
        counts = np.concatenate([counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
    return counts


@cache
def _counter() -> Any:
    """`count(values (N,) float32, factor, counts)`, compiled; releases the GIL so that workers count side by side."""
    from numba import types

    from tsss_edge.kernels.jit import compiled, read, write

    @compiled(types.void(read(types.float32, 1), types.float32, write(types.int64, 1)))
    def count(values: Any, factor: Any, counts: Any) -> None:
        for value in values:
            counts[int(abs(value) * factor)] += 1

    return count


def choose_range(histogram: Histogram, method: Method) -> float:
    """The largest magnitude that gets an INT8 step of its own; larger ones are clipped to it."""
    if histogram.peak == 0:
        return DEAD_RANGE
    return max(min(_CHOOSERS[method](histogram), histogram.peak), DEAD_RANGE)


def minmax(histogram: Histogram) -> float:
    """The largest magnitude itself."""
    return histogram.peak


def percentile(histogram: Histogram, percent: float = PERCENTILE) -> float:
    """The magnitude that `percent` of all values do not exceed, linear inside a bin."""
    cumulative = np.cumsum(histogram.counts)
    wanted = percent / 100 * cumulative[-1]
    index = int(np.searchsorted(cumulative, wanted))
    before = cumulative[index] - histogram.counts[index]
    share = (wanted - before) / max(int(histogram.counts[index]), 1)
    width = histogram.edges[1]
    return float(histogram.edges[index] + share * width)


def mse(histogram: Histogram, candidates: int = 128) -> float:
    """The range with the least sum of squared differences between values and their INT8 steps; bins stand for their middles."""
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    centres = np.minimum(centres, histogram.peak)
    seen = counts > 0
    centres, counts = centres[seen], counts[seen]
    ranges = histogram.peak * (np.arange(candidates) + 1) / candidates
    steps = ranges[:, None] / LEVELS
    rounded = np.minimum(np.rint(centres / steps), LEVELS) * steps
    errors = (counts * (centres - rounded) ** 2).sum(axis=1)
    return float(ranges[int(np.argmin(errors))])


def entropy(histogram: Histogram, stride: int = 8) -> float:
    """The range whose 128-level version keeps most information: least Kullback-Leibler divergence.

    After Migacz, "8-bit inference with TensorRT" (GTC 2017): for each candidate, values beyond it are added to its last bin
    (the clipped distribution P), and Q is P without that tail reduced to 128 levels and spread again over the bins that
    are not empty. Zeros (bin 0) say nothing about the range and are left out, as TensorRT leaves them out.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = 0
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if last <= ENTROPY_QUANTA:
        return histogram.peak
    ends = np.append(np.arange(ENTROPY_QUANTA, last, stride), last)
    divergences = [_divergence(counts, int(end)) for end in ends]
    best = int(np.argmin(divergences))
    return histogram.peak if ends[best] == last else float(histogram.edges[ends[best]])


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """KL(P||Q) of clipping at bin `end`."""
    head = counts[:end]
    clipped = head.copy()
    clipped[-1] += counts[end:].sum()
    starts = np.arange(ENTROPY_QUANTA) * end // ENTROPY_QUANTA
    filled = np.add.reduceat((head > 0).astype(np.float64), starts)
    means = np.divide(np.add.reduceat(head, starts), filled, out=np.zeros_like(filled), where=filled > 0)
    spread = np.repeat(means, np.diff(np.append(starts, end))) * (head > 0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1.0)
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-12))).sum())


_CHOOSERS: dict[Method, Callable[[Histogram], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
