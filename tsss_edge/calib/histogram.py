"""Streams of values -> a histogram of their magnitudes that does not depend on order, batch size or number of workers.

`BINS` equal bins cover [0, 2^exponent). A larger value doubles the range, which adds neighbouring bins in pairs; because
bin edges are binary fractions, the result is exactly what direct counting over the final range would give.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048
LEAST_EXPONENT = -100  # values below 2^-100 are counted as 0


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
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

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
    if times >= BINS.bit_length():
        result = np.zeros(BINS, np.int64)
        result[0] = counts.sum()
        return result
    result = counts
    for _ in range(times):
        result = np.concatenate([result.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
    return result


@cache
def _counter() -> Any:
    """`count(values (N,) float32, factor, counts)`, compiled; releases the GIL so that workers count side by side."""
    from numba import njit

    @njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
    def count(values: Any, factor: Any, counts: Any) -> None:
        for value in values:
            counts[int(abs(value) * factor)] += 1

    return count
