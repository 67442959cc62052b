"""INT8 ranges + the pictures they were measured on -> were they really measured on the network's own input?

The record keeps the largest value of each tensor on its calibration pictures (and a minmax range is that value). A value
beyond it proves that the calibration saw something else: another channel order, size, fit or scaling, or another graph.
When all of its pictures are at hand, so does a value that is not reached again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import CalibrationRecord, Preprocess, Struct
from tsss_edge.backends.common import import_extra
from tsss_edge.calib.ranges import collect
from tsss_edge.data.voc import VocDataset, read_image
from tsss_edge.files import sha256_file

REPLAYED = 512  # pictures at most: all of an ordinary set, in the time that measuring them took
TOLERANCE = 0.01  # of a peak: rounding of scales, other versions of ONNX Runtime (ours)
LEAST_UNREACHED = 0.5  # of the tensors; scales alone do not tell which range is shared with a larger neighbour


class Replay(Struct, frozen=True):
    """What the calibration pictures reach again. `excess` 0.2 means 20% beyond the peak, of the worst tensor."""

    images: int
    complete: bool  # all of the recorded pictures were run
    exact: bool  # the peaks themselves are recorded, not only scales
    tensor: str  # the one furthest from its peak
    excess: float  # of that tensor; below 0: it stays short of its peak
    unreached: float  # share of tensors whose peak no picture reaches, 0-1; tells something only when complete

    @property
    def fault(self) -> str:
        """In words; empty when the ranges are those of the pictures."""
        if self.excess > TOLERANCE:
            how = f"{self.tensor} exceeds its recorded peak by {100 * self.excess:.0f}%"
        elif self.complete and self.exact and self.excess < -TOLERANCE:
            how = f"{self.tensor} stays {-100 * self.excess:.0f}% below its recorded peak"
        elif self.complete and self.unreached > LEAST_UNREACHED:
            how = f"{100 * self.unreached:.0f}% of the tensors stay below their range"
        else:
            return ""
        return (
            f"calibration was not measured on the network's own input: {how} on the calibration pictures "
            "themselves (channel order, size or scaling differ)"
        )


def replay_calibration(
    float_onnx: Path,
    int8_onnx: Path,
    record: CalibrationRecord,
    dataset: VocDataset,
    spec: Preprocess,
    *,
    limit: int = REPLAYED,
) -> Replay | None:
    """Run the float graph on recorded calibration pictures again; None where that proves nothing.

    That is: noise instead of pictures, pictures that are not in this data set, or a record without peaks (made by another
    tool) with a method that clips.
    """
    if record.random:
        return None
    graph = import_extra("onnx", "onnx").load(float_onnx)
    recorded = recorded_peaks(record, int8_onnx)
    made = {name for node in graph.graph.node for name in node.output}
    tensors = [tensor for tensor in recorded if tensor in made]
    loads = [partial(_load, path, spec) for path in calibration_pictures(record, dataset, limit)]
    if not loads or not tensors:
        return None
    found = collect(graph, tensors, loads, counted=False)
    excess = np.array([found[t].peak / recorded[t] - 1 for t in tensors])
    worst = int(excess.argmax() if excess.max() > TOLERANCE else np.abs(excess).argmax())
    return Replay(
        images=len(loads),
        complete=len(loads) == record.images,
        exact=bool(record.peaks),
        tensor=tensors[worst],
        excess=float(excess[worst]),
        unreached=float((excess < -TOLERANCE).mean()),
    )


def _load(path: Path, spec: Preprocess) -> NDArray[np.uint8]:
    from tsss_edge.kernels.preprocess import preprocess

    return preprocess(read_image(path), spec, bgr=False)[None]


def recorded_peaks(record: CalibrationRecord, int8_onnx: Path) -> dict[str, float]:
    """Largest value of each tensor as the calibration saw it: as recorded, else by its scale where the method was minmax."""
    if record.peaks:
        return {tensor: peak for tensor, peak in record.peaks.items() if peak > 0}
    if record.method != "minmax":
        return {}
    from tsss_edge.onnxgraph.qdq import calibrated_peaks

    return calibrated_peaks(import_extra("onnx", "onnx").load(int8_onnx))


def calibration_pictures(record: CalibrationRecord, dataset: VocDataset, limit: int) -> Iterator[Path]:
    """Up to `limit` pictures of the recorded split whose hash is in the record."""
    used, found = frozenset(record.image_sha256), 0
    for image_id in dataset.ids(record.split) if record.split in dataset.splits else ():
        path = dataset.image_path(image_id)
        if sha256_file(path) in used:
            yield path
            found += 1
            if found == limit:
                return
