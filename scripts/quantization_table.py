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
from time import perf_counter

from tsss_edge import __version__
from tsss_edge.artifacts import Checkpoint, Engine, OnnxModel, Precision, Struct, write_bytes, write_json
from tsss_edge.backends import open_backend
from tsss_edge.bench import Machine, Timed, time_networks
from tsss_edge.bench.machine import examine_machine, notes_on, read_load, read_mhz
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.data.voc import VocDataset
from tsss_edge.evaluate import require_same_classes
from tsss_edge.parity import BOUNDARY_PX, ParityReport, count_leak
from tsss_edge.parity.gate import judge
from tsss_edge.parity.measure import Stage, measure

METHODS = ("minmax", "entropy", "percentile", "mse", "auto", "auto+search")


class Row(Struct, frozen=True):
    """One engine. mIoU in percent, agreement 0-1, latency of the network alone in milliseconds."""

    network: str
    engine: str
    runs_on: str
    miou: float
    drop: float
    drop_interval: tuple[float, float]
    pixel_agreement: float
    boundary_agreement: float
    passed: bool
    images: int
    p50_ms: float
    best_ms: float
    speedup: float  # over PyTorch FP32, by the medians of alternating rounds
    calibration_s: float | None = None


class Table(Struct, frozen=True):
    """Everything that was measured, and where."""

    rows: tuple[Row, ...]
    max_drop: float
    split: str
    calibration_images: int
    machine: Machine
    notes: tuple[str, ...]
    tool: str


@dataclass
class Network:
    """One trained network, its data set, and the engines made of it by name."""

    name: str
    checkpoint: Checkpoint
    dataset: VocDataset
    folder: Path
    engines: dict[str, Engine] = field(default_factory=dict)
    int8: dict[str, OnnxModel] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def main() -> None:
    args = parse_args()
    mhz, load = read_mhz(), read_load()
    rows: list[Row] = []
    for name, checkpoint, data in args.network:
        folder = args.work / name.lower().replace(" ", "-")
        network = Network(name, Checkpoint.load(Path(checkpoint)), VocDataset.open(Path(data)), folder)
        build(network, args.methods, size=args.calibration_images, seed=args.seed, max_drop=args.max_drop)
        for run in (Path(run) for owner, run in args.qat if owner == name):
            build_qat(network, run, size=args.calibration_images, seed=args.seed)
        rows += measure_rows(network, args)
    machine = examine_machine(threads=args.threads, mhz_before=mhz, load_before=load)
    table = Table(
        rows=tuple(rows),
        max_drop=args.max_drop,
        split=args.split,
        calibration_images=args.calibration_images,
        machine=machine,
        notes=tuple(notes_on(machine)),
        tool=f"tsss-edge {__version__}",
    )
    write_bytes(args.out, page(table).encode())
    write_json(args.out.with_suffix(".json"), table)
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
    parser.add_argument("--work", type=Path, required=True, help="folder for graphs and engines")
    parser.add_argument("--out", type=Path, required=True, help="page to write; its JSON twin stands beside it")
    return parser.parse_args()


def build(network: Network, methods: Sequence[str], *, size: int, seed: int, max_drop: float) -> None:
    """Graphs and engines of every variant, in `network.folder`."""
    floating = exported(network.checkpoint, network.folder / "fused.onnx")
    if floating.meta.checkpoint_sha256 != network.checkpoint.sha256:
        sys.exit(f"error: {floating.path} is of another checkpoint; give an empty --work folder")
    exported(network.checkpoint, network.folder / "fused.fp16.onnx", "fp16", network.dataset)
    network.engines["FP32"] = engine(network, floating, "fp32", "float")
    network.engines["bf16"] = engine(network, floating, "bf16", "float")
    for method in methods:
        name = f"INT8 {method}"
        path = network.folder / f"{method}.int8.onnx"
        start = perf_counter()
        network.int8[name] = once(path) or calibrate(
            floating.path,
            network.dataset.root,
            path,
            size=size,
            method=method.removesuffix("+search"),  # type: ignore[arg-type]
            max_drop=max_drop if method.endswith("+search") else None,
            seed=seed,
        )
        network.seconds[name] = perf_counter() - start
        network.engines[name] = engine(network, network.int8[name], "int8", method)


def build_qat(network: Network, run: Path, *, size: int, seed: int) -> None:
    """The INT8 engine of a fine-tuned run."""
    floating = exported(Checkpoint.load(run), network.folder / "qat.onnx")
    path = network.folder / "qat.int8.onnx"
    model = once(path) or calibrate(floating.path, network.dataset.root, path, size=size, method="auto", seed=seed)
    network.engines["INT8 QAT"] = engine(network, model, "int8", "qat")


def exported(
    checkpoint: Checkpoint, path: Path, precision: Precision = "fp32", dataset: VocDataset | None = None
) -> OnnxModel:
    """The graph of a checkpoint, from before where it is there; FP16 is scanned for overflow on training pictures."""
    from tsss_edge.export.graph import export_onnx

    pictures = [dataset.image_path(i) for i in dataset.ids("train")[:32]] if dataset else []
    return once(path) or export_onnx(checkpoint.path, path, precision=precision, check_images=pictures)


def once(path: Path) -> OnnxModel | None:
    """A graph made before, None where there is none."""
    return OnnxModel.load(path) if path.is_file() else None


def engine(network: Network, model: OnnxModel, precision: Precision, name: str) -> Engine:
    """A CPU engine, built again each time: it takes a second, and what is measured is what was just built."""
    from tsss_edge.config import load_target
    from tsss_edge.export.engine import build_engine

    out = network.folder / f"{name.replace(' ', '-')}.xml"
    return build_engine(model.path, load_target("cpu"), out, precision=precision)


def measure_rows(network: Network, args: argparse.Namespace) -> Iterator[Row]:
    """PyTorch and all engines: accuracy in one pass over the split, latency in alternating rounds."""
    require_same_classes(network.checkpoint.meta.classes, network.dataset)
    ids = network.dataset.ids(args.split)
    first_int8 = next(iter(network.int8.values()), None)
    paths = {
        "PyTorch FP32": network.checkpoint.path,
        "ONNX Runtime FP32": network.folder / "fused.onnx",
        "ONNX Runtime FP16": network.folder / "fused.fp16.onnx",
        **({"ONNX Runtime INT8": first_int8.path} if first_int8 else {}),
        **{f"OpenVINO {name}": engine.path for name, engine in network.engines.items()},
    }
    with ExitStack() as stack:
        stages = [
            Stage(name, path.name, stack.enter_context(open_backend(path, threads=args.threads)))
            for name, path in paths.items()
        ]
        measure(stages, network.dataset, ids, boundary_px=BOUNDARY_PX)
        times = time_networks([s.backend for s in stages], list(paths.values()), duration_s=args.duration)
    data_sha256 = network.dataset.split_hash(args.split)
    for stage, timed in zip(stages, times, strict=True):
        report = verdict(network, stages[0], stage, args, data_sha256)
        if (built := engine_of(network, stage)) is not None:
            built.with_record(parity=report.record())
        yield row(network, stage, report, timed)


def engine_of(network: Network, stage: Stage) -> Engine | None:
    return network.engines.get(stage.name.removeprefix("OpenVINO "))


def verdict(
    network: Network, reference: Stage, stage: Stage, args: argparse.Namespace, data_sha256: str
) -> ParityReport:
    """The gate on one engine alone."""
    built = engine_of(network, stage)
    ids = network.dataset.ids(args.split)
    return judge(
        [reference, stage],
        names=network.dataset.classes.names,
        max_drop=args.max_drop,
        leak=count_leak(built.record.calibration if built else None, network.dataset, ids),
        allow_leak=False,
        allow_gain=False,
        boundary_px=BOUNDARY_PX,
        split=args.split,
        data_sha256=data_sha256,
        notes=[],
        provenance={},
    )


def row(network: Network, stage: Stage, report: ParityReport, timed: Timed) -> Row:
    return Row(
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
        speedup=1 / timed.ratio,
        calibration_s=network.seconds.get(stage.name.removeprefix("OpenVINO ")),
    )


def page(table: Table) -> str:
    """The Markdown page: one table a network."""
    m = table.machine
    lines = [
        "# What quantization costs and gains",
        "",
        f"Accuracy on split `{table.split}`, against PyTorch FP32 of the same checkpoint, run in the same pass; gate at "
        f"{table.max_drop:.2f} mIoU points either way, {table.calibration_images} calibration pictures of the training split. "
        "Agreement, boundary agreement and the bootstrap interval are defined in [parity.md](../parity.md). Latency is "
        "the network alone, batch 1, all engines in alternating rounds of one process, so that the speed-ups hold though "
        "the machine was shared.",
        "",
        f"Machine: {m.cpu}, {m.cores} cores, {m.threads or 'all'} threads. Made by `scripts/quantization_table.py`, {table.tool}; "
        "the numbers are in the JSON twin of this page.",
        *(f"\nNote: {note}." for note in table.notes),
    ]
    for network in dict.fromkeys(r.network for r in table.rows):
        rows = [r for r in table.rows if r.network == network]
        lines += ["", f"## {network}", "", f"{rows[0].images} pictures.", "", *markdown(rows)]
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row]) -> list[str]:
    head = [
        "engine",
        "mIoU",
        "drop",
        "95% interval",
        "agreement",
        "at boundaries",
        "gate",
        "median ms",
        "best ms",
        "x PyTorch",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for r in rows:
        low, high = r.drop_interval
        cells = [
            r.engine, f"{r.miou:.2f}", f"{r.drop:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{r.pixel_agreement:.4f}",
            f"{r.boundary_agreement:.4f}", "passed" if r.passed else "FAILED", f"{r.p50_ms:.2f}", f"{r.best_ms:.2f}",
            f"{r.speedup:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
