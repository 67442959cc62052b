"""INT8 ranges + the pictures they were measured on -> were they really measured on the network's own input?

The record keeps the largest value of each tensor on its calibration pictures (and a minmax range is that value). A value
beyond it proves that the calibration saw something else: another channel order, size, fit or scaling, or another graph.
When all of its pictures are at hand, so do values that most tensors never reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tsss_edge.artifacts import CalibrationRecord, Preprocess, Struct, sha256_file
from tsss_edge.backends.common import import_extra
from tsss_edge.data.voc import VocDataset, read_image
from tsss_edge.parity.graphs import LEVELS, QdqGraph

REPLAYED = 16  # pictures; one that exceeds a range is proof enough
TOLERANCE = 0.01  # of a range: rounding of scales, other order of sums (ours)


class Replay(Struct, frozen=True):
    """What the calibration pictures reach again. `excess` 0.2 means 20% beyond the peak, of the worst tensor."""

    images: int
    complete: bool  # all of the recorded pictures were run
    tensor: str
    excess: float
    unreached: float  # share of tensors whose range no picture reaches, 0-1; tells something only when complete

    @property
    def fault(self) -> str:
        """In words; empty when the ranges are those of the pictures."""
        if self.excess > TOLERANCE:
            how = f"{self.tensor} exceeds its recorded peak by {100 * self.excess:.0f}%"
        elif self.complete and self.unreached > 0.5:  # a few ranges may be shared with a larger neighbour
            how = f"{100 * self.unreached:.0f}% of the tensors stay below their recorded peak"
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
    from tsss_edge.kernels.preprocess import preprocess

    if record.random:
        return None
    onnx = import_extra("onnx", "onnx")
    graph, scales = QdqGraph(onnx.load(float_onnx)), QdqGraph(onnx.load(int8_onnx)).activation_scales()
    recorded = recorded_peaks(record, scales)
    tensors = [tensor for tensor in recorded if tensor in graph.tensors]
    run = graph.session(tensors)
    peaks, count = np.zeros(len(tensors)), 0
    for path in calibration_pictures(record, dataset, limit):
        values = run(preprocess(read_image(path), spec, bgr=False)[None])
        peaks = np.maximum(peaks, [float(np.abs(v).max()) for v in values])
        count += 1
    if not count or not tensors:
        return None
    excess = peaks / np.array([recorded[tensor] for tensor in tensors]) - 1
    worst = int(excess.argmax())
    return Replay(
        images=count,
        complete=count == record.images,
        tensor=tensors[worst],
        excess=float(excess[worst]),
        unreached=float((excess < -TOLERANCE).mean()),
    )


def recorded_peaks(record: CalibrationRecord, scales: dict[str, float]) -> dict[str, float]:
    """Largest value of each tensor as the calibration saw it: by its scale for minmax, else as recorded."""
    if record.method == "minmax":
        return {tensor: LEVELS * scale for tensor, scale in scales.items()}
    return {tensor: peak for tensor, peak in record.peaks.items() if peak > 0}


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
