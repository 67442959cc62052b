"""Networks with random weights whose batch norms know their pictures, and small VOC-layout sets of such pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Preprocess, Stage
from tsss_edge.models import SegNet, build_model

CLASSES = Classes(names=("background", "cat", "dog", "cow", "car"))
SPEC = Preprocess(size_hw=(64, 96))


def picture(seed: int, size_hw: tuple[int, int] = SPEC.size_hw) -> np.ndarray:
    """(H,W,3) uint8: soft colour fields with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (size_hw[0] // 16, size_hw[1] // 16, 3)).repeat(16, 0).repeat(16, 1)
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def network(arch: str = "edge-s", *, seed: int = 0, spec: Preprocess = SPEC, classes: int = len(CLASSES)) -> SegNet:
    """As after training: no batch norm is the identity, residual branches matter, statistics fit the pictures."""
    torch.manual_seed(seed)
    net = build_model(arch, num_classes=classes)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = None
    batch = np.stack([picture(s, spec.size_hw) for s in range(100, 108)])
    with torch.no_grad():
        net.train()(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255 * spec.scale)
    return net.eval()


def checkpoint(
    path: Path, arch: str = "edge-s", *, seed: int = 0, spec: Preprocess = SPEC, stage: Stage = "supervised"
) -> Checkpoint:
    """`network` on disk."""
    net = network(arch, seed=seed, spec=spec, classes=0 if stage == "lnet" else len(CLASSES))
    meta = CheckpointMeta(stage=stage, arch=arch, classes=CLASSES, preprocess=spec)
    return Checkpoint.save(path, meta, net.state_dict())


def write_set(root: Path, *, train: int = 6, val: int = 3, size_hw: tuple[int, int] = (48, 64)) -> Path:
    """Pictures t0, t1, ... and v0, v1, ... with masks of left half class 1 + i % 4, right half background."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES.names))
    for split, prefix, count in (("train", "t", train), ("val", "v", val)):
        ids = [f"{prefix}{i}" for i in range(count)]
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
        for i, image_id in enumerate(ids):
            Image.fromarray(picture(hash_of(image_id), size_hw)).save(root / "JPEGImages" / f"{image_id}.png")
            mask = np.zeros(size_hw, np.uint8)
            mask[:, : size_hw[1] // 2] = 1 + i % (len(CLASSES) - 1)
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{image_id}.png")
    return root


def hash_of(image_id: str) -> int:
    return int.from_bytes(image_id.encode(), "big")
