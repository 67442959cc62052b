"""CamVid runs -> docs/results/camvid.md, its JSON twin and the curve: settings, accuracy by class, engines side by side.

python scripts/camvid_page.py --data camvid --run edge-m runs/camvid-m --run edge-s runs/camvid-s \
    --loader edge-m m.json --loader edge-s s.json --work runs/camvid-page --out docs/results/camvid.md

The files of --loader are what scripts/loader_speed.py wrote on the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch
import training_curve

from tsss_edge import __version__
from tsss_edge.artifacts import Checkpoint, Struct
from tsss_edge.bench import Machine
from tsss_edge.bench.conditions import examine_machine, read_load, read_mhz
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.data.voc import VocDataset
from tsss_edge.evaluate import EvalReport, evaluate
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.files import write_bytes, write_json

CALIB_SET = "camvid-train-128"
TARGETS = {"edge-m": 70, "edge-s": 66}  # val mIoU, percent, in 60 minutes on 2 cores
NAMES = {"pytorch": "PyTorch FP32", "fp32": "OpenVINO FP32", "bf16": "OpenVINO bf16", "int8": "OpenVINO INT8"}


class Run(Struct, frozen=True):
    """One network: how it was trained, how fast training runs here, and what each of its engines scores on val."""

    name: str
    epochs: int
    pictures: int  # of an epoch
    settings: str  # config.toml
    loader: dict[str, float]
    scores: dict[str, EvalReport]  # pytorch, fp32, bf16, int8

    @property
    def minutes(self) -> float:
        """All epochs at the measured speed of a step with its loading, validation left out."""
        return self.epochs * self.pictures / self.loader["both_images_per_second"] / 60


class Results(Struct, frozen=True):
    """The page's numbers."""

    runs: tuple[Run, ...]
    machine: Machine
    date: str
    tool: str


def measure_run(name: str, folder: Path, data: Path, loader: Path, work: Path) -> Run:
    """Export, calibrate, build and evaluate; the engines stay in `work`."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return Run(
        name=name,
        epochs=len(lines),
        pictures=len(VocDataset.open(data).ids("train")),
        settings=(folder / "config.toml").read_text(),
        loader=json.loads(loader.read_text()),
        scores={key: evaluate(path, data) for key, path in engines(folder, data, work).items()},
    )


def engines(folder: Path, data: Path, work: Path) -> dict[str, Path]:
    """The checkpoint and every CPU engine of it."""
    checkpoint, target = Checkpoint.load(folder / "best.pt"), load_target("cpu")
    exported = export_onnx(checkpoint.path, work / "fused.onnx")
    int8 = calibrate(exported, data, work / "fused.int8.onnx", calib_set=CALIB_SET)
    graphs = {"fp32": exported.path, "bf16": exported.path, "int8": int8.path}
    built = {p: build_engine(graphs[p], target, work / "fused.xml", precision=p).path for p in ("fp32", "bf16", "int8")}
    return {"pytorch": checkpoint.path, **built}


def page(results: Results, picture: str) -> str:
    """The page as Markdown."""
    machine = f"{results.machine.cpu}, {results.machine.cores} cores, no GPU, {results.date}"
    sections = [HEAD.format(picture=picture, machine=machine), targets(results.runs)]
    sections += [engine_table(results.runs), class_table(results.runs)]
    sections += [
        speed_table(results.runs),
        *(f"## Settings of {r.name}\n\n```toml\n{r.settings}```\n" for r in results.runs),
    ]
    return "\n".join(sections)


HEAD = """# CamVid

367 training and 101 validation pictures of 480x360, 11 classes, no pretraining, network input 480x352; `val` chooses the
checkpoint, so its score is a little optimistic. One run each, one seed, on one thread:

    tsss-edge train supervised --data camvid --config SETTINGS.toml --out runs/camvid-m

with the settings at the end of this page. Measured on: {machine}.

![val mIoU over epochs]({picture})
"""


def targets(runs: tuple[Run, ...]) -> str:
    rows = "".join(
        f"| {run.name} | {TARGETS[run.name]} | {(miou := run.scores['pytorch'].miou):.2f} | "
        f"{'met' if miou >= TARGETS[run.name] else 'missed'} |\n"
        for run in runs
        if run.name in TARGETS
    )
    return f"| network | target, val mIoU | measured | |\n|---|---|---|---|\n{rows}"


def engine_table(runs: tuple[Run, ...]) -> str:
    rows = "".join(
        f"| {run.name} | {NAMES[key]} | {score.miou:.2f} | {run.scores['pytorch'].miou - score.miou:+.2f} | "
        f"{score.pixel_accuracy:.4f} |\n"
        for run in runs
        for key, score in run.scores.items()
    )
    head = "| network | engine | val mIoU | drop | pixel accuracy |\n|---|---|---|---|---|\n"
    return f"## Engines side by side\n\nINT8 ranges: minmax on {CALIB_SET}.\n\n{head}{rows}"


def class_table(runs: tuple[Run, ...]) -> str:
    classes = list(runs[0].scores["pytorch"].per_class)
    head = f"| class | {' | '.join(run.name for run in runs)} |\n|---|{'---|' * len(runs)}\n"
    rows = (
        f"| {name} | {' | '.join(percent(run.scores['pytorch'].per_class[name]) for run in runs)} |\n"
        for name in classes
    )
    return f"## IoU by class (PyTorch)\n\n{head}{''.join(rows)}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def speed_table(runs: tuple[Run, ...]) -> str:
    head = "| network | loader alone | step alone | both | loader's share | epochs | minutes |\n|---|---|---|---|---|---|---|\n"
    rows = "".join(
        f"| {run.name} | {run.loader['loader_images_per_second']:.0f} | {run.loader['step_images_per_second']:.1f} | "
        f"{run.loader['both_images_per_second']:.1f} | {100 * run.loader['share']:.1f}% | {run.epochs} | "
        f"{run.minutes:.0f} |\n"
        for run in runs
    )
    return f"## Speed of training\n\nPictures per second on {runs[0].loader['threads']:.0f} thread(s), bf16; {SPEED}\n\n{head}{rows}"


SPEED = "minutes are epochs at that speed, without validation."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--loader", nargs=2, action="append", required=True, metavar=("NAME", "JSON"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    mhz, load = read_mhz(), read_load()
    loaders = dict(args.loader)
    runs = tuple(
        measure_run(name, Path(folder), args.data, Path(loaders[name]), args.work / name) for name, folder in args.run
    )
    machine = examine_machine(threads=torch.get_num_threads(), mhz_before=mhz, load_before=load)
    results = Results(
        runs=runs, machine=machine, date=datetime.date.today().isoformat(), tool=f"tsss-edge {__version__}"
    )
    picture = args.out.parents[1] / "images" / f"{args.out.stem}-curve.png"
    training_curve.main([*(v for name, folder in args.run for v in ("--run", name, folder)), "--out", str(picture)])
    write_bytes(args.out, page(results, f"../images/{picture.name}").encode())
    write_json(args.out.with_suffix(".json"), results)


if __name__ == "__main__":
    main()
