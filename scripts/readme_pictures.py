"""Photographs that may be shown, segmented by a network of ours: one JPEG, and a GIF that pans over them, each frame segmented anew.

    python scripts/readme_pictures.py runs/photos chelsea.png astronaut.png grace_hopper.jpg --out docs/images/photos

chelsea.png (a cat, CC0) and astronaut.png (NASA, public domain) lie in scikit-image's wheel, in skimage/data; grace_hopper.jpg (US
Navy, public domain) in matplotlib's, in mpl-data/sample_data. Writes OUT.jpg and OUT.gif.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tsss_edge
from tsss_edge.data.pictures import read_image
from tsss_edge.disk import atomic_path
from tsss_edge.drawing import legend

HEIGHT, ALPHA = 340, 0.4  # of the still; of the colours
LEGEND = 34  # pixels of a line of the still's legend: read on a phone, where the still is a third as large
WINDOW_HW, STEPS, FPS = (225, 300), 10, 6  # of the GIF: its frame, frames a picture, frames a second

Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", type=Path)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tsss_edge.load(args.network) as model:
        still(model, args.pictures, args.out.with_suffix(".jpg"))
        pan(model, args.pictures, args.out.with_suffix(".gif"))


def still(model: tsss_edge.Model, pictures: list[Path], out: Path) -> None:
    """All pictures side by side, segmented at their own size, and one legend."""
    parts, seen = [], np.zeros(256, np.int64)
    for path in pictures:
        found = model(path)
        seen += np.bincount(found.labels.ravel(), minlength=256)
        height, width = found.labels.shape
        small = Image.fromarray(found.image).resize((round(width * HEIGHT / height), HEIGHT), Image.Resampling.LANCZOS)
        labels = cv2.resize(found.labels, small.size, interpolation=cv2.INTER_NEAREST)
        parts.append(
            tsss_edge.Segmentation(np.asarray(labels, np.uint8), np.asarray(small), model.classes).overlay(ALPHA)
        )
    row = np.concatenate(parts, axis=1)
    ids = sorted((k for k in model.classes.objects if seen[k]), key=lambda k: -seen[k])
    below = legend(model.classes, ids, row.shape[1], LEGEND)[..., ::-1]
    with atomic_path(out) as temporary:
        Image.fromarray(np.concatenate([row, below])).save(temporary, format="JPEG", quality=85)


def pan(model: tsss_edge.Model, pictures: list[Path], out: Path) -> None:
    """A window that moves over each picture; the network sees only what is in it."""
    frames = [
        Image.fromarray(model(window).overlay(ALPHA)) for path in pictures for window in windows(read_image(path))
    ]
    first, *others = [frame.quantize(80, dither=Image.Dither.NONE) for frame in frames]
    with atomic_path(out) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=1000 // FPS, loop=0)


def windows(picture: Pixels) -> Iterator[Pixels]:
    """`STEPS` cuts of `WINDOW_HW`, along the longer way that is left."""
    height, width = picture.shape[:2]
    ratio = 1.25 * max(WINDOW_HW[0] / height, WINDOW_HW[1] / width)
    big = cv2.resize(picture, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_AREA)
    free = big.shape[0] - WINDOW_HW[0], big.shape[1] - WINDOW_HW[1]
    for share in np.linspace(0, 1, STEPS):
        top, left = round(share * free[0]), round(share * free[1])
        yield np.ascontiguousarray(big[top : top + WINDOW_HW[0], left : left + WINDOW_HW[1]], np.uint8)


if __name__ == "__main__":
    main()
