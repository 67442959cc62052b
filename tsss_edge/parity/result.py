"""What a parity check found: numbers by stage and class, the verdict, and both in words."""

from __future__ import annotations

import msgspec

from tsss_edge.artifacts import ParityRecord, Struct
from tsss_edge.parity.layers import LayerReport


class StageResult(Struct, frozen=True):
    """One step on the way from PyTorch to the engine. mIoU in percent, agreement with PyTorch's labels 0-1."""

    name: str  # "PyTorch", "ONNX", "FP16 ONNX", "INT8 ONNX", "engine"
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


class WorstImage(Struct, frozen=True):
    """A picture on which engine and reference differ most."""

    id: str
    agreement: float
    lost_pixels: int  # right in the reference, wrong in the engine
    won_pixels: int  # the other way round


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

    def __bool__(self) -> bool:
        return self.passed

    def record(self) -> ParityRecord:
        """What the engine's record keeps of this."""
        return ParityRecord(
            passed=self.passed,
            miou_reference=self.miou_reference,
            miou_engine=self.miou_engine,
            miou_drop=self.miou_drop,
            pixel_agreement=self.pixel_agreement,
            boundary_agreement=self.boundary_agreement,
            images=self.images,
            max_drop=self.max_drop,
            data_sha256=self.data_sha256,
            leak=self.leak,
        )

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
