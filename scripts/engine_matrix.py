"""Every TensorRT-RTX engine that can be asked for, built here without a GPU -> docs/results/engines.json and engines.md.

    python scripts/engine_matrix.py --out docs/results [--size 512] [--reuse]

Networks have random weights with batch norms that know their pictures: training changes neither build time nor plan size.
Each plan is compared with what the stock builder makes of the same graph, by a script that is not ours
(scripts/plain_tensorrt_rtx.py), and offered to the stock runtime. The tests of damaged engines and of the table of TensorRT names
run too; `--reuse` keeps the engines of the last run and repeats the rest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import nn

from tsss_edge.acceptance.steps import junit_counts
from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Head, Precision, Preprocess
from tsss_edge.backends.plan import read_header
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.doctor.host import cpu_name, isa_flags, usable_cores
from tsss_edge.export.engine import build_engine
from tsss_edge.export.graph import export_onnx
from tsss_edge.models import build_model

NETWORKS = ("edge-s", "edge-m")
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
SHAPES = {"static": (1, 1, 1), "profile": (1, 2, 4)}
CLASSES = 21  # of PASCAL VOC
PICTURES = 8  # calibrate: ranges matter for accuracy, which is not measured here
PLAIN = Path(__file__).with_name("plain_tensorrt_rtx.py")
MIB = 1 << 20
CHECKS = {
    "damaged engines and records, each refused in one line": "tests/export/test_corruption.py",
    "TensorRT names against 8.5.3, 8.6.1, 10.3.0, 10.16.0, 11.4.0, RTX 1.7.1": "tests/backends/test_trt_api.py",
}


def picture(seed: int, size: int) -> np.ndarray:
    """(size,size,3) uint8: soft colour fields with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (size // 32, size // 32, 3)).repeat(32, 0).repeat(32, 1)
    return np.clip(coarse + rng.normal(0, 16, coarse.shape), 0, 255).astype(np.uint8)


def write_set(folder: Path, size: int) -> Path:
    """A training split of pictures without masks' worth: enough for `calibrate`."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for i in range(PICTURES):
        Image.fromarray(picture(i, size)).save(folder / f"JPEGImages/{i}.png")
        Image.fromarray(np.full((size, size), i % CLASSES, np.uint8)).save(folder / f"SegmentationClass/{i}.png")
    (folder / "ImageSets/Segmentation/train.txt").write_text("".join(f"{i}\n" for i in range(PICTURES)))
    return folder


def write_checkpoint(path: Path, arch: str, size: int) -> Checkpoint:
    """Random weights, batch norm statistics of our pictures."""
    torch.manual_seed(0)
    net = build_model(arch, num_classes=CLASSES)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
    batch = np.stack([picture(seed, size) for seed in range(100, 104)])
    with torch.no_grad():
        net.train()(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
    names = ("background", *(f"class {i}" for i in range(1, CLASSES)))
    meta = CheckpointMeta(
        stage="supervised", arch=arch, classes=Classes(names=names), preprocess=Preprocess(size_hw=(size, size))
    )
    return Checkpoint.save(path, meta, net.state_dict())


def build_all(folder: Path, size: int) -> list[dict[str, Any]]:
    """One row an engine."""
    data = write_set(folder / "data", size)
    rows = []
    for arch in NETWORKS:
        checkpoint = write_checkpoint(folder / f"{arch}.pt", arch, size).path
        for head, objectness, shapes in itertools.product(get_args(Head), (False, True), SHAPES):
            graph = folder / f"{arch}-{head}{'-objectness' * objectness}-{shapes}.onnx"
            batch = 1 if shapes == "static" else 0
            export_onnx(checkpoint, graph, head=cast(Head, head), objectness=objectness, batch=batch)
            int8 = calibrate(graph, data, graph.with_suffix(".int8.onnx")).path
            for precision in PRECISIONS:
                row = {
                    "network": arch,
                    "head": head,
                    "objectness": objectness,
                    "shapes": shapes,
                    "precision": precision,
                }
                rows.append(row | build_one(int8 if precision == "int8" else graph, precision, SHAPES[shapes]))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def time_repeated(folder: Path, size: int) -> list[dict[str, Any]]:
    """Head `logits`, static: seconds of three builds each, so that what a busy machine adds can be told."""
    data = write_set(folder / "data", size)
    rows = []
    for arch in NETWORKS:
        graph = export_onnx(write_checkpoint(folder / f"{arch}.pt", arch, size).path, folder / f"{arch}.onnx").path
        int8 = calibrate(graph, data, graph.with_suffix(".int8.onnx")).path
        for precision in PRECISIONS:
            source = int8 if precision == "int8" else graph
            seconds = [time_build(source, precision) for _ in range(3)]
            rows.append({"network": arch, "precision": precision, "build_s": [round(s, 2) for s in seconds]})
    return rows


def time_build(graph: Path, precision: Precision) -> float:
    """Seconds of one `build_engine`."""
    begin = time.perf_counter()
    build_engine(graph, load_target("rtx"), graph.with_suffix(".engine"), precision=precision)
    return time.perf_counter() - begin


def build_one(graph: Path, precision: Precision, batch: tuple[int, int, int]) -> dict[str, Any]:
    """Build, then ask the stock builder and runtime."""
    target = msgspec.structs.replace(load_target("rtx"), batch=batch)
    begin = time.perf_counter()
    engine = build_engine(graph, target, graph.with_suffix(".engine"), precision=precision)
    seconds = time.perf_counter() - begin
    flags = engine.record.flags
    parsed = engine.path.parent / str(flags.get("parsed_onnx") or flags["onnx"])
    profile = [str(n) for n in batch] if batch[0] != batch[2] else []
    plain = [sys.executable, "-I", str(PLAIN), str(engine.path), str(parsed), *profile]
    told = json.loads(subprocess.run(plain, capture_output=True, check=True, text=True).stdout)
    return {
        "build_s": round(seconds, 2),
        "plan_mib": round(engine.path.stat().st_size / MIB, 2),
        "convolutions": flags["typed"],
        "capabilities": list(read_header(engine.path).compute_capabilities),
        "differs_from_stock": told["differs"],
        "stock_differs_from_itself": told["stock_differs"],
        "stock_runtime": "loads" if told["loads"] else told["refusal"],
        "version": engine.record.versions["tensorrt-rtx"],
    }


def spread(rows: list[dict[str, Any]], key: str) -> str:
    """Smallest to largest of a column, zeros left out."""
    values = [row[key] for row in rows if row[key]]
    return f"{min(values)} to {max(values)}" if values else "0"


def page(report: dict[str, Any]) -> str:
    """engines.md."""
    rows = report["engines"]
    assert all(row["differs_from_stock"] is not None for row in rows), "a plan of another length than the stock one"
    checks = [
        f"- {name}: {', '.join(f'{n} {what}' for what, n in told.items())} (`{CHECKS[name]}`)."
        for name, told in report["checks"].items()
    ]
    answers = sorted({row["stock_runtime"] for row in rows})
    head = [
        "# TensorRT-RTX engines built without a GPU", "",
        f"{len(rows)} engines, {report['size']}x{report['size']} input, TensorRT-RTX {rows[0]['version']}; {report['machine']}, "
        f"{report['date']}. Random weights: training changes neither time nor size. Command: `{report['command']}`.", "",
        f"- Against the stock builder on the same ONNX file (`scripts/plain_tensorrt_rtx.py` imports nothing of this project): "
        f"{sum(r['differs_from_stock'] == 0 for r in rows)} plans are the same byte for byte, all {len(rows)} have the same length;",
        f"  the others, with free shapes, differ in {spread(rows, 'differs_from_stock')} bytes, two stock builds of them in "
        f"{spread(rows, 'stock_differs_from_itself')}.",
        f"- The stock runtime's answer to all of them: {'; '.join(f'`{a}`' for a in answers)}",
        "- Seconds are of the whole `build-engine` call: reading the graph, casts, a builder process of its own, hashes. The "
        "machine was shared with other work during the table; best of three builds with nothing beside them: "
        + ", ".join(f"{r['network']} {r['precision']} {min(r['build_s']):.2f} s" for r in report["repeated"])
        + ".",
        "- Profile: batches of 1 to 4, best at 2. INT8 engines are INT8+FP16: the last column counts convolutions.",
        *checks, "",
        "| network | head | objectness | shapes | precision | build s | plan MiB | convolutions |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines = [
        f"| {r['network']} | {r['head']} | {'yes' if r['objectness'] else 'no'} | {r['shapes']} | {r['precision']} | {r['build_s']:.1f} | "
        f"{r['plan_mib']:.2f} | {', '.join(f'{n} {k}' for k, n in r['convolutions'].items())} |"
        for r in rows
    ]
    return "\n".join([*head, *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for engines.json and engines.md")
    parser.add_argument("--size", type=int, default=512, help="side of the input")
    parser.add_argument("--reuse", action="store_true", help="keep the engines of the last run, repeat the checks")
    options = parser.parse_args()
    report = json.loads((options.out / "engines.json").read_text()) if options.reuse else measure(options)
    with tempfile.TemporaryDirectory() as folder:
        report["repeated"] = time_repeated(Path(folder), report["size"])
    report["checks"] = {name: run_tests(file) for name, file in CHECKS.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "engines.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.out / "engines.md").write_text(page(report))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything but the checks."""
    with tempfile.TemporaryDirectory() as folder:
        rows = build_all(Path(folder), options.size)
    return {
        "command": f"python scripts/engine_matrix.py --out {options.out} --size {options.size}",
        "date": date.today().isoformat(),
        "machine": f"{usable_cores()}-core {cpu_name()} ({', '.join(isa_flags())}), {platform.system()}, no GPU",
        "size": options.size,
        "engines": rows,
    }


def run_tests(file: str) -> dict[str, int]:
    """passed, failed, skipped of one test file."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={told}", file]
        subprocess.run(command, cwd=PLAIN.parents[1], capture_output=True, check=False)
        return junit_counts(told)


if __name__ == "__main__":
    main()
