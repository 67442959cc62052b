"""A folder that is not in VOC layout -> what it looks like, and the `data import` line that makes it usable."""

from __future__ import annotations

from pathlib import Path

from tsss_edge.data.importers.pairs import mask_folders

HEAD = 1 << 16  # bytes of a JSON file that are looked at


def import_line(root: Path) -> str | None:
    """The command for a set of a kind that we can import, None where nothing is recognised. Reads a few file heads."""
    kind = _kind(root)
    return f"tsss-edge data import {kind} {root} --out DIR" if kind else None


def _kind(root: Path) -> str | None:
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    if (root / "annotations.xml").is_file():
        return "cvat"
    if any(root.glob("*.yaml")) or any(root.glob("*.yml")):
        return "yolo"
    head = _json_head(root)
    if b'"shapes"' in head or b'"imagePath"' in head:
        return "labelme"
    if b'"categories"' in head or b'"images"' in head or b'"info"' in head:
        return "coco"
    if (root / "labelmap.txt").is_file():
        return "rgb"
    if masks := mask_folders(root):
        return "rgb" if _colour_masks(masks[0]) else "folders"
    return "folders --image-labels" if _class_folders(root) else None


def _json_head(root: Path) -> bytes:
    for pattern in ("annotations/*.json", "*.json", "*/*.json"):
        path = next((p for p in sorted(root.glob(pattern)) if p.name != "recipe.json"), None)
        if path is not None:
            with path.open("rb") as file:
                return file.read(HEAD)
    return b""


def _colour_masks(folder: Path) -> bool:
    from tsss_edge.data.importers.found import pictures_below
    from tsss_edge.data.pictures import opened

    first = next(iter(pictures_below(folder)), None)
    if first is None:
        return False
    with opened(first) as picture:
        return picture.mode in ("RGB", "RGBA")


def _class_folders(root: Path) -> bool:
    from tsss_edge.data.pictures import is_picture

    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return len(folders) > 1 and all(any(is_picture(p) for p in folder.iterdir()) for folder in folders)
