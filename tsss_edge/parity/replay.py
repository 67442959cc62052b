"""INT8 ranges + the pictures they were measured on -> were they really measured on the network's own input?

A minmax range is the largest value of its calibration pictures. A value beyond it proves that the calibration saw
something else: another channel order, size, fit or scaling, or another graph. When all of its pictures are at hand, so do
ranges that most tensors never reach.
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
    """What the calibration pictures reach again. `excess` 0.2 means 20% beyond the range, of the worst tensor."""

    images: int
    complete: bool  # all of the recorded pictures were run
    tensor: str
    excess: float
    unreached: float  # share of tensors whose range no picture reaches, 0-1; tells something only when complete

    @property
    def fault(self) -> str:
        """In words; empty when the ranges are those of the pictures."""
        if self.excess > TOLERANCE:
            how = f"{self.tensor} exceeds its minmax range by {100 * self.excess:.0f}%"
        elif self.complete and self.unreached > 0.5:  # a few ranges may be shared with a larger neighbour
            how = f"{100 * self.unreached:.0f}% of the tensors stay below their minmax range"
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

    That is: a method that clips on purpose, noise instead of pictures, or pictures that are not in this data set.
    """
    from tsss_edge.kernels.preprocess import preprocess

    if record.method != "minmax" or record.random:
        return None
    onnx = import_extra("onnx", "onnx")
    graph, scales = QdqGraph(onnx.load(float_onnx)), QdqGraph(onnx.load(int8_onnx)).activation_scales()
    tensors = [tensor for tensor in scales if tensor in graph.tensors]
    run = graph.session(tensors)
    peaks, count = np.zeros(len(tensors)), 0
    for path in calibration_pictures(record, dataset, limit):
        values = run(preprocess(read_image(path), spec, bgr=False)[None])
        peaks = np.maximum(peaks, [float(np.abs(v).max()) for v in values])
        count += 1
    if not count or not tensors:
        return None
    excess = peaks / np.array([LEVELS * scales[tensor] for tensor in tensors]) - 1
    worst = int(excess.argmax())
    return Replay(
        images=count,
        complete=count == record.images,
        tensor=tensors[worst],
        excess=float(excess[worst]),
        unreached=float((excess < -TOLERANCE).mean()),
    )


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
