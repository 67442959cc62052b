"""Every TensorRT-RTX engine that can be asked for, built here without a GPU -> docs/results/engines.json and engines.md.

    python scripts/engine_matrix.py --out docs/results [--size 512] [--reuse]

Networks have random weights with batch norms that know their pictures: training changes neither build time nor plan size.
Each plan is compared with what the stock builder makes of the same graph, by a script that is not ours
(scripts/plain_tensorrt_rtx.py), and offered to the stock runtime. The tests of damaged engines and of the table of TensorRT names
run too. `--reuse` builds and times again, but keeps what the stock builder and runtime said in the last run.
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
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import nn

from tsss_edge.acceptance.steps import junit_counts
from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Engine, Head, Precision, Preprocess
from tsss_edge.backends.plan import read_header
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.doctor.host import cpu_name, isa_flags
from tsss_edge.export.build import build_engine, engine_path
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.machine import usable_cores
from tsss_edge.models import build_model

NETWORKS = ("edge-s", "edge-m")
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
SHAPES = {"static": (1, 1, 1), "profile": (1, 2, 4)}
CLASSES = 21  # of PASCAL VOC
PICTURES = 8  # calibrate: ranges matter for accuracy, which is not measured here
PLAIN = Path(__file__).with_name("plain_tensorrt_rtx.py")
MIB = 1 << 20
STOCK = ("differs_from_stock", "stock_differs_from_itself", "stock_runtime")
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


def graphs(folder: Path, size: int) -> Iterator[tuple[dict[str, Any], Path]]:
    """(what it is, ONNX file) of every engine."""
    data = write_set(folder / "data", size)
    for arch in NETWORKS:
        checkpoint = write_checkpoint(folder / f"{arch}.pt", arch, size).path
        for head, objectness, shapes in itertools.product(get_args(Head), (False, True), SHAPES):
            graph = folder / f"{arch}-{head}{'-objectness' * objectness}-{shapes}.onnx"
            batch = 1 if shapes == "static" else 0
            export_onnx(checkpoint, graph, head=cast(Head, head), objectness=objectness, batch=batch)
            int8 = calibrate(graph, data, graph.with_suffix(".int8.onnx")).path
            for precision in PRECISIONS:
                what = {
                    "network": arch,
                    "head": head,
                    "objectness": objectness,
                    "shapes": shapes,
                    "precision": precision,
                }
                yield what, int8 if precision == "int8" else graph


def build(what: dict[str, Any], graph: Path) -> dict[str, Any]:
    """Build one engine and time it."""
    target = msgspec.structs.replace(load_target("rtx"), batch=SHAPES[what["shapes"]])
    begin = time.perf_counter()
    engine = build_engine(graph, target, graph.with_suffix(".engine"), precision=what["precision"])
    seconds = time.perf_counter() - begin
    return what | {
        "build_s": round(seconds, 2),
        "plan_mib": round(engine.path.stat().st_size / MIB, 2),
        "convolutions": engine.record.build.typed,
        "capabilities": list(read_header(engine.path).compute_capabilities),
        "version": engine.record.versions["tensorrt-rtx"],
    }


def ask_stock(what: dict[str, Any], graph: Path) -> dict[str, Any]:
    """Compare the plan with two stock builds of the same graph, and offer it to the stock runtime."""
    engine = Engine.load(engine_path(graph, load_target("rtx"), what["precision"]))
    flags, batch = engine.record.flags, SHAPES[what["shapes"]]
    parsed = engine.path.parent / str(flags.get("parsed_onnx") or flags["onnx"])
    profile = [str(n) for n in batch] if batch[0] != batch[2] else []
    plain = [sys.executable, "-I", str(PLAIN), str(engine.path), str(parsed), *profile]
    told = json.loads(subprocess.run(plain, capture_output=True, check=True, text=True).stdout)
    return {
        "differs_from_stock": told["differs"],
        "stock_differs_from_itself": told["stock_differs"],
        "stock_runtime": "loads" if told["loads"] else told["refusal"],
    }


def against_stock(rows: list[dict[str, Any]]) -> list[str]:
    """Lines that say how the plans compare with the stock builder's."""
    static = [row for row in rows if row["shapes"] == "static"]
    free = [row for row in rows if row["shapes"] != "static"]
    same = sum(row["differs_from_stock"] == 0 for row in static)
    ours, theirs = (sum(row[key] != 0 for row in free) for key in ("differs_from_stock", "stock_differs_from_itself"))
    return [
        "- Against the stock builder on the same ONNX file (`scripts/plain_tensorrt_rtx.py` imports nothing of this project): "
        f"**{same} of {len(static)}** plans of static shapes are the same byte for byte.",
        f"- With a profile the stock builder does not repeat itself: two stock builds differ in {theirs} of {len(free)} cases, ours and a "
        f"stock build in {ours} of {len(free)} (engines.json has the bytes; a shift inside counts every byte after it).",
    ]


def page(report: dict[str, Any]) -> str:
    """engines.md."""
    rows = report["engines"]
    assert all(row["differs_from_stock"] == 0 for row in rows if row["shapes"] == "static"), (
        "a plan unlike the stock one"
    )
    checks = [
        f"- {name}: {', '.join(f'{n} {what}' for what, n in told.items())} (`{CHECKS[name]}`)."
        for name, told in report["checks"].items()
    ]
    answers = sorted({row["stock_runtime"] for row in rows})
    head = [
        "# TensorRT-RTX engines built without a GPU", "",
        f"{len(rows)} engines, {report['size']}x{report['size']} input, TensorRT-RTX {rows[0]['version']}; {report['machine']}, "
        f"{report['date']}. Random weights: training changes neither time nor size. Command: `{report['command']}`.", "",
        *against_stock(rows),
        f"- The stock runtime's answer to all of them: {'; '.join(f'`{a}`' for a in answers)}. "
        "Without a driver it says so of a damaged plan too: on a GPU, `python scripts/plain_tensorrt_rtx.py ENGINE` "
        "tells whether the plan loads.",
        "- Seconds are of one whole `build-engine` call: reading the graph, casts, a builder process of its own, hashes.",
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
    parser.add_argument("--reuse", action="store_true", help="keep what the stock builder said in the last run")
    options = parser.parse_args()
    known = {}
    if options.reuse:
        old = json.loads((options.out / "engines.json").read_text())["engines"]
        known = {name_of(row): {key: row[key] for key in STOCK} for row in old}
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for what, graph in graphs(Path(folder), options.size):
            rows.append(build(what, graph) | (known.get(name_of(what)) or ask_stock(what, graph)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    report = {
        "command": f"python scripts/engine_matrix.py --out {options.out} --size {options.size}",
        "date": date.today().isoformat(),
        "machine": f"{usable_cores()}-core {cpu_name()} ({', '.join(isa_flags())}), {platform.system()}, no GPU",
        "size": options.size,
        "engines": rows,
        "checks": {name: run_tests(file) for name, file in CHECKS.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "engines.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.out / "engines.md").write_text(page(report))


def name_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What an engine is, without its numbers."""
    return tuple(row[key] for key in ("network", "head", "objectness", "shapes", "precision"))


def run_tests(file: str) -> dict[str, int]:
    """passed, failed, skipped of one test file."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={told}", file]
        subprocess.run(command, cwd=PLAIN.parents[1], capture_output=True, check=False)
        return junit_counts(told)


if __name__ == "__main__":
    main()
