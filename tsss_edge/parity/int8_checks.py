"""Float graph + its INT8 graph + pictures -> which layer the error enters at, and whether the ranges fit the pictures.

Layers: both graphs run in ONNX Runtime with every layer's output exposed. Errors are signal-to-quantization-noise ratios in
decibels, 10 log10(sum x^2 / sum (x - y)^2), pooled over pictures: *accumulated* compares a tensor of the INT8 graph with
the same tensor of the float graph; *own* quantizes the float graph's tensor alone. 6 dB are about one bit.

Ranges: the record keeps the largest value of each tensor on its calibration pictures (and a minmax range is that value). A
value beyond it proves that the calibration saw something else: another channel order, size, fit or scaling, or another
graph. When all of its pictures are at hand, so does a value that is not reached again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import CalibrationRecord, Preprocess, Struct
from tsss_edge.calib.ranges import collect
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import sha256_file
from tsss_edge.onnxgraph.qdq import calibrated_peaks
from tsss_edge.onnxgraph.sessions import run_tensors
from tsss_edge.onnxgraph.view import LAYERS, LEVELS, ActivationRounding, OnnxGraph
from tsss_edge.segment import load_picture

if TYPE_CHECKING:
    from onnx import ModelProto

NO_ERROR_DB = 200.0  # stands for "equal"
# Measured with minmax ranges on CamVid pictures, edge-s and edge-m, trained and with random weights: weights 42 to 46 dB,
# activations 25 to 45 dB, accumulated 45 dB at the stem falling to 22 at the head, by at most 3.5 dB below CLEAN_DB a layer.
CLEAN_DB = 30.0  # an input better than this counts as clean
JUMP_DB = 6.0
# An own error so much below the median of its kind is a bad scale; a scale 8 times too large costs 18 dB.
OUTLIER_DB = 10.0
LOW_USE = 0.2  # of a range: minmax uses most of it, methods that clip use more than all

REPLAYED = 512  # pictures at most: all of an ordinary set, in the time that measuring them took
TOLERANCE = 0.01  # of a peak: rounding of scales, other versions of ONNX Runtime (ours)
LEAST_UNREACHED = 0.5  # of the tensors; scales alone do not tell which range is shared with a larger neighbour


class QuantizedTensor(Struct, frozen=True):
    """One activation with Q/DQ, as the float graph's values meet its scale."""

    tensor: str
    scale: float
    own_db: float
    saturated: float  # share of values beyond the last step, 0-1
    used: float  # largest magnitude / the last step: 1 fits exactly, 0.1 wastes three bits
    dead_channels: int  # that are 0 on every picture
    channels: int
    levels: int = LEVELS  # the last step: 127, or 255 of an unsigned rounding without negative values


class LayerError(Struct, frozen=True):
    """One convolution (or matrix product), in the graph's order."""

    layer: str
    output: str
    accumulated_db: float
    input_db: float  # accumulated, of its worst compared input; NO_ERROR_DB where nothing before it is quantized
    jump_db: float  # how much of it this layer loses: min(input_db, CLEAN_DB) - accumulated_db
    weight_db: float | None  # own error of its weights; None where they are float
    activation: QuantizedTensor | None  # its quantized input


class LayerReport(Struct, frozen=True):
    """All layers, what is wrong with the graph itself, and the first layer at which the error jumps."""

    layers: tuple[LayerError, ...]
    structure: tuple[str, ...]
    scales: tuple[str, ...]  # scales that no calibration can have chosen, in words
    guilty: str  # layer and reason in words; empty where no error jumps
    images: int


@dataclass
class _Sums:
    """Signal and noise, pooled over pictures."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        x64, y64 = x.astype(np.float64), y.astype(np.float64)
        self.signal += float(np.vdot(x64, x64))
        self.noise += float(((x64 - y64) ** 2).sum())

    @property
    def db(self) -> float:
        return decibels(self.signal, self.noise)


@dataclass
class _Activation:
    """What meets one activation's rounding, pooled over pictures."""

    rounding: ActivationRounding
    own: _Sums = field(default_factory=_Sums)
    saturated: int = 0
    values: int = 0
    peak: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))  # by channel

    def add(self, x: NDArray[Any]) -> None:
        scale, low, high = self.rounding.scale, self.rounding.low, self.rounding.high
        steps = np.rint(x.astype(np.float64) / scale)  # half to even, as QuantizeLinear rounds
        self.own.add(x, np.clip(steps, low, high) * scale)
        self.saturated += int(np.count_nonzero((steps > high) | (steps < max(low, -high))))
        self.values += x.size
        by_channel = np.abs(x).max(axis=tuple(a for a in range(x.ndim) if a != 1)) if x.ndim > 1 else np.abs(x)
        self.peak = np.maximum(self.peak, by_channel)

    def result(self, tensor: str) -> QuantizedTensor:
        return QuantizedTensor(
            tensor=tensor,
            scale=self.rounding.scale,
            own_db=self.own.db,
            saturated=self.saturated / self.values,
            used=float(self.peak.max()) / (self.rounding.high * self.rounding.scale),
            dead_channels=int(np.count_nonzero(self.peak == 0)),
            channels=self.peak.size,
            levels=self.rounding.high,
        )


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), held within +-`NO_ERROR_DB` so that it stays a number in JSON."""
    if noise == 0:
        return NO_ERROR_DB
    return float(np.clip(10 * np.log10(signal / noise), -NO_ERROR_DB, NO_ERROR_DB)) if signal else -NO_ERROR_DB


def compare_layers(
    float_graph: ModelProto,
    int8_graph: ModelProto,
    images: Iterable[NDArray[np.uint8]],
    peaks: Mapping[str, float] | None = None,
) -> LayerReport:
    """Run both graphs on `images`, (1,H,W,3) uint8 RGB at the network's input size, and compare layer by layer.

    peaks: the largest magnitude of each tensor on the pictures that calibrated it, where that is known.
    Raises: UnavailableError: ONNX Runtime is not installed.
    """
    floating, quantized = OnnxGraph(float_graph), OnnxGraph(int8_graph)
    layers = [n for n in floating.nodes if n.op_type in LAYERS and n.output[0] in quantized.maker]
    roundings = {t: r for t, r in quantized.activation_roundings().items() if t in floating.maker}
    compared = list(dict.fromkeys([*(n.output[0] for n in layers), *roundings]))
    sums = {tensor: _Sums() for tensor in compared}
    activations = {tensor: _Activation(rounding) for tensor, rounding in roundings.items()}
    run_float, run_int8 = (run_tensors(graph.model, compared) for graph in (floating, quantized))
    count = 0
    for image in images:
        exact, rounded = run_float(image), run_int8(image)
        for tensor in compared:
            sums[tensor].add(exact[tensor], rounded[tensor])
            if tensor in activations:
                activations[tensor].add(exact[tensor])
        count += 1
    found = tuple(_layer_error(node, floating, quantized, sums, activations) for node in layers)
    structure = quantized.pair_faults()
    return LayerReport(
        layers=found,
        structure=structure,
        scales=scale_faults(found, peaks or {}),
        guilty=guilty_layer(found, structure),
        images=count,
    )


def scale_faults(layers: Sequence[LayerError], peaks: Mapping[str, float]) -> tuple[str, ...]:
    """Scales that no calibration can have chosen: INT8 weights far from the float ones, ranges hardly used.

    peaks: the largest magnitude of each tensor that calibration saw. A range up to there is no fault, however little these
    pictures use of it.
    """
    least, _ = _limits(layers)
    return tuple(f"layer {layer.layer}: {why}" for layer in layers for why in _reasons(layer, least, -np.inf, peaks))


def guilty_layer(layers: Sequence[LayerError], structure: Sequence[str] = ()) -> str:
    """The first layer whose error jumps or whose own tensors are badly scaled, with the likely reason.

    A fault of the graph's form goes before it. Empty where nothing stands out.
    """
    if structure:
        return structure[0]
    limits = _limits(layers)
    for layer in layers:
        why = _reasons(layer, *limits, {})
        if why or layer.jump_db > JUMP_DB:
            quality = f"{layer.accumulated_db:.1f} dB at its output, {_db(layer.input_db)} at its input"
            other = "its scales look right, so its bias or wiring differs, or its values are hard to quantize"
            return f"layer {layer.layer} ({quality}): {why[0] if why else other}"
    return ""


def _limits(layers: Sequence[LayerError]) -> tuple[float, float]:
    """Own errors of weights and activations below these are outliers. Above CLEAN_DB a tensor is good enough in itself."""
    weights = [layer.weight_db for layer in layers if layer.weight_db is not None]
    activations = [layer.activation.own_db for layer in layers if layer.activation is not None]
    low, high = (min(float(np.median(v or [0.0])) - OUTLIER_DB, CLEAN_DB) for v in (weights, activations))
    return low, high


def _reasons(layer: LayerError, weight_db: float, activation_db: float, peaks: Mapping[str, float]) -> list[str]:
    """What is wrong with a layer's scales, in words: of its weights, then of its input."""
    found, activation = list[str](), layer.activation
    if layer.weight_db is not None and layer.weight_db < weight_db:
        found.append(f"its INT8 weights are only {layer.weight_db:.1f} dB from the float ones")
    if activation is None or not activation.used:  # a tensor that is 0 on these pictures says nothing
        return found
    seen = activation.scale * activation.levels <= peaks.get(activation.tensor, 0.0) * (1 + TOLERANCE)
    if activation.own_db >= activation_db and (activation.used >= LOW_USE or seen):
        return found
    if activation.saturated > 0:
        return [*found, f"the scale of {activation.tensor} clips {100 * activation.saturated:.2g}% of its values"]
    used, levels = activation.levels * activation.used, activation.levels
    return [*found, f"the scale of {activation.tensor} is too large: its values use {used:.0f} of {levels} steps"]


def _db(value: float) -> str:
    return "no error" if value == NO_ERROR_DB else f"{value:.1f} dB"


def _layer_error(
    node: Any, floating: OnnxGraph, quantized: OnnxGraph, sums: dict[str, _Sums], activations: dict[str, _Activation]
) -> LayerError:
    accumulated = sums[node.output[0]].db
    before = min((sums[t].db for t in floating.nearest_before(node.input[0], sums)), default=NO_ERROR_DB)
    twin = quantized.maker[quantized.source(node.output[0])]
    source = quantized.source(twin.input[0])
    return LayerError(
        layer=node.name or node.output[0],
        output=node.output[0],
        accumulated_db=accumulated,
        input_db=before,
        jump_db=min(before, CLEAN_DB) - accumulated,
        weight_db=_weight_db(floating.constant(node.input[1]), quantized.constant(twin.input[1])),
        activation=activations[source].result(source) if source in activations else None,
    )


def _weight_db(floating: NDArray[Any] | None, quantized: NDArray[Any] | None) -> float | None:
    if floating is None or quantized is None or floating.shape != quantized.shape:
        return None
    sums = _Sums()
    sums.add(floating, quantized)
    return None if sums.noise == 0 else sums.db


# ---------------------------------------------------------------------------------------------------------------------
# The calibration, replayed


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
    float_graph: ModelProto,
    int8_graph: ModelProto,
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
    recorded = {tensor: peak for tensor, peak in record.peaks.items() if peak > 0}
    if not record.peaks and record.method == "minmax":
        recorded = calibrated_peaks(int8_graph)  # a minmax scale is the peak
    made = OnnxGraph(float_graph).maker
    tensors = [tensor for tensor in recorded if tensor in made]
    loads = [partial(load_picture, path, spec) for path in calibration_pictures(record, dataset, limit)]
    if not loads or not tensors:
        return None
    found = collect(float_graph, tensors, loads, counted=False)
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
