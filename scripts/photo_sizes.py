"""Networks of photographs at several input sizes: INT8 mIoU over core-ms, a picture and its numbers.

    python scripts/photo_sizes.py runs/lite0 runs/student --data voc_photos --out runs/sizes --page docs/results/photos-sizes.md

Each run's weights are exported at every size, calibrated there (percentile, biases corrected) and scored on "val"; all engines are
timed in one run, in alternation, on one thread. No network is trained at another size than its own, so a smaller or larger picture costs
and loses what it does here, not what a network trained there would.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import torch
from matplotlib.figure import Figure
from pages import command, table, today, watch_machine, write_page, write_picture

from tsss_edge.artifacts import Checkpoint, Engine, Struct
from tsss_edge.backends import open_backend
from tsss_edge.bench import Machine, time_networks
from tsss_edge.calib.calibrate import calibrate
from tsss_edge.config import load_target
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.onnxgraph.qdq import PairOptions
from tsss_edge.scoring import evaluate

SIZES = (224, 256, 320, 384, 448, 512)
SCORED = ("background", "cat", "cow", "dog", "horse", "person", "sheep")  # with at least 30 pictures of val


class Point(Struct, frozen=True):
    """A network at a size. mIoU in percent: over SCORED (float and INT8), and over all classes (INT8); core-ms a picture, INT8."""

    run: str
    arch: str
    size: int
    trained_at: int
    float_miou7: float
    miou7: float
    miou: float
    core_ms: float


class Sizes(Struct, frozen=True):
    """The points, and what they were measured on."""

    points: tuple[Point, ...]
    machine: Machine
    date: str
    command: str


def main() -> None:
    """Build, score, time, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for graphs and engines")
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--weight-bits", type=int, default=8, help="7 where the CPU has no VNNI")
    parser.add_argument("--pictures", type=int, default=128, help="for calibration")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [(Checkpoint.load(run), int(size)) for run in args.runs for size in args.sizes.split(",")]
    pairs = PairOptions(weight_bits=args.weight_bits)
    engines = [build(run, size, args.data, args.out, pairs, args.pictures) for run, size in wanted]
    watched = watch_machine(1)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_backend(engine, threads=1)) for engine, _ in engines]
        timed = time_networks(opened, [engine.path.name for engine, _ in engines], duration_s=args.seconds)
    machine = watched()
    points = []
    for (run, size), (engine, float_miou7), time in zip(wanted, engines, timed, strict=True):
        miou7, miou = scored(engine.path, args.data)
        trained_at = run.meta.preprocess.size_hw[0]
        points.append(
            Point(name_of(run), run.meta.arch, size, trained_at, float_miou7, miou7, miou, time.latency_ms.p50)
        )
        print(points[-1], flush=True)
    study = Sizes(tuple(points), machine, today(), command("photo_sizes.py"))
    picture = args.page.with_suffix(".png")
    write_picture(draw(study), picture)
    write_page(args.page, page(study, picture.name), study)


def name_of(run: Checkpoint) -> str:
    """The run folder's."""
    return run.path.parent.name


def build(run: Checkpoint, size: int, data: Path, out: Path, pairs: PairOptions, pictures: int) -> tuple[Engine, float]:
    """The INT8 engine of a run's weights at another size, and the float graph's mIoU over SCORED."""
    folder = out / f"{name_of(run)}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    replace = msgspec.structs.replace
    meta = replace(run.meta, preprocess=replace(run.meta.preprocess, size_hw=(size, size)))
    resized = Checkpoint.save(folder / "best.pt", meta, run.state())
    graph = export_onnx(resized, folder / "fused.onnx")
    int8 = calibrate(
        graph, data, folder / "int8.onnx", size=pictures, method="percentile", options=pairs, bias_correction=True
    )
    return build_engine(int8, load_target("cpu"), folder / "net.xml", precision="int8"), scored(graph.path, data)[0]


def scored(model: Path, data: Path) -> tuple[float, float]:
    """mIoU on "val" over SCORED, and over all classes, percent."""
    report = evaluate(model, data, threads=1)
    return float(np.mean([report.per_class[name] or 0.0 for name in SCORED])), report.miou


def page(study: Sizes, picture: str) -> str:
    """As Markdown."""
    columns = ("network", "input", "float miou7", "INT8 miou7", "INT8, all 21", "core-ms, INT8")
    rows = [
        (
            f"{p.run} ({p.arch}, trained at {p.trained_at})",
            f"{p.size}x{p.size}",
            *(f"{v:.2f}" for v in (p.float_miou7, p.miou7, p.miou, p.core_ms)),
        )
        for p in study.points
    ]
    machine = f"{study.machine.cpu}, {study.machine.cores} cores, no GPU, {study.date}"
    return HEAD.format(picture=picture, table=table(columns, rows), machine=machine, command=study.command)


def draw(study: Sizes) -> Figure:
    """INT8 mIoU over the seven classes over INT8 core-ms, a line a network, sizes beside the points."""
    figure = Figure(figsize=(9.6, 5.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for run in dict.fromkeys(p.run for p in study.points):
        points = [p for p in study.points if p.run == run]
        axes.plot([p.core_ms for p in points], [p.miou7 for p in points], "o-", label=f"{run} ({points[0].arch})")
        for p in points:
            axes.annotate(str(p.size), (p.core_ms, p.miou7), textcoords="offset points", xytext=(5, -11))
    axes.set(xlabel="INT8, core-ms a picture", ylabel="mIoU over the seven classes, percent")
    axes.legend()
    axes.margins(x=0.1)
    axes.grid(alpha=0.3)
    return figure


HEAD = """# Photographs: accuracy over core-ms by input size

INT8 engines of networks that were trained on `voc_photos`, each trained at one size and run at all of these.
[photos.md](photos.md) says how they were made.

![mIoU over core-ms]({picture})

{table}

- **miou7**: mean over background, cat, cow, dog, horse, person and sheep, on the 242 validation pictures.
- **core-ms**: OpenVINO, one thread, network alone, medians of all engines in alternation.
- No network was trained at another size than its own, so the ends of a line say what a smaller or larger picture costs and
  loses, not what a network trained there would reach.

Measured on: {machine}.

    {command}
"""


if __name__ == "__main__":
    main()
