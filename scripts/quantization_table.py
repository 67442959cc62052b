"""Checkpoints + data sets -> the table of what quantization costs and gains (docs/results/quantization.md and .json).

For each network: export, calibrate by every method, build CPU engines, compare all of them with PyTorch in one pass over
the labelled split, time them in alternating rounds. What is already in --work is used again.

    python scripts/quantization_table.py --network "CamVid edge-s" runs/camvid-s camvid \
        --network "CamVid edge-m" runs/camvid-m camvid --work runs/quantization --out docs/results/quantization.md

A run of `tsss-edge train supervised --qat` joins with --qat NETWORK RUN: its INT8 engine is compared with the PyTorch network
that the run started from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from pages import TOOL, today, watch_machine, write_page
from quantization_page import EngineRow, QuantizationTable, Section, page

from tsss_edge.artifacts import Checkpoint, Engine, OnnxModel, Precision
from tsss_edge.backends import open_backend
from tsss_edge.bench import Timed, time_networks
from tsss_edge.bench.conditions import notes_on
from tsss_edge.calib.calibrate import (
    calibrate,
    choose_pictures,
    measure,
    table_of,
    write_int8,
    write_searched,
)
from tsss_edge.calib.methods import METHODS, Method
from tsss_edge.calib.sets import load_held_back
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import read_json, write_json
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.parity import BOUNDARY_PX, ParityReport, count_leak
from tsss_edge.parity.measure import StageCounts
from tsss_edge.parity.measure import measure as run_stages
from tsss_edge.parity.verdict import judge
from tsss_edge.scoring import require_same_classes

SEARCHED = "auto+search"
TUNED = "PyTorch FP32 after QAT"


@dataclass
class Network:
    """One trained network, its data set, and the engines made of it by name."""

    name: str
    checkpoint: Checkpoint
    dataset: VocDataset
    folder: Path
    engines: dict[str, Engine] = field(default_factory=dict)
    int8: dict[str, OnnxModel] = field(default_factory=dict)
    tuned: Checkpoint | None = None  # by quantization-aware training


def main() -> None:
    args = parse_args()
    watched = watch_machine(args.threads)
    rows: list[EngineRow] = []
    for name, checkpoint, data in args.network:
        folder = args.work / name.lower().replace(" ", "-")
        network = Network(name, Checkpoint.load(Path(checkpoint)), VocDataset.open(Path(data)), folder)
        if not (args.keep and (folder / "rows.json").is_file()):
            build(network, args.methods, size=args.calibration_images, seed=args.seed, max_drop=args.max_drop)
            for run in (Path(run) for owner, run in args.qat if owner == name):
                build_qat(network, run, size=args.calibration_images, seed=args.seed)
            write_json(folder / "rows.json", tuple(with_auto(network, list(measure_rows(network, args)))))
        rows += read_json(folder / "rows.json", tuple[EngineRow, ...])
    machine = watched()
    table = QuantizationTable(
        rows=tuple(rows),
        max_drop=args.max_drop,
        split=args.split,
        calibration_images=args.calibration_images,
        machine=machine,
        notes=tuple(notes_on(machine)),
        measured=today(),
        tool=TOOL,
        more=read_json(args.more, tuple[Section, ...]) if args.more else (),
    )
    write_page(args.out, page(table), table)
    print(f"{args.out}: {len(rows)} rows", file=sys.stderr)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs=3, action="append", required=True, metavar=("NAME", "CHECKPOINT", "DATA"))
    parser.add_argument("--qat", nargs=2, action="append", default=[], metavar=("NETWORK", "RUN"))
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--split", default="val")
    parser.add_argument("--max-drop", type=float, default=0.3)
    parser.add_argument("--duration", type=float, default=3.0, help="seconds of timing for each engine")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="take the rows of networks that were measured before")
    parser.add_argument("--more", type=Path, help="JSON file of further sections: title, text, columns, rows")
    parser.add_argument("--work", type=Path, required=True, help="folder for graphs and engines")
    parser.add_argument("--out", type=Path, required=True, help="page to write; its JSON twin stands beside it")
    return parser.parse_args()


def build(network: Network, methods: Sequence[Method], *, size: int, seed: int, max_drop: float) -> None:
    """Graphs and engines of every variant, in `network.folder`; one measurement of ranges serves them all."""
    floating = exported(network.checkpoint, network.folder / "fused.onnx")
    if floating.meta.checkpoint_sha256 != network.checkpoint.sha256:
        sys.exit(f"error: {floating.path} is of another checkpoint; give an empty --work folder")
    exported(network.checkpoint, network.folder / "fused.fp16.onnx", "fp16", network.dataset)
    quantize(network, floating, methods, size=size, seed=seed, max_drop=max_drop)
    network.engines["FP32"] = engine(network, floating, "fp32", "float")
    network.engines["bf16"] = engine(network, floating, "bf16", "float")
    for method in (*methods, SEARCHED):
        model = OnnxModel.load(network.folder / f"{method}.int8.onnx")
        network.int8[f"INT8 {method}"] = model
        network.engines[f"INT8 {method}"] = engine(network, model, "int8", method)


def quantize(
    network: Network, floating: OnnxModel, methods: Sequence[Method], *, size: int, seed: int, max_drop: float
) -> None:
    """One INT8 graph a method, and the one that `calibrate --method auto --search` makes, all from the same pictures."""
    if all((network.folder / f"{m}.int8.onnx").is_file() for m in (*methods, SEARCHED)):
        return
    data = network.dataset.root
    chosen, held_back = choose_pictures(floating, data, calib_set=None, size=size, seed=seed, hold_back=True)
    histograms = measure(floating, chosen)
    tables = {m: table_of(floating, histograms, chosen, m) for m in methods}
    for method, table in tables.items():
        write_int8(floating, table, chosen, network.folder / f"{method}.int8.onnx", PairOptions())
    pictures = load_held_back(network.dataset, held_back, floating.meta.preprocess)
    out = network.folder / f"{SEARCHED}.int8.onnx"
    write_searched(floating, tables, chosen, out, PairOptions(), pictures=pictures, max_drop=max_drop)


def build_qat(network: Network, run: Path, *, size: int, seed: int) -> None:
    """The INT8 engine of a fine-tuned run."""
    network.tuned = Checkpoint.load(run)
    floating = exported(network.tuned, network.folder / "qat.onnx")
    path = network.folder / "qat.int8.onnx"
    model = once(path) or calibrate(floating, network.dataset.root, path, size=size, method="auto", seed=seed)
    network.engines["INT8 QAT"] = engine(network, model, "int8", "qat")


def exported(
    checkpoint: Checkpoint, path: Path, precision: Precision = "fp32", dataset: VocDataset | None = None
) -> OnnxModel:
    """The graph of a checkpoint, from before where it is there; FP16 is scanned for overflow on training pictures."""
    from tsss_edge.export.onnx_export import export_onnx

    pictures = [dataset.image_path(i) for i in dataset.ids("train")[:32]] if dataset else []
    return once(path) or export_onnx(checkpoint.path, path, precision=precision, check_images=pictures)


def once(path: Path) -> OnnxModel | None:
    """A graph made before, None where there is none."""
    return OnnxModel.load(path) if path.is_file() else None


def engine(network: Network, model: OnnxModel, precision: Precision, name: str) -> Engine:
    """A CPU engine, built again each time: it takes a second, and what is measured is what was just built."""
    from tsss_edge.config import load_target
    from tsss_edge.export.build import build_engine

    out = network.folder / f"{name.replace(' ', '-')}.xml"
    return build_engine(model.path, load_target("cpu"), out, precision=precision)


def measure_rows(network: Network, args: argparse.Namespace) -> Iterator[EngineRow]:
    """PyTorch and all engines: accuracy in one pass over the split, latency in alternating rounds."""
    require_same_classes(network.checkpoint.meta.classes, network.dataset)
    ids = network.dataset.ids(args.split)
    first_int8 = next(iter(network.int8.values()), None)
    paths = {
        "PyTorch FP32": network.checkpoint.path,
        "ONNX Runtime FP32": network.folder / "fused.onnx",
        "ONNX Runtime FP16": network.folder / "fused.fp16.onnx",
        **({"ONNX Runtime INT8": first_int8.path} if first_int8 else {}),
        **({TUNED: network.tuned.path} if network.tuned else {}),
        **{f"OpenVINO {name}": engine.path for name, engine in network.engines.items()},
    }
    with ExitStack() as stack:
        stages = [
            StageCounts(name, path.name, stack.enter_context(open_backend(path, threads=args.threads)))
            for name, path in paths.items()
        ]
        run_stages(stages, network.dataset, ids, boundary_px=BOUNDARY_PX)
        times = time_networks(
            [s.backend for s in stages], [path.name for path in paths.values()], duration_s=args.duration
        )
    data_sha256 = network.dataset.split_hash(args.split)
    for stage, timed in zip(stages, times, strict=True):
        report = verdict(network, stages[0], stage, args, data_sha256)
        if (built := engine_of(network, stage)) is not None:
            built.with_record(parity=report.record())
        yield row(network, stage, report, timed)


def with_auto(network: Network, rows: list[EngineRow]) -> list[EngineRow]:
    """`auto` is the method that it chose: the same graph, so the same row; and what search gave back is noted."""
    if (searched := network.int8.get(f"INT8 {SEARCHED}")) is None or searched.meta.calibration is None:
        return rows
    names = [r.engine for r in rows]
    at = names.index(f"OpenVINO INT8 {SEARCHED}")
    method, kept = searched.meta.calibration.method, ", ".join(searched.meta.float_nodes)
    chosen = rows[names.index(f"OpenVINO INT8 {method}")]
    auto = msgspec.structs.replace(chosen, engine="OpenVINO INT8 auto", note=f"chose {method}")
    rows[at] = msgspec.structs.replace(rows[at], note=f"float: {kept}" if kept else "nothing had to go back to float")
    return [*rows[:at], auto, *rows[at:]]


def engine_of(network: Network, stage: StageCounts) -> Engine | None:
    return network.engines.get(stage.name.removeprefix("OpenVINO "))


def verdict(
    network: Network, reference: StageCounts, stage: StageCounts, args: argparse.Namespace, data_sha256: str
) -> ParityReport:
    """The gate on one engine alone."""
    built = engine_of(network, stage)
    ids = network.dataset.ids(args.split)
    return judge(
        [reference, stage],
        names=network.dataset.classes.names,
        max_drop=args.max_drop,
        leak=count_leak(built.record.meta.calibration if built else None, network.dataset, ids),
        allow_leak=False,
        allow_gain=stage.name in (TUNED, "OpenVINO INT8 QAT"),  # they were trained further
        boundary_px=BOUNDARY_PX,
        split=args.split,
        data_sha256=data_sha256,
        notes=[],
        provenance={},
    )


def row(network: Network, stage: StageCounts, report: ParityReport, timed: Timed) -> EngineRow:
    return EngineRow(
        network=network.name,
        engine=stage.name,
        runs_on=stage.backend.name,
        miou=report.miou_engine,
        drop=report.miou_drop,
        drop_interval=report.drop_interval,
        pixel_agreement=report.pixel_agreement,
        boundary_agreement=report.boundary_agreement,
        passed=report.passed,
        images=report.images,
        p50_ms=timed.latency_ms.p50,
        best_ms=timed.best_ms,
        speedup=1 / timed.ratio_best,
    )


if __name__ == "__main__":
    main()
