"""Scores of each seed -> the table (means, spread, ratios to the supervised network of the same seed) and its page."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge import __version__
from tsss_edge.artifacts import IGNORE, Checkpoint, Struct, voc_color
from tsss_edge.config import TrainConfig
from tsss_edge.data.supervision import Supervision
from tsss_edge.data.voc import VocDataset
from tsss_edge.files import as_json_reads, write_bytes
from tsss_edge.label.annotate import Annotator
from tsss_edge.label.write import LabelReport, find_labeller, require_classifier, settings_of
from tsss_edge.models import load_model
from tsss_edge.reproduce.scores import Ladder, RowScore
from tsss_edge.scoring import Mask, Views, net_answers

PAPER = {"50": 0.965, "0": 0.894}  # ratios on PASCAL VOC 2012, arXiv 1711.06828; never measured here
SUPERVISED = "100:supervised"
PICTURES = 10  # of weak images on the page, evenly spaced in the list
PALETTE = np.array([*(voc_color(i) for i in range(IGNORE)), (255, 255, 255)], np.uint8)


class Seed(Struct, frozen=True):
    """What one seed gave: rows by key ("50:full"), labels of both rounds and, for the first seed, ladders by protocol ("50")."""

    seed: int
    scores: dict[str, RowScore]
    labels: dict[str, LabelReport]
    relabels: dict[str, LabelReport]
    ladders: dict[str, Ladder]


class Spread(Struct, frozen=True):
    """Over seeds. `deviation` is the sample standard deviation, None for a single seed."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises: statistics.StatisticsError: no value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), deviation=deviation, values=tuple(values))

    def text(self, digits: int = 2) -> str:
        """`71.23 +- 0.45`."""
        tail = "" if self.deviation is None else f" +- {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{tail}"


class Row(Struct, frozen=True):
    """One row of the table; IoU in percent, `ratio` of its mIoU to the supervised one of the same seed."""

    protocol: str
    name: str
    miou: Spread
    ratio: Spread
    miou_strong: Spread
    miou_weak: Spread
    object_iou: Spread
    seconds: Spread


class Table(Struct, frozen=True):
    """What `reproduce` writes as table.json. `ratios`: full method / supervised, by protocol, mean over seeds."""

    ratios: dict[str, float]
    rows: tuple[Row, ...]
    seeds: tuple[Seed, ...]
    config: dict[str, Any]
    data_sha256: dict[str, str]  # of train and val
    paper_ratios: dict[str, float]
    tool: str

    def summary(self) -> str:
        """For a terminal."""
        lines = [f"{'strong':>6} {'row':<18} {'mIoU':>16} {'ratio':>18} {'strong':>8} {'weak':>8}"]
        lines += [
            f"{row.protocol + '%':>6} {row.name:<18} {row.miou.text():>16} {row.ratio.text(4):>18} "
            f"{row.miou_strong.mean:8.2f} {row.miou_weak.mean:8.2f}"
            for row in self.rows
        ]
        return "\n".join(lines)


def tabulate(
    seeds: Sequence[Seed], rows: Sequence[tuple[str, str, str]], config: TrainConfig, dataset: VocDataset
) -> Table:
    """Aggregate. `rows` are (key, protocol, name) in the table's order."""
    made = tuple(_row(seeds, *row) for row in rows)
    return Table(
        ratios={row.protocol: row.ratio.mean for row in made if row.name == "full"},
        rows=made,
        seeds=tuple(seeds),
        config=as_json_reads(config),
        data_sha256={split: dataset.split_hash(split) for split in ("train", "val")},
        paper_ratios=PAPER,
        tool=f"tsss-edge {__version__}",
    )


def _row(seeds: Sequence[Seed], key: str, protocol: str, name: str) -> Row:
    scores = [seed.scores[key] for seed in seeds]
    ratios = [seed.scores[key].miou / seed.scores[SUPERVISED].miou for seed in seeds]
    fields = ("miou", "miou_strong", "miou_weak", "object_iou", "seconds")
    spreads = {name: Spread.of([getattr(score, name) for score in scores]) for name in fields}
    return Row(protocol=protocol, name=name, ratio=Spread.of(ratios), **spreads)


# -- The page


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
            lnet = find_labeller(run / protocol, ("lnet",))
            views = Views(dataset, ids, lnet.meta.preprocess)
            unseen, settings = Supervision(dataset, ()), settings_of(run / protocol)  # as if no pixel were known
            labels = Annotator(lnet, require_classifier(lnet)).labels(views, unseen, settings)
            columns[f"Lw, {protocol}%"] = dict(labels)
            columns[f"P-Net, {protocol}%"] = predictions(Checkpoint.load(run / protocol / "pnet"), dataset, ids)
    return [{"id": i, "tiles": _tiles(dataset.image(i), {k: v[i] for k, v in columns.items()})} for i in ids]


def predictions(checkpoint: Checkpoint, dataset: VocDataset, ids: Sequence[str]) -> dict[str, Mask]:
    """(H,W) uint8 labels of some pictures by a network with a class head."""
    views = Views(dataset, ids, checkpoint.meta.preprocess)
    return {answer.id: answer.labels for answer in net_answers(load_model(checkpoint), views)}


def _tiles(image: NDArray[np.uint8], masks: dict[str, Mask]) -> list[tuple[str, str]]:
    """(caption, data URL) of each column."""
    return [("image", _url(image, "JPEG")), *((name, _url(PALETTE[mask], "PNG")) for name, mask in masks.items())]


def _url(pixels: NDArray[np.uint8], kind: str) -> str:
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    if kind == "PNG":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
