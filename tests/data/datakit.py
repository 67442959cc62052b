"""A tiny hand-made set in VOC layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tsss_edge.data.check import CheckReport
from tsss_edge.data.voc import write_mask

# 0 background, 1 cat, 2 dog, 3 cow, 4 horse; strong below: cat and dog.
NAMES = ("background", "cat", "dog", "cow", "horse")
STRONG = ("cat", "dog")
ROWS = {
    "a": [0, 1, 1, 2],  # strong only
    "b": [0, 3, 3, 0],  # weak only
    "c": [0, 1, 3, 255],  # mixed
    "d": [0, 0, 0, 0],  # nothing: strong, its background is known
    "e": [4, 2, 3, 0],  # two weak, one strong
}


def write_set(root: Path, rows: dict[str, list[int]] = ROWS, *, csv: bool = True) -> Path:
    """Each image is 8 rows of the given 4 labels, every label 4 pixels wide."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    lines = ["id,classes"]
    for image_id, row in rows.items():
        mask = np.array(row, np.uint8).repeat(4)[None].repeat(8, 0)
        write_mask(root / f"SegmentationClass/{image_id}.png", mask)
        image = np.random.default_rng(len(lines)).integers(0, 256, (*mask.shape, 3), np.uint8)
        Image.fromarray(image).save(root / f"JPEGImages/{image_id}.jpg", quality=92)
        lines.append(f"{image_id},{' '.join(str(i) for i in sorted({*row} - {0, 255}))}")
    for split, ids in (("train", list(rows)), ("val", list(rows)[:2])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids) + "\n")
    if csv:
        (root / "image_labels.csv").write_text("\n".join(lines) + "\n")
    return root


def others_than_rare(report: CheckReport) -> list[str]:
    """Problems of a set but "no pixel of": a set of a few pictures has not every class."""
    return [problem for problem in report.problems if "no pixel of" not in problem]
