"""Many times -> the three numbers that a reader wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Struct


class Percentiles(Struct, frozen=True):
    """Of single times, in milliseconds."""

    p50: float
    p95: float
    p99: float


def percentiles(times_ms: Sequence[float] | NDArray[np.floating]) -> Percentiles:
    """Linear interpolation between order statistics (NumPy's default)."""
    p50, p95, p99 = (float(v) for v in np.percentile(times_ms, [50, 95, 99]))
    return Percentiles(p50=p50, p95=p95, p99=p99)
