"""A tiny set that trains in a second: squares of three colours, two categories strong, one weak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tsss_edge.artifacts import Checkpoint
from tsss_edge.data.voc import write_mask

STRONG = ("red", "green")
COLORS = ((0, 0, 0), (220, 40, 40), (40, 200, 60), (60, 60, 230))


def write_squares(root: Path, *, train: int = 12, val: int = 6, size: int = 64, background: bool = True) -> Path:
    """Image i shows a square of category i % 3 + 1, every third one a second square of the next category."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = ("background", "red", "green", "blue") if background else ("floor", "red", "green", "blue")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    rows = ["id,classes"]
    for split, first, count in (("train", 0, train), ("val", train, val)):
        ids = [f"im{i:03d}" for i in range(first, first + count)]
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for number, image_id in enumerate(ids, start=first):
            mask = _square(root, image_id, number, size)
            rows.append(f"{image_id},{' '.join(str(c) for c in np.unique(mask) if c)}")
    (root / "image_labels.csv").write_text("\n".join(rows) + "\n")
    return root


def _square(root: Path, image_id: str, number: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    mask = np.zeros((size, size), np.uint8)
    for k in range(2 if number % 6 >= 3 else 1):
        side = int(rng.integers(size // 4, size // 2))
        top, left = rng.integers(0, size - side, 2)
        mask[top : top + side, left : left + side] = (number + k) % 3 + 1
    image = rng.integers(0, 60, (size, size, 3)) + np.array(COLORS)[mask]
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{image_id}.png")
    write_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
    return mask


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    one, two = Checkpoint.load(a).state(), Checkpoint.load(b).state()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
