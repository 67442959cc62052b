"""A parity report -> one self-contained HTML page with the worst pictures inlined, and its JSON twin."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsss_edge.artifacts import IGNORE, Classes, voc_color
from tsss_edge.files import write_bytes, write_json

if TYPE_CHECKING:
    from tsss_edge.parity.measure import Seen, WorstImage
    from tsss_edge.parity.verdict import ParityReport

TILE_SIDE = 480  # pixels of the longer side of a picture on the page

# RGB of the difference map
LOST = (214, 39, 40)
WON = (44, 160, 44)
OTHER = (255, 187, 51)


def write_report(report: ParityReport, seen: Sequence[Seen], classes: Classes, folder: Path) -> Path:
    """Write `parity.html` and `parity.json` into `folder`; returns the page's path.

    Args:    seen: the pictures of `report.worst`, in the same order.
    """
    page = folder / "parity.html"
    write_bytes(page, render(report, seen, classes).encode())
    write_json(folder / "parity.json", report)
    return page


def render(report: ParityReport, seen: Sequence[Seen], classes: Classes) -> str:
    """The page as text. It loads nothing from anywhere and holds no script."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_suffix(".html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(template)
    changes = [abs(c.change) for c in report.per_class.values() if c.change is not None]
    return page.render(
        report=report,
        objectness=any(stage.objectness_agreement is not None for stage in report.stages),
        subject=report.provenance.get("subject", report.stages[-1].file),
        classes=sorted(report.per_class.items(), key=lambda item: _sort_key(item[1].change)),
        span=max([*changes, report.max_drop, 0.1]),
        pictures=[_figure(worst, one, classes) for worst, one in zip(report.worst, seen, strict=True)],
        swatches={name: _css(color) for name, color in zip(classes.names, classes.palette, strict=True)},
        colors={"lost": _css(LOST), "won": _css(WON), "other": _css(OTHER)},
    )


def difference_map(seen: Seen) -> NDArray[np.uint8]:
    """(H,W,3) RGB: the picture in dim grey, and in colour where the labels differ (see `LOST`, `WON`, `OTHER`)."""
    grey = np.asarray(Image.fromarray(seen.image).convert("L"))
    result = np.repeat((40 + grey // 3)[..., None], 3, axis=-1).astype(np.uint8)
    differs = seen.reference != seen.engine
    labelled = differs & (seen.truth != IGNORE)
    result[differs] = OTHER
    result[labelled & (seen.reference == seen.truth)] = LOST
    result[labelled & (seen.engine == seen.truth)] = WON
    return result


def _figure(worst: WorstImage, seen: Seen, classes: Classes) -> dict[str, object]:
    assert worst.id == seen.id
    palette = np.array([voc_color(i) for i in range(256)], np.uint8)
    palette[: len(classes)] = classes.palette
    palette[IGNORE] = (224, 224, 192)  # VOC's colour of "void"
    tiles = [
        ("picture", _data_url(seen.image, "JPEG")),
        ("truth", _data_url(palette[seen.truth], "PNG")),
        ("PyTorch", _data_url(palette[seen.reference], "PNG")),
        ("engine", _data_url(palette[seen.engine], "PNG")),
        ("difference", _data_url(difference_map(seen), "JPEG")),
    ]
    numbers = {"agreement": worst.agreement, "lost_pixels": worst.lost_pixels, "won_pixels": worst.won_pixels}
    return {"id": worst.id, **numbers, "tiles": tiles}


def _data_url(pixels: NDArray[np.uint8], kind: str) -> str:
    picture = Image.fromarray(pixels)
    # Colours of a label map must not mix; a photograph may.
    picture.thumbnail((TILE_SIDE, TILE_SIDE), Image.Resampling.NEAREST if kind == "PNG" else Image.Resampling.BOX)
    if kind == "PNG":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sort_key(change: float | None) -> float:
    return float("inf") if change is None else change


def _css(color: tuple[int, int, int]) -> str:
    return f"rgb({color[0]}, {color[1]}, {color[2]})"
