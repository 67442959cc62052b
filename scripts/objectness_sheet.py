"""An L-Net and some sets -> one PNG: true object masks and objectness maps side by side, with or without the pictures.

python scripts/objectness_sheet.py RUN OUT.png DATA[:SPLIT]... [--pictures] [--count N]

Without --pictures no pixel of a photograph is in the sheet, so it may be published where the photographs may not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.artifacts import IGNORE
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import atomic_path
from tsss_edge.label.annotate import to_frame
from tsss_edge.label.write import find_lnet
from tsss_edge.models import load_model
from tsss_edge.train.validate import Views, object_iou

TILE, GAP = 112, 6  # pixels
SETS_A_ROW = 4

Tile = NDArray[np.uint8]


def tiles_of(run: Path, data: Path, split: str, *, pictures: bool, count: int) -> list[list[Tile]]:
    """Of each picture with an object: [picture,] truth (grey: 255), objectness (white: surely an object)."""
    lnet, dataset = find_lnet(run), VocDataset.open(data)
    ids = [i for i in dataset.ids(split) if dataset.image_labels(i)][:count]
    views, net = Views(dataset, ids, lnet.meta.preprocess), load_model(lnet)
    print(f"{data.name} {split}: {len(ids)} pictures, object IoU {object_iou(net, views):.2f}")
    rows = []
    for image_id, heads in views.predict(net, flip=True):
        assert heads.objectness is not None
        mask = views.mask(image_id)
        seen = to_frame(heads.objectness.sigmoid().numpy(), views.preprocess, mask.shape)[0]
        truth = np.where(mask == IGNORE, 128, 255 * (mask > 0)).astype(np.uint8)
        row = [truth, np.rint(255 * seen).astype(np.uint8)]
        rows.append([dataset.image(image_id), *row] if pictures else row)
    return rows


def sheet(rows: list[list[Tile]]) -> Image.Image:
    """Tiles of a picture side by side, `SETS_A_ROW` pictures in a row."""
    width = len(rows[0]) * TILE + GAP
    lines = -(-len(rows) // SETS_A_ROW)
    result = Image.new("RGB", (SETS_A_ROW * width - GAP, lines * (TILE + GAP) - GAP), (40, 70, 110))
    for number, row in enumerate(rows):
        line, column = divmod(number, SETS_A_ROW)
        for side, tile in enumerate(row):
            picture = Image.fromarray(tile).convert("RGB").resize((TILE, TILE))
            result.paste(picture, (column * width + side * TILE, line * (TILE + GAP)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+", help="folder, with :SPLIT where that is not val")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--count", type=int, default=24, help="pictures of each set")
    given = parser.parse_args()
    rows: list[list[Tile]] = []
    for item in given.data:
        folder, _, split = item.partition(":")
        rows += tiles_of(given.run, Path(folder), split or "val", pictures=given.pictures, count=given.count)
    with atomic_path(given.out) as temporary:
        sheet(rows).save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
