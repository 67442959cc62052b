"""Float OnnxModel + training pictures -> INT8 OnnxModel, and the CalibTable beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

import tsss_edge
from tsss_edge.artifacts import CalibrationRecord, OnnxModel
from tsss_edge.calib.bias import correct_biases
from tsss_edge.calib.methods import METHODS, Method
from tsss_edge.calib.ranges import OTHERS, CalibTable, Histograms, collect, make_table
from tsss_edge.calib.search import Judge, draw_search, search
from tsss_edge.calib.sets import (
    Chosen,
    HeldBackPicture,
    choose,
    evenly_spaced,
    find_set,
    held_back_ids,
    load_held_back,
    noise,
)
from tsss_edge.config import CalibSet
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import write_json
from tsss_edge.machine import int8_saturates, progress
from tsss_edge.onnxgraph.casts import float_tensors
from tsss_edge.onnxgraph.ort_pairs import unsigned_form
from tsss_edge.onnxgraph.qdq import PairOptions, exact_ranges, insert_qdq, wanted_tensors
from tsss_edge.onnxgraph.sessions import pick_compiler
from tsss_edge.ranks import join, meet, this_process
from tsss_edge.seals import write_sealed

FULL_SET = 512  # pictures that peers settle on
WEIGHT_BITS = (7, 8)
AUTO: tuple[Method, ...] = ("mse", "percentile", "entropy", "minmax")  # in this order, until one holds the budget
MethodOrAuto = Literal["minmax", "percentile", "mse", "entropy", "auto"]


def calibrate(
    model: OnnxModel,
    data: Path,
    out: Path,
    *,
    calib_set: str | None = None,
    size: int = FULL_SET,
    method: MethodOrAuto = "mse",
    seed: int = 0,
    max_drop: float | None = None,
    method_drop: float | None = None,
    allow_random: bool = False,
    options: PairOptions | None = None,
    target: Literal["any", "ort"] = "any",
    bias_correction: bool = False,
) -> OnnxModel:
    """Measure ranges and write the INT8 graph; `out` with suffix `.ranges.json` gets the CalibTable.

    Under torchrun each process looks at its part of the pictures, and the first one writes what one process would.

    Args:    model: FP32, exported by us. data: dataset; its split "train" calibrates, class-balanced, `size` at most.
             calib_set: a set in calib/ or a .toml file, instead of `size` and `seed`.
             method: minmax, percentile, mse, entropy; auto tries them in the order of `AUTO` on a held-back
             part of the split until one holds the budget, else keeps the one that changes the labels least.
             max_drop: mIoU points; layers that cost most stay float until the held-back part holds it (`search.py`).
             method_drop: the budget of method auto where `max_drop` is not given (default: 0.3 points).
             allow_random: noise instead of pictures; the record says so.
             options: which layers stay float; bits of the weights (7 or 8).
             target: "ort" writes the same roundings as ONNX Runtime's x86 kernels want them, for it alone.
             bias_correction: move biases by what rounding and clipping shift, see `bias.py`; a search judges without it.
    Raises:  ArtifactError: not a float graph, unknown method, set or bits, NaN on the way; nothing is written.
             DataError: pictures are missing or damaged. GateError: `max_drop` cannot be held.
    """
    join()
    options = options or PairOptions()
    if options.weight_bits not in WEIGHT_BITS:
        raise ArtifactError(
            f"weights of {options.weight_bits} bits; 8 (every device) and 7 (CPUs without VNNI) are there"
        )
    searched = method == "auto" or max_drop is not None
    require_sense(model, method, size, noisy=allow_random, searched=searched)
    chosen, held_back = (
        (noise(model.meta.preprocess, size, seed), ())
        if allow_random
        else choose_pictures(model, data, calib_set=calib_set, size=size, seed=seed, hold_back=searched)
    )
    warn(chosen.note)
    histograms = measure(model, chosen, counted=method != "minmax")
    methods = AUTO if method == "auto" else (method,)
    others = measure_others(model, chosen)
    tables: dict[Method, CalibTable] = {
        m: msgspec.structs.replace(table_of(model, histograms, chosen, m), others=others) for m in methods
    }
    if target == "ort" and options.weight_bits == 8 and int8_saturates():
        warn("this CPU has no VNNI, so INT8 sums of 8-bit weights saturate; give --weight-bits 7")
    if not searched:
        return write_int8(model, tables[methods[0]], chosen, out, options, target, bias_correction)
    pictures = load_held_back(VocDataset.open(data), held_back, model.meta.preprocess)
    return write_searched(
        model,
        tables,
        chosen,
        out,
        options,
        pictures=pictures,
        max_drop=max_drop,
        method_drop=method_drop,
        target=target,
        bias_correction=bias_correction,
    )


def require_sense(model: OnnxModel, method: str, size: int, *, noisy: bool, searched: bool) -> None:
    """Raise ArtifactError for a model that is not FP32, an unknown method, no pictures, or a search on noise."""
    if model.meta.precision != "fp32":
        raise ArtifactError(
            f"{model.path}: is {model.meta.precision} already; calibrate the fp32 file that `export` writes"
        )
    if method not in (*METHODS, "auto"):
        raise ArtifactError(f"unknown calibration method {method!r}; choose from {', '.join(METHODS)}, auto")
    if size < 1:
        raise ArtifactError(f"{size} calibration pictures; at least 1 is needed, {FULL_SET} are advised")
    if searched and noisy:
        raise ArtifactError("noise tells nothing about methods or layers; name one --method and leave --search out")


def choose_pictures(
    model: OnnxModel, data: Path, *, calib_set: str | None, size: int, seed: int, hold_back: bool
) -> tuple[Chosen, tuple[str, ...]]:
    """What calibrates, and the ids that are held back to choose by (none unless `hold_back`); the two share no picture.

    Raises: DataError, ArtifactError: see `sets.choose`.
    """
    found, folder = find_set(calib_set) if calib_set else (CalibSet(name="train", size=size, seed=seed), None)
    dataset, spec = VocDataset.open(data), model.meta.preprocess
    held_back: tuple[str, ...] = ()
    if hold_back and not found.list:
        held_back = held_back_ids(dataset, found.split, seed=found.seed)
    chosen = choose(dataset, spec, found, list_folder=folder, without=held_back)
    if hold_back and found.list:
        held_back = held_back_ids(dataset, found.split, seed=found.seed, without=chosen.ids)
    return chosen, held_back


def measure(model: OnnxModel, chosen: Chosen, *, counted: bool = True) -> Histograms:
    """Magnitudes of everything that may be quantized, with a progress bar on a terminal."""
    wanted = wanted_tensors(model.graph)
    if not wanted:
        raise ArtifactError(
            f"{model.path}: no layer of it is worth INT8 (few channels, or no convolutions); build it as fp32, bf16 or fp16"
        )
    with progress("calibrate", len(chosen.pictures)) as tick:
        return collect(model.graph, wanted, chosen.pictures, counted=counted, tick=tick)


def measure_others(model: OnnxModel, chosen: Chosen) -> dict[str, float]:
    """Largest magnitude of the float tensors that never get a pair, on a few pictures: a DLA wants a range for each."""
    wanted = {*wanted_tensors(model.graph), *(output.name for output in model.graph.graph.output)}
    tensors = [tensor for tensor in float_tensors(model.graph) if tensor not in wanted]
    found = collect(model.graph, tensors, evenly_spaced(chosen.pictures, OTHERS), counted=False) if tensors else {}
    return {tensor: histogram.peak for tensor, histogram in found.items()}


def table_of(model: OnnxModel, histograms: Histograms, chosen: Chosen, method: Method) -> CalibTable:
    """Ranges of every tensor by one method."""
    return make_table(
        histograms,
        method,
        images=len(chosen.pictures),
        onnx_sha256=model.sha256,
        preprocess=model.meta.preprocess.hash,
        exact=exact_ranges(model.graph, histograms),
    )


def write_int8(
    model: OnnxModel,
    table: CalibTable,
    chosen: Chosen,
    out: Path,
    options: PairOptions,
    target: Literal["any", "ort"] = "any",
    bias_correction: bool = False,
) -> OnnxModel:
    """Insert Q/DQ by `table` and write graph and table. Raises: ArtifactError: the table is of another graph."""
    if table.onnx_sha256 != model.sha256:
        raise ArtifactError(f"these ranges were measured on another graph than {model.path}; calibrate again")
    record = CalibrationRecord(
        method=table.method,
        images=len(chosen.pictures),
        image_list_sha256=chosen.list_sha256,
        image_sha256=chosen.sha256,
        split=chosen.split,
        seed=chosen.seed,
        onnx_sha256=model.sha256,
        onnx=model.path.name,
        random=chosen.random,
        peaks=table.peaks,
        others=table.others,
        weight_bits=options.weight_bits,
        bias_correction=bias_correction,
        pairs="unsigned" if target == "ort" else "signed",
    )
    meta = msgspec.structs.replace(
        model.meta,
        precision="int8",
        calibration=record,
        float_nodes=options.float_nodes,
        tool=f"tsss-edge {tsss_edge.__version__}",
    )
    if not this_process().writes:
        meet()  # until it is written
        return OnnxModel.load(out)
    graph = insert_qdq(model.graph, table.ranges, options)
    if bias_correction:
        graph = correct_biases(model.graph, graph, chosen.pictures)
    written = OnnxModel.save(out, unsigned_form(graph, table.others) if target == "ort" else graph, meta)
    table = msgspec.structs.replace(table, weight_bits=options.weight_bits)
    write_sealed(out.with_suffix(".ranges.json"), table)
    meet()
    return written


def write_searched(
    model: OnnxModel,
    tables: dict[Method, CalibTable],
    chosen: Chosen,
    out: Path,
    options: PairOptions,
    *,
    pictures: Sequence[HeldBackPicture],
    max_drop: float | None,
    method_drop: float | None = None,
    target: Literal["any", "ort"] = "any",
    bias_correction: bool = False,
) -> OnnxModel:
    """Judge methods by `method_drop` (with `max_drop` by that, and layers too) on `pictures` and write the INT8 graph that was chosen.

    `out` with suffix `.search.json` gets what was tried; `.search.svg` gets the plot of it, where matplotlib is installed.
    Raises: GateError: `max_drop` cannot be held; nothing is written.
    """
    judge = Judge(model.graph, pictures, len(model.meta.classes), pick_compiler())
    report = search(model.graph, tables, judge, max_drop=max_drop, method_drop=method_drop, options=options)
    options = msgspec.structs.replace(options, float_nodes=report.result.float_nodes)
    written = write_int8(model, tables[report.method], chosen, out, options, target, bias_correction)
    if not this_process().writes:
        return written
    write_json(out.with_suffix(".search.json"), report)
    try:
        draw_search(report, out.with_suffix(".search.svg"))
    except UnavailableError as error:
        warn(f"no plot of the search: {error}")
    return written


def warn(note: str) -> None:
    """One line on stderr; nothing for an empty note."""
    if note:
        print(f"warning: {note}", file=sys.stderr)
