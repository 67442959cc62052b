"""Every stage on every picture -> confusion counts, agreement with the reference, and where they differ most."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import IGNORE, Classes, FieldProfile, Struct
from tsss_edge.backends import Backend
from tsss_edge.data.voc import VocDataset
from tsss_edge.field.figures import Meter, Values, profile_of
from tsss_edge.metrics import agreement_counts, boundary_band
from tsss_edge.scoring import Answer, Mask, SplitCounts, backend_answers, counted, pictures

Region = NDArray[np.bool_]
SHOWN = 8  # worst pictures in the report


class WorstImage(Struct, frozen=True):
    """A picture on which engine and reference differ most."""

    id: str
    agreement: float
    lost_pixels: int  # right in the reference, wrong in the engine
    won_pixels: int  # the other way round


@runtime_checkable
class Recorded(Protocol):
    """What a network said of pictures before, in its place (`reference_answers.Answers`)."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> Classes: ...
    def recall(self, shown: Iterable[tuple[str, Mask]]) -> Iterator[Answer]: ...


class StageCounts:
    """One opened network and what has been counted of it. The first of a list is the reference."""

    def __init__(self, name: str, file: str, backend: Backend | Recorded) -> None:
        self.name, self.file, self.backend = name, file, backend
        self.counts = SplitCounts(len(backend.classes))
        self.matrix = self.counts.classes  # against the truth
        # Against the reference, each (equal, all): pixels, those near its boundaries, cells of objectness.
        self.pixels, self.band, self.cells = (np.zeros(2, np.int64) for _ in range(3))
        self.broken_images = 0
        self.worst: list[WorstImage] = []  # where it differs most from the reference, worst first

    def answers(self, shown: Iterable[tuple[str, Mask]]) -> Iterator[Answer]:
        """What it says of each picture, (id, (H,W,3) uint8 RGB), in order."""
        return (
            self.backend.recall(shown) if isinstance(self.backend, Recorded) else backend_answers(self.backend, shown)
        )

    def compare(self, answer: Answer, reference: Answer, seen: Region, band: Region, truth: Mask) -> None:
        """Count one picture against the reference: where it gives labels (`seen`), and of those near its boundaries (`band`)."""
        self.pixels += agreement_counts(answer.labels, reference.labels, seen)
        self.band += agreement_counts(answer.labels, reference.labels, band)
        if answer.cells is not None and reference.cells is not None:
            self.cells += agreement_counts(answer.cells, reference.cells)
        self.broken_images += not answer.finite
        difference = _difference(answer.id, answer.labels, reference.labels, truth)
        if difference.agreement < 1:
            self.worst = sorted([*self.worst, difference], key=lambda image: image.agreement)[:SHOWN]


@dataclass(frozen=True)
class Seen:
    """One picture as the report shows it: (H,W,3) uint8 RGB and (H,W) uint8 label maps."""

    id: str
    image: NDArray[np.uint8]
    truth: Mask
    reference: Mask
    engine: Mask


def measure(
    stages: Sequence[StageCounts], dataset: VocDataset, ids: Sequence[str], *, boundary_px: int
) -> FieldProfile | None:
    """Run all stages on all pictures; the counts are left in the stages. Returns the profile of the last one's answers."""
    meter = Meter(stages[-1].backend.classes)
    figures = array("f")  # of all pictures, one after the other
    shown = tee(pictures(dataset, ids, "parity"), len(stages))
    networks = [(s.answers(images), s.counts) for s, images in zip(stages, shown, strict=True)]
    for truth, answers in counted(networks, dataset.mask):
        reference = answers[0]
        seen = reference.labels != IGNORE
        band = boundary_band(reference.labels, boundary_px) & seen
        for stage, answer in zip(stages, answers, strict=True):
            stage.compare(answer, reference, seen, band, truth)
        figures.extend(_figures(meter, answers[-1]))
    return profile_of(meter.names, np.frombuffer(figures, np.float32).reshape(-1, len(meter.names)))


def _figures(meter: Meter, answer: Answer) -> Values:
    logits, objectness = answer.outputs.get("logits"), answer.outputs.get("objectness")
    return meter.measure(
        None if logits is None else logits[0],
        None if objectness is None else objectness[0, 0],
        answer.labels,
        answer.placement,
    )


def look_again(reference: StageCounts, engine: StageCounts, dataset: VocDataset, ids: Sequence[str]) -> list[Seen]:
    """Label maps of a few pictures, for the report (keeping all of them would grow with the data set)."""
    result = []
    for image_id in ids:
        image = dataset.image(image_id)
        labels = [next(stage.answers([(image_id, image)])).labels for stage in (reference, engine)]
        result.append(Seen(image_id, image, dataset.mask(image_id), *labels))
    return result


def _difference(image_id: str, labels: Mask, reference: Mask, truth: Mask) -> WorstImage:
    differs = labels != reference
    labelled = differs & (truth != IGNORE)
    return WorstImage(
        id=image_id,
        agreement=1.0 - float(np.count_nonzero(differs)) / differs.size,
        lost_pixels=int(np.count_nonzero(labelled & (reference == truth))),
        won_pixels=int(np.count_nonzero(labelled & (labels == truth))),
    )
