"""Float OnnxModel + training pictures -> INT8 OnnxModel, and the CalibTable beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import tsss_edge
from tsss_edge.artifacts import CalibrationRecord, OnnxModel
from tsss_edge.backends.common import import_extra
from tsss_edge.calib.methods import METHODS, Method
from tsss_edge.calib.placement import Options, exact_ranges, wanted_tensors
from tsss_edge.calib.qdq import insert_qdq
from tsss_edge.calib.ranges import CalibTable, Histograms, collect, make_table
from tsss_edge.calib.sets import Chosen, choose, find_set, noise
from tsss_edge.config import CalibSet
from tsss_edge.errors import ArtifactError


def calibrate(
    onnx: Path,
    data: Path,
    out: Path,
    *,
    calib_set: str | None = None,
    size: int = 512,
    method: str = "minmax",
    seed: int = 0,
    allow_random: bool = False,
    options: Options | None = None,
) -> OnnxModel:
    """Measure ranges and write the INT8 graph; `out` with suffix `.ranges.json` gets the CalibTable.

    Args:    onnx: FP32, exported by us. data: dataset; its split "train" calibrates, class-balanced, `size` at most.
             calib_set: a set in calib/ or a .toml file, instead of `size` and `seed`.
             method: minmax, percentile, mse, entropy.
             allow_random: noise instead of pictures; the record says so.
             options: which layers stay float.
    Raises:  ArtifactError: not a float graph of ours, unknown method or set, NaN on the way; nothing is written.
             DataError: pictures are missing or damaged.
    """
    require_method(method)
    model = load_float(onnx)
    chosen = choose_pictures(model, data, calib_set=calib_set, size=size, seed=seed, allow_random=allow_random)
    warn(chosen.note)
    graph = import_extra("onnx", "onnx").load(onnx)
    histograms = measure(graph, chosen, counted=method != "minmax")
    table = table_of(model, graph, histograms, chosen, method)  # type: ignore[arg-type]
    return write_int8(model, graph, table, chosen, out, options or Options())


def require_method(method: str, known: tuple[str, ...] = METHODS) -> None:
    """Raise ArtifactError for an unknown method."""
    if method not in known:
        raise ArtifactError(f"unknown calibration method {method!r}; choose from {', '.join(known)}")


def load_float(onnx: Path) -> OnnxModel:
    """Raises: ArtifactError: not ours, or not FP32."""
    model = OnnxModel.load(onnx)
    if model.meta.precision != "fp32":
        raise ArtifactError(f"{onnx}: is {model.meta.precision} already; calibrate the fp32 file that `export` writes")
    return model


def choose_pictures(
    model: OnnxModel, data: Path, *, calib_set: str | None, size: int, seed: int, allow_random: bool
) -> Chosen:
    """The pictures, or noise. Raises: DataError, ArtifactError: see `sets.choose`."""
    if size < 1:
        raise ArtifactError(f"{size} calibration pictures; at least 1 is needed, {512} are advised")
    spec = model.meta.preprocess
    if allow_random:
        return noise(spec, size, seed)
    if calib_set is None:
        return choose(data, spec, CalibSet(name="train", size=size, seed=seed))
    found, folder = find_set(calib_set)
    return choose(data, spec, found, list_folder=folder)


def measure(graph: Any, chosen: Chosen, *, counted: bool = True) -> Histograms:
    """Magnitudes of everything that may be quantized, with a progress bar on a terminal."""
    with progress("calibrate", len(chosen.pictures)) as tick:
        return collect(graph, wanted_tensors(graph), chosen.pictures, counted=counted, tick=tick)


def table_of(model: OnnxModel, graph: Any, histograms: Histograms, chosen: Chosen, method: Method) -> CalibTable:
    """Ranges of every tensor by one method."""
    return make_table(
        histograms,
        method,
        images=len(chosen.pictures),
        onnx_sha256=model.sha256,
        preprocess=model.meta.preprocess.hash,
        exact=exact_ranges(graph, histograms),
    )


def write_int8(
    model: OnnxModel, graph: Any, table: CalibTable, chosen: Chosen, out: Path, options: Options
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
        random=chosen.random,
    )
    meta = msgspec.structs.replace(
        model.meta,
        precision="int8",
        calibration=record,
        float_nodes=options.float_nodes,
        tool=f"tsss-edge {tsss_edge.__version__}",
    )
    written = OnnxModel.save(out, insert_qdq(graph, table, options), meta)
    table.save(out.with_suffix(".ranges.json"))
    return written


def warn(note: str) -> None:
    """One line on stderr; nothing for an empty note."""
    if note:
        print(f"warning: {note}", file=sys.stderr)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A function to call after each of `total` steps; shows a bar when stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
