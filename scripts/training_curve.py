"""Run folders' log.jsonl -> one picture: val mIoU over epochs, a line for each run.

python scripts/training_curve.py --run edge-m runs/camvid-m --run edge-s runs/camvid-s --out docs/images/camvid-curve.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tsss_edge.files import atomic_path

SIZE_WH, LEFT, RIGHT, TOP, BOTTOM = (960, 480), 70, 20, 20, 60  # pixels: picture, and margins of the axes
COLORS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))
GRID, INK = (225, 225, 225), (40, 40, 40)


@dataclass(frozen=True)
class Axes:
    """Where a value lies in the picture: epochs 0 to `epochs`, mIoU 0 to 100."""

    epochs: int

    def xy(self, epoch: float, miou: float) -> tuple[float, float]:
        width, height = SIZE_WH[0] - LEFT - RIGHT, SIZE_WH[1] - TOP - BOTTOM
        return LEFT + width * epoch / self.epochs, TOP + height * (1 - miou / 100)


def read_curve(run: Path) -> list[tuple[int, float]]:
    """(epoch, val mIoU in percent) of every epoch that was validated."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["miou"]) for line in lines if line.get("miou") is not None]


def draw(curves: dict[str, list[tuple[int, float]]]) -> Image.Image:
    """Name -> points; the legend gives each run's best value."""
    axes = Axes(max(epoch for points in curves.values() for epoch, _ in points))
    image = Image.new("RGB", SIZE_WH, "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    draw_grid(canvas, axes, font)
    for row, ((name, points), color) in enumerate(zip(curves.items(), COLORS, strict=False)):
        canvas.line([axes.xy(*point) for point in points], fill=color, width=3, joint="curve")
        x, y = axes.xy(axes.epochs, 0)
        text = f"{name}: best {max(miou for _, miou in points):.1f}"
        canvas.text((x - 10, y - 30 - 24 * row), text, fill=color, font=font, anchor="rm")
    return image


def draw_grid(canvas: ImageDraw.ImageDraw, axes: Axes, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    """Lines every 10 points of mIoU and every tenth of the epochs, with their numbers."""
    for miou in range(0, 101, 10):
        canvas.line([axes.xy(0, miou), axes.xy(axes.epochs, miou)], fill=GRID)
        x, y = axes.xy(0, miou)
        canvas.text((x - 8, y), str(miou), fill=INK, font=font, anchor="rm")
    for epoch in range(0, axes.epochs + 1, max(1, round(axes.epochs / 10))):
        canvas.line([axes.xy(epoch, 0), axes.xy(epoch, 100)], fill=GRID)
        x, y = axes.xy(epoch, 0)
        canvas.text((x, y + 8), str(epoch), fill=INK, font=font, anchor="mt")
    x, y = axes.xy(axes.epochs / 2, 0)
    canvas.text((x, y + 32), "epoch", fill=INK, font=font, anchor="mt")
    canvas.text((LEFT + 8, TOP + 8), "val mIoU, percent", fill=INK, font=font)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    image = draw({name: read_curve(Path(folder)) for name, folder in args.run})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out) as temporary:
        image.save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
