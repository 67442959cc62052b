"""CamVid runs -> docs/results/camvid.md, its JSON twin and the curve: settings, accuracy by class, engines side by side.

python scripts/camvid_page.py --data camvid --run edge-m runs/camvid-m --run edge-s runs/camvid-s \
    --work runs/camvid-page --out docs/results/camvid.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import training_curve
from pages import TOOL, met, percent, table, today, watch_machine, write_page

from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.bench import Machine
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.scoring import EvalReport, evaluate

CALIB_SET = "camvid-train-128"
TARGETS = {"edge-m": 70, "edge-s": 66}  # val mIoU, percent, in 60 minutes on 2 cores
NAMES = {"pytorch": "PyTorch FP32", "fp32": "OpenVINO FP32", "bf16": "OpenVINO bf16", "int8": "OpenVINO INT8"}


class NetworkRun(Struct, frozen=True):
    """One network: how and how long it was trained, and what each of its engines scores on val."""

    name: str
    epochs: int
    minutes: float  # of training, validation included
    settings: str  # config.toml
    scores: dict[str, EvalReport]  # pytorch, fp32, bf16, int8


class CamvidResults(Struct, frozen=True):
    """The page's numbers."""

    runs: tuple[NetworkRun, ...]
    machine: Machine
    date: str
    tool: str


def measure_run(name: str, folder: Path, data: Path, work: Path) -> NetworkRun:
    """Export, calibrate, build and evaluate; the engines stay in `work`."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return NetworkRun(
        name=name,
        epochs=len(log),
        minutes=sum(line["seconds"] for line in log) / 60,
        settings=(folder / "config.toml").read_text(),
        scores={key: evaluate(path, data) for key, path in engines(folder, data, work).items()},
    )


def engines(folder: Path, data: Path, work: Path) -> dict[str, Path]:
    """The checkpoint and every CPU engine of it."""
    checkpoint, target = Checkpoint.load(folder / "best.pt"), load_target("cpu")
    float_graph = export_onnx(checkpoint, work / "fused.onnx")
    int8_graph = calibrate(float_graph, data, work / "fused.int8.onnx", calib_set=CALIB_SET)
    graphs = {"fp32": float_graph, "bf16": float_graph, "int8": int8_graph}
    built = {p: build_engine(graphs[p], target, work / "fused.xml", precision=p).path for p in ("fp32", "bf16", "int8")}
    return {"pytorch": checkpoint.path, **built}


def page(results: CamvidResults, picture: str) -> str:
    """The page as Markdown."""
    machine = f"{results.machine.cpu}, {results.machine.cores} cores, no GPU, {results.date}"
    runs = results.runs
    sections = [HEAD.format(picture=picture, machine=machine), targets(runs), engine_table(runs), class_table(runs)]
    sections += [f"## Settings of {run.name}\n\n```toml\n{run.settings}```" for run in runs]
    return "\n\n".join(sections) + "\n"


HEAD = """# CamVid

367 training and 101 validation pictures of 480x360, 11 classes, no pretraining, network input 480x352; `val` chooses the
checkpoint, so its score is a little optimistic. One run each, one seed, on one thread:

    tsss-edge train supervised --data camvid --config SETTINGS.toml --out runs/camvid-m

with the settings at the end of this page. Measured on: {machine}.

![val mIoU over epochs]({picture})"""


def targets(runs: tuple[NetworkRun, ...]) -> str:
    rows = [
        (run.name, str(TARGETS[run.name]), f"{miou:.2f}", met(miou >= TARGETS[run.name]), *times(run))
        for run in runs
        if run.name in TARGETS and (miou := run.scores["pytorch"].miou)
    ]
    return table(("network", "target, val mIoU", "measured", "", "epochs", "minutes of training"), rows)


def times(run: NetworkRun) -> tuple[str, str]:
    return str(run.epochs), f"{run.minutes:.0f}"


def engine_table(runs: tuple[NetworkRun, ...]) -> str:
    rows = [
        (
            run.name,
            NAMES[key],
            f"{score.miou:.2f}",
            f"{run.scores['pytorch'].miou - score.miou:+.2f}",
            f"{score.pixel_accuracy:.4f}",
        )
        for run in runs
        for key, score in run.scores.items()
    ]
    found = table(("network", "engine", "val mIoU", "drop", "pixel accuracy"), rows)
    return f"## Engines side by side\n\nINT8 ranges: minmax on {CALIB_SET}.\n\n{found}"


def class_table(runs: tuple[NetworkRun, ...]) -> str:
    scores = [run.scores["pytorch"].per_class for run in runs]
    rows = [(name, *(percent(score[name]) for score in scores)) for name in scores[0]]
    return f"## IoU by class (PyTorch)\n\n{table(('class', *(run.name for run in runs)), rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    machine = watch_machine(torch.get_num_threads())
    runs = tuple(measure_run(name, Path(folder), args.data, args.work / name) for name, folder in args.run)
    results = CamvidResults(runs=runs, machine=machine(), date=today(), tool=TOOL)
    picture = args.out.parents[1] / "images" / f"{args.out.stem}-curve.png"
    training_curve.main([*(v for name, folder in args.run for v in ("--run", name, folder)), "--out", str(picture)])
    write_page(args.out, page(results, f"../images/{picture.name}"), results)


if __name__ == "__main__":
    main()
