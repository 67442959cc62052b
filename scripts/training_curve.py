"""Run folders' log.jsonl -> one picture: val mIoU over epochs, a line for each run.

python scripts/training_curve.py --run edge-m runs/camvid-m --run edge-s runs/camvid-s --out docs/images/camvid-curve.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from pages import write_picture


def read_curve(run: Path) -> list[tuple[int, float]]:
    """(epoch, val mIoU in percent) of every epoch that was validated."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["miou"]) for line in lines if line.get("miou") is not None]


def draw(curves: dict[str, list[tuple[int, float]]]) -> Figure:
    """Name -> points; the legend gives each run's best value."""
    figure = Figure(figsize=(9.6, 4.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        epochs, mious = zip(*points, strict=True)
        axes.plot(epochs, mious, label=f"{name}: best {max(mious):.1f}")
    axes.set(xlabel="epoch", ylabel="val mIoU, percent", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    figure = draw({name: read_curve(Path(folder)) for name, folder in args.run})
    write_picture(figure, args.out)


if __name__ == "__main__":
    main()
