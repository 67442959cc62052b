"""Counts of all stages -> the verdict: what is wrong, which step is guilty, and both in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import FieldProfile, ParityRecord, Struct
from tsss_edge.metrics import miou_drop_interval, per_class
from tsss_edge.parity.int8_checks import LayerReport
from tsss_edge.parity.measure import StageCounts, WorstImage


class StageResult(Struct, frozen=True):
    """One step on the way from PyTorch to the engine. mIoU in percent, agreement with PyTorch's labels 0-1."""

    name: str  # "PyTorch", "ONNX", "derived ONNX", "FP16 ONNX", "INT8 ONNX", "engine"
    file: str
    runs_on: str  # the back end's name for itself
    miou: float
    drop: float  # mIoU of PyTorch minus this
    step: float  # mIoU of the stage before minus this
    pixel_agreement: float
    boundary_agreement: float
    objectness_agreement: float | None = None  # of stride-8 cells, object or not; None without that output
    broken_images: int = 0  # pictures whose logits held NaN or infinity


class ClassChange(Struct, frozen=True):
    """IoU of one class in percent; None where it is in neither truth nor prediction."""

    reference: float | None
    engine: float | None

    @property
    def change(self) -> float | None:
        """Engine minus reference, percent points; None where either has no IoU."""
        return None if self.reference is None or self.engine is None else self.engine - self.reference


class ParityReport(Struct, frozen=True):
    """True when the gate passed. mIoU and IoU in percent, agreement 0-1; the first eight fields are the JSON contract."""

    passed: bool
    miou_reference: float
    miou_engine: float
    miou_drop: float
    pixel_agreement: float
    boundary_agreement: float
    images: int
    stages: tuple[StageResult, ...]
    max_drop: float
    drop_interval: tuple[float, float]  # 95%, bootstrap over images
    boundary_px: int
    split: str
    data_sha256: str
    leak: int
    per_class: dict[str, ClassChange]
    worst: tuple[WorstImage, ...]
    problems: tuple[str, ...]  # why the gate failed, in words; empty when it passed
    notes: tuple[str, ...]  # what a reader should know though it fails nothing
    guilty: str  # the step that changes mIoU most, in words; empty when no step changes it
    layers: LayerReport | None = None  # float against INT8 graph, where both were found
    provenance: dict[str, str] = msgspec.field(default_factory=dict)
    profile: FieldProfile | None = None  # what the engine said of the set, for `stream` to compare with

    def __bool__(self) -> bool:
        return self.passed

    def record(self) -> ParityRecord:
        """What the engine's record keeps of this."""
        return msgspec.convert(self, ParityRecord, from_attributes=True)

    def verdict(self) -> str:
        """One line."""
        low, high = self.drop_interval
        numbers = (
            f"mIoU {self.miou_reference:.2f} -> {self.miou_engine:.2f} (drop {self.miou_drop:+.2f}, "
            f"95% interval {low:+.2f} to {high:+.2f}, allowed {self.max_drop:.2f}) on {self.images} pictures"
        )
        return f"gate passed: {numbers}" if self.passed else f"gate failed: {'; '.join(self.problems)}; {numbers}"

    def summary(self) -> str:
        """Verdict, stages, the classes that change most, notes: for a terminal."""
        return "\n".join(
            [self.verdict(), *self._stage_rows(), *self._class_rows(), *(f"note: {n}" for n in self.notes)]
        )

    def _stage_rows(self) -> list[str]:
        rows = [f"  {'stage':<10} {'mIoU':>6} {'drop':>6} {'agreement':>10} {'boundary':>9}  runs on"]
        rows += [
            f"  {s.name:<10} {s.miou:6.2f} {s.drop:+6.2f} {s.pixel_agreement:10.4f} {s.boundary_agreement:9.4f}  {s.runs_on}"
            for s in self.stages
        ]
        if (objects := self.stages[-1].objectness_agreement) is not None:
            rows.append(f"  objectness agreement {objects:.4f}")
        return [*rows, *([f"  largest step: {self.guilty}"] if self.guilty else [])]

    def _class_rows(self, limit: int = 3) -> list[str]:
        rows = []
        for name, change in self.changed_classes()[:limit]:
            if abs(change.change or 0.0) < 0.005:  # less than what is printed
                break
            rows.append(f"  IoU of {name}: {change.reference:.2f} -> {change.engine:.2f} ({change.change:+.2f})")
        return rows

    def changed_classes(self) -> list[tuple[str, ClassChange]]:
        """Classes with an IoU in both, those that changed most first."""
        both = [(name, c) for name, c in self.per_class.items() if c.change is not None]
        return sorted(both, key=lambda item: -abs(item[1].change or 0.0))


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


def stage_results(stages: Sequence[StageCounts]) -> tuple[StageResult, ...]:
    """Numbers of each stage against the first and against the one before."""
    mious = [stage.matrix.miou for stage in stages]
    return tuple(
        StageResult(
            name=stage.name,
            file=stage.file,
            runs_on=stage.backend.name,
            miou=miou,
            drop=mious[0] - miou,
            step=previous - miou,
            pixel_agreement=_share(stage.pixels),
            boundary_agreement=_share(stage.band),
            objectness_agreement=_share(stage.cells) if stage.cells[1] else None,
            broken_images=stage.broken_images,
        )
        for stage, miou, previous in zip(stages, mious, [mious[0], *mious], strict=False)
    )


def _share(counts: NDArray[np.int64]) -> float:
    return float(counts[0] / counts[1]) if counts[1] else 1.0


def guilty_step(stages: Sequence[StageResult]) -> str:
    """The step that moves mIoU most in the direction of the whole change, in words; empty when nothing moves."""
    total = stages[-1].drop
    direction = -1.0 if total < 0 else 1.0
    if broken := next((s for s in stages[1:] if s.broken_images), None):
        before = stages[stages.index(broken) - 1]
        return f"{_step_name(before, broken)} makes NaN or infinity on {broken.broken_images} pictures"
    before, after = max(pairwise(stages), key=lambda pair: pair[1].step * direction)
    if abs(after.step) < 0.005:  # less than what is printed
        return ""
    word = "loses" if after.step > 0 else "gains"
    return f"{_step_name(before, after)} {word} {abs(after.step):.2f} of {abs(total):.2f} points"


def _step_name(before: StageResult, after: StageResult) -> str:
    way = f"({before.name} -> {after.name})"
    if after.name == "INT8 ONNX":
        return f"quantization {way}"
    if after.name == "FP16 ONNX":
        return f"export to FP16 {way}"
    if after.name in ("ONNX", "derived ONNX"):
        return f"export {way}"
    if before.name == "PyTorch":
        return f"something between PyTorch and the {after.name} (its ONNX files were not found)"
    return f"the engine build {way}"


def problems(
    stages: Sequence[StageResult], *, max_drop: float, leak: int, images: int, allow_leak: bool, allow_gain: bool
) -> tuple[str, ...]:
    """Every reason to fail, in words. A gain beyond the budget is one: the two were hardly measured alike."""
    engine, guilty = stages[-1], guilty_step(stages)
    found = []
    if broken := [s for s in stages if s.broken_images]:
        found.append(
            f"NaN or infinity in the logits of {broken[0].broken_images} of {images} pictures at stage {broken[0].name}"
        )
    # `not <=` rather than `>`: a drop that is NaN fails
    if not engine.drop <= max_drop:
        found.append(f"mIoU drop {engine.drop:.2f} is more than {max_drop:.2f}: {guilty}")
    if engine.drop < -max_drop and not allow_gain:
        found.append(
            f"mIoU gain {-engine.drop:.2f} is more than {max_drop:.2f}, too good to be true: {guilty}; "
            "look at the pictures before trusting either number"
        )
    if leak and not allow_leak:
        found.append(
            f"{leak} of {images} evaluation pictures also calibrated the engine; "
            "calibrate on the training split, or pass --allow-leak"
        )
    return tuple(found)


def empty_reference(reference: StageCounts, names: Sequence[str], least: float | None) -> tuple[str, ...]:
    """Why a gate against this reference would prove nothing: it draws one class everywhere, or is no better than lots.

    `least`: mIoU that it must have; None: twice that of labels drawn by lot.
    """
    if (only := reference.matrix.constant) is not None:
        return (f"the reference labels every pixel {names[only]}: an engine that agrees with it proves nothing",)
    wanted = 2 * reference.matrix.chance if least is None else least
    if reference.matrix.miou >= wanted:
        return ()
    why = "twice that of labels drawn by lot" if least is None else "--min-reference"
    return (
        f"the reference itself has mIoU {reference.matrix.miou:.2f}, expected at least {wanted:.2f} ({why}): train it, check its "
        "normalisation and classes, or lower --min-reference",
    )


def judge(
    stages: Sequence[StageCounts],
    *,
    names: Sequence[str],
    max_drop: float,
    leak: int,
    allow_leak: bool,
    allow_gain: bool,
    boundary_px: int,
    split: str,
    data_sha256: str,
    notes: Sequence[str],
    provenance: dict[str, str],
    min_reference: float | None = None,
    profile: FieldProfile | None = None,
) -> ParityReport:
    """Counted stages -> the report."""
    results = stage_results(stages)
    reference, engine = stages[0], stages[-1]
    before, after = (per_class(stage.matrix.iou, names) for stage in (reference, engine))
    images = reference.matrix.images
    found = problems(results, max_drop=max_drop, leak=leak, images=images, allow_leak=allow_leak, allow_gain=allow_gain)
    found = (*empty_reference(reference, names, min_reference), *found)
    low, high = miou_drop_interval(reference.matrix.per_image, engine.matrix.per_image)
    return ParityReport(
        passed=not found,
        miou_reference=results[0].miou,
        miou_engine=results[-1].miou,
        miou_drop=results[-1].drop,
        pixel_agreement=results[-1].pixel_agreement,
        boundary_agreement=results[-1].boundary_agreement,
        images=images,
        stages=results,
        max_drop=max_drop,
        drop_interval=(low, high),
        boundary_px=boundary_px,
        split=split,
        data_sha256=data_sha256,
        leak=leak,
        per_class={name: ClassChange(reference=before[name], engine=after[name]) for name in names},
        worst=tuple(engine.worst),
        problems=found,
        notes=(*notes, *_notes(results[-1].drop, low, high, max_drop, leak, images)),
        guilty=guilty_step(results),
        provenance=provenance,
        profile=profile,
    )


def _notes(drop: float, low: float, high: float, max_drop: float, leak: int, images: int) -> list[str]:
    notes = []
    if leak:
        notes.append(f"leak: {leak} of {images} evaluation pictures also calibrated the engine")
    if abs(drop) <= max_drop < max(-low, high):
        notes.append(
            f"the interval reaches beyond the allowed {max_drop:.2f}: more than {images} pictures would make it sure"
        )
    return notes
