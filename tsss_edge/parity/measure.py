"""Every stage on every picture -> confusion counts, agreement with the reference, and where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Struct
from tsss_edge.backends import Backend, Outputs
from tsss_edge.data.voc import VocDataset
from tsss_edge.machine import track
from tsss_edge.metrics import ConfusionMatrix, agreement_counts, boundary_band
from tsss_edge.segment import labels_at, run_network


class WorstImage(Struct, frozen=True):
    """A picture on which engine and reference differ most."""

    id: str
    agreement: float
    lost_pixels: int  # right in the reference, wrong in the engine
    won_pixels: int  # the other way round


@dataclass
class StageCounts:
    """One opened network and what has been counted of it. The first stage of a list is the reference."""

    name: str
    file: str
    backend: Backend
    matrix: ConfusionMatrix = field(init=False)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))  # same as reference, all
    band: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    cells: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(2, np.int64)
    )  # of objectness: same side of 0, all
    broken_images: int = 0
    images: list[WorstImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.matrix = ConfusionMatrix(len(self.backend.classes))

    @property
    def pixel_agreement(self) -> float:
        """Share of pixels labelled as by the reference, 0-1."""
        return _share(self.pixels)

    @property
    def boundary_agreement(self) -> float:
        """The same within the boundary band of the reference's labels; 1 where it draws no boundary at all."""
        return _share(self.band)

    @property
    def objectness_agreement(self) -> float | None:
        """Share of stride-8 cells that both call object or both not, 0-1; None where one has no objectness output."""
        return _share(self.cells) if self.cells[1] else None


def _share(counts: NDArray[np.int64]) -> float:
    return float(counts[0] / counts[1]) if counts[1] else 1.0


@dataclass(frozen=True)
class Seen:
    """One picture as the report shows it: (H,W,3) uint8 RGB and (H,W) uint8 label maps."""

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    engine: NDArray[np.uint8]


def measure(stages: Sequence[StageCounts], dataset: VocDataset, ids: Sequence[str], *, boundary_px: int) -> None:
    """Run all stages on all pictures; the counts are left in the stages."""
    for image_id in track(ids, "parity"):
        image, truth = dataset.image(image_id), dataset.mask(image_id)
        reference = _run(stages[0].backend, image)
        seen = reference.labels != IGNORE
        band = boundary_band(reference.labels, boundary_px) & seen
        for stage in stages:
            answer = reference if stage is stages[0] else _run(stage.backend, image)
            stage.matrix.update(answer.labels, truth)
            stage.pixels += agreement_counts(answer.labels, reference.labels, seen)
            stage.band += agreement_counts(answer.labels, reference.labels, band)
            if answer.objects is not None and reference.objects is not None:
                stage.cells += agreement_counts(answer.objects, reference.objects)
            stage.broken_images += not answer.finite
            stage.images.append(_difference(image_id, answer.labels, reference.labels, truth))


def look_again(reference: StageCounts, engine: StageCounts, dataset: VocDataset, ids: Sequence[str]) -> list[Seen]:
    """Label maps of a few pictures, for the report (keeping all of them would grow with the data set)."""
    result = []
    for image_id in ids:
        image = dataset.image(image_id)
        labels = [_run(stage.backend, image).labels for stage in (reference, engine)]
        result.append(Seen(image_id, image, dataset.mask(image_id), *labels))
    return result


@dataclass(frozen=True)
class _Answer:
    """What one network says of one picture."""

    labels: NDArray[np.uint8]  # (H,W)
    objects: NDArray[np.uint8] | None  # (H/8,W/8), 1 where objectness is above 0
    finite: bool


def _run(backend: Backend, image: NDArray[np.uint8]) -> _Answer:
    outputs = run_network(backend, image)
    return _Answer(
        labels=labels_at(outputs, image.shape[:2], backend.preprocess.place(image.shape[:2])),
        objects=(outputs["objectness"][0, 0] > 0).astype(np.uint8) if "objectness" in outputs else None,
        finite=_finite(outputs),
    )


def _finite(outputs: Outputs) -> bool:
    return all(bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f")


def _difference(
    image_id: str, labels: NDArray[np.uint8], reference: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> WorstImage:
    differs = labels != reference
    labelled = differs & (truth != IGNORE)
    return WorstImage(
        id=image_id,
        agreement=1.0 - float(np.count_nonzero(differs)) / differs.size,
        lost_pixels=int(np.count_nonzero(labelled & (reference == truth))),
        won_pixels=int(np.count_nonzero(labelled & (labels == truth))),
    )
