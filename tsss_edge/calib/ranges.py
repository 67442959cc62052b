"""Float graph + pictures -> the magnitudes of its activations -> CalibTable: the range of each tensor, as readable JSON.

Pictures go one by one through ONNX Runtime with the wanted tensors as extra outputs. One worker a core, each with a
histogram of its own for each tensor; histograms add up exactly, so order, batch size and number of workers do not matter,
and memory does not grow with the number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Struct
from tsss_edge.calib.methods import Histogram, Method, choose_range
from tsss_edge.errors import ArtifactError
from tsss_edge.machine import usable_cores
from tsss_edge.onnxgraph.sessions import open_session, with_batch
from tsss_edge.ranks import gathered, part_of
from tsss_edge.seals import read_sealed

OTHERS = 32  # pictures
MOST_WORKERS = 8  # each holds the activations of one picture
Histograms = dict[str, Histogram]


class CalibTable(Struct, frozen=True):
    """Ranges by tensor, and what they were measured on. A value x becomes round(x * 127 / range), clipped."""

    method: Method
    images: int
    onnx_sha256: str  # the float graph
    preprocess: str  # hash
    ranges: dict[str, float]  # in the graph's order
    peaks: dict[str, float]  # largest magnitude seen, for comparison
    others: dict[str, float] = msgspec.field(
        default_factory=dict
    )  # the same of float tensors that never get a pair, on the first `OTHERS` pictures
    weight_bits: int = 8  # of the weights in the INT8 file beside it; ranges do not depend on it
    digest: str = ""  # over all other fields

    @classmethod
    def load(cls, path: Path) -> CalibTable:
        """Raises: ArtifactError: missing, damaged, or a range that is no positive number."""
        table = read_sealed(path, cls)
        if bad := [t for t, r in table.ranges.items() if not (np.isfinite(r) and r > 0)]:
            raise ArtifactError(f"{path}: the range of {bad[0]} is {table.ranges[bad[0]]}; calibrate again")
        return table


def make_table(
    histograms: Histograms, method: Method, *, images: int, onnx_sha256: str, preprocess: str, exact: dict[str, float]
) -> CalibTable:
    """Choose the range of every tensor; `exact` ranges are known without looking (the picture itself: 255)."""
    ranges = {t: exact[t] if t in exact else choose_range(h, method) for t, h in histograms.items()}
    peaks = {t: h.peak for t, h in histograms.items()}
    return CalibTable(
        method=method, images=images, onnx_sha256=onnx_sha256, preprocess=preprocess, ranges=ranges, peaks=peaks
    )


def collect(
    model: Any,
    tensors: Sequence[str],
    pictures: Sequence[Callable[[], NDArray[np.uint8]]],
    *,
    counted: bool = True,
    workers: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Histograms:
    """Magnitudes of `tensors` over `pictures`; under torchrun each process looks at its part, and all get the whole.

    Args:    model: onnx.ModelProto, float.
             pictures: functions that load one, (N,H,W,3) uint8 at network input size; called in worker threads.
             counted: False follows the largest magnitude only, which is all that minmax needs.
             tick: called after each picture.
    Raises:  ArtifactError: a tensor becomes NaN or infinite, or the graph does not load. What a picture's function raises.
    """
    session = open_session(with_batch(model, "N", tensors), threads=1, shared=True)
    queue, lock = iter(part_of(pictures)), Lock()

    def work() -> Histograms:
        mine = {tensor: Histogram() for tensor in tensors}
        try:
            while True:
                with lock:
                    load = next(queue, None)
                if load is None:
                    return mine
                _update(mine, session, load(), counted)
                tick()
        except BaseException:
            with lock:
                list(queue)  # nothing is left for the other workers
            raise

    total = {tensor: Histogram() for tensor in tensors}
    count = min(workers or usable_cores(), MOST_WORKERS)
    with ThreadPoolExecutor(count) as pool:
        for part in [pool.submit(work) for _ in range(count)]:
            _merge(total, part.result())
    first, *others = gathered(total)
    for other in others:
        _merge(first, other)
    return first


def _merge(total: Histograms, part: Histograms) -> None:
    for tensor, histogram in part.items():
        total[tensor].merge(histogram)


def _update(histograms: Histograms, session: Any, picture: NDArray[np.uint8], counted: bool) -> None:
    values = session.run(None, {session.get_inputs()[0].name: picture})
    for (tensor, histogram), value in zip(histograms.items(), values, strict=True):
        try:
            histogram.update(value, counted=counted)
        except ValueError as error:
            raise ArtifactError(
                f"tensor {tensor} becomes NaN or infinite on a calibration picture; use another checkpoint"
            ) from error
