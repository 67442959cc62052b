"""Small foreign sets, made by hand or from real masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as tools

SAMPLES = Path(__file__).parent / "samples"


def picture(path: Path, hw: tuple[int, int] = (24, 32), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_coco(root: Path, *, split: str = "train", **more: object) -> Path:
    """Two classes with ids 3 and 7, a crowd, a polygon, run lengths of both kinds, an empty picture."""
    crowd = np.zeros((24, 32), np.uint8)
    crowd[:4] = 1
    runs = tools.encode(np.asfortranarray(crowd))
    annotations = [
        {"image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [[2, 2, 20, 2, 20, 20, 2, 20]], "area": 300},
        {"image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [[5, 5, 10, 5, 10, 10, 5, 10]], "area": 25},
        {"image_id": 2, "category_id": 3, "iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [0, 48, 720]}},
        {"image_id": 2, "category_id": 7, "segmentation": {"size": [24, 32], "counts": runs["counts"].decode()}},
    ]
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i:04}.jpg", "height": 24, "width": 32} for i in (1, 2, 3)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations)],
    } | more
    for i in (1, 2, 3):
        picture(root / f"{split}2017/{i:04}.jpg", seed=i)
    path = root / f"annotations/instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def write_yolo(root: Path) -> Path:
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        for name in names:
            picture(root / f"images/{split}/{name}.jpg")
            (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            lines = "1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n0 0.3 0.3 0.6 0.3 0.45 0.7\n" if name != "b" else ""
            (root / f"labels/{split}/{name}.txt").write_text(lines)
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")
    return root


def write_cityscapes(root: Path) -> Path:
    """Two cities; label ids 0-33 each fill a column, as in gtFine."""
    columns = np.arange(34, dtype=np.uint8).repeat(2)[None].repeat(20, 0)
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "ulm")):
        name = f"{city}_000000_000019"
        picture(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", (20, 68))
        folder = root / f"gtFine/{split}/{city}"
        folder.mkdir(parents=True)
        Image.fromarray(columns).save(folder / f"{name}_gtFine_labelIds.png")
    return root


def write_folders(root: Path, values: list[int], *, masks: str = "masks", count: int = 4) -> Path:
    """Pictures and masks in folders; a mask holds `values` in columns."""
    columns = np.array(values, np.uint8).repeat(8)[None].repeat(24, 0)
    for number in range(count):
        picture(root / f"images/clip{number // 2}_{number:03}.jpg", columns.shape)
        (root / masks).mkdir(exist_ok=True)
        Image.fromarray(columns).save(root / masks / f"clip{number // 2}_{number:03}.png")
    return root
