"""What the guided filter of the labels does on a set: true masks through a stride-8 grid, and back, with and without it.

python scripts/edge_filter.py DATA [--split val] [--size 160]

A stand-in for a perfect L-Net: the share of object in each cell of the network's grid. Printed: object IoU in percent of
its upsampled map above 0.5, by radius (a share of the shorter side) and eps of the filter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from tsss_edge.artifacts import IGNORE, Preprocess
from tsss_edge.data.voc import VocDataset
from tsss_edge.label.annotate import EdgeFit, sharpened
from tsss_edge.metrics import ConfusionMatrix
from tsss_edge.train.validate import Views, object_truth

RADII, EPS = (1 / 64, 1 / 32, 1 / 16, 1 / 8), (1e-4, 1e-3, 1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--size", type=int, default=160, help="network input, a multiple of 32")
    given = parser.parse_args()
    dataset = VocDataset.open(given.data)
    ids = [i for i in dataset.ids(given.split) if (dataset.mask(i) % IGNORE).any()]
    views = Views(dataset, ids, Preprocess(size_hw=(given.size, given.size)))
    configs = {"none": None, **{f"{r:.4f} {e:g}": EdgeFit(radius=r, eps=e) for r in RADII for e in EPS}}
    counts = {name: ConfusionMatrix(2) for name in configs}
    for image_id in ids:
        truth, picture = dataset.mask(image_id), dataset.image(image_id)
        grid = _grid((truth % IGNORE > 0).astype(np.float32), views)
        for name, config in configs.items():
            seen = sharpened(grid, picture, views.preprocess, config)[0] > 0.5
            counts[name].update(seen.astype(np.uint8), object_truth(truth))
    print(f"{given.data.name} {given.split}: {len(ids)} pictures at {given.size}x{given.size}; radius, eps: object IoU")
    for name, matrix in counts.items():
        print(f"{name:>14}: {100 * matrix.iou[1]:.2f}")


def _grid(objects: np.ndarray, views: Views) -> np.ndarray:
    """(1,h,w) share of object in each stride-8 cell of the network input."""
    placement = views.preprocess.place((objects.shape[0], objects.shape[1]))
    x, y, width, height = placement.source
    left, top, columns, rows = placement.target
    canvas = np.zeros(views.preprocess.size_hw, np.float32)
    canvas[top : top + rows, left : left + columns] = cv2.resize(
        objects[y : y + height, x : x + width], (columns, rows), interpolation=cv2.INTER_AREA
    )
    h, w = canvas.shape[0] // 8, canvas.shape[1] // 8
    return cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA)[None]


if __name__ == "__main__":
    main()
