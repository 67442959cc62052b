"""The table and the networks of its first seed -> one self-contained HTML page with pictures (no script, no link)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.artifacts import IGNORE, Checkpoint, voc_color
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import write_bytes
from tsss_edge.label.annotate import Annotator
from tsss_edge.label.write import find_classifier, find_lnet, settings_of
from tsss_edge.models import load_model
from tsss_edge.reproduce.table import Table
from tsss_edge.train.validate import Views

PICTURES = 10  # of weak images, evenly spaced in the list
PALETTE = np.array([*(voc_color(i) for i in range(IGNORE)), (255, 255, 255)], np.uint8)

Masks = dict[str, NDArray[np.uint8]]


def write_page(table: Table, out: Path, dataset: VocDataset, strong: Sequence[str]) -> Path:
    """Write OUT/table.html: the table, where the labels lose, and image, truth, supervised, Lw, P-Net side by side."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(template)
    path = out / "table.html"
    pictures = _pictures(out / f"seed-{table.seeds[0].seed}", dataset, strong)
    write_bytes(path, page.render(table=table, first=table.seeds[0], pictures=pictures).encode())
    return path


def _pictures(run: Path, dataset: VocDataset, strong: Sequence[str]) -> list[dict[str, object]]:
    weak = Supervision(dataset, tuple(strong)).weak_ids("val")
    ids = weak[:: max(1, len(weak) // PICTURES)][:PICTURES]
    columns = {"truth": {i: dataset.mask(i) for i in ids}}
    columns["supervised"] = predictions(Checkpoint.load(run / "supervised"), dataset, ids)
    for protocol in ("50", "0"):
        if (run / protocol / "pnet/best.pt").is_file():
            columns[f"Lw, {protocol}%"] = found_labels(run / protocol, dataset, ids)
            columns[f"P-Net, {protocol}%"] = predictions(Checkpoint.load(run / protocol / "pnet"), dataset, ids)
    return [{"id": i, "tiles": _tiles(dataset.image(i), {k: v[i] for k, v in columns.items()})} for i in ids]


def predictions(checkpoint: Checkpoint, dataset: VocDataset, ids: Sequence[str]) -> Masks:
    """(H,W) uint8 labels of some pictures by a network with a class head."""
    views = Views(dataset, ids, checkpoint.meta.preprocess)
    heads = views.predict(load_model(checkpoint))
    return {i: views.labels(h.logits, i) for i, h in heads if h.logits is not None}


def found_labels(run: Path, dataset: VocDataset, ids: Sequence[str]) -> Masks:
    """(H,W) uint8 Lw of some pictures by a run of the method, as if none of their pixels were known."""
    lnet = find_lnet(run)
    classifier = find_classifier(lnet)
    assert classifier is not None, "first_round trains one"
    views = Views(dataset, ids, lnet.meta.preprocess)
    return dict(Annotator(lnet, classifier).labels(views, Supervision(dataset, ()), settings_of(run)))


def _tiles(image: NDArray[np.uint8], masks: Masks) -> list[tuple[str, str]]:
    """(caption, data URL) of each column."""
    return [("image", _url(image, "JPEG")), *((name, _url(PALETTE[mask], "PNG")) for name, mask in masks.items())]


def _url(pixels: NDArray[np.uint8], kind: str) -> str:
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    if kind == "PNG":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
