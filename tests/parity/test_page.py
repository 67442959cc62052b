"""The HTML page: self-contained, escaped, and its pictures show what they say."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from tsss_edge.artifacts import Classes
from tsss_edge.parity import ClassChange, LayerError, LayerReport, ParityReport, StageResult, WorstImage
from tsss_edge.parity.int8_checks import QuantizedTensor
from tsss_edge.parity.measure import Seen
from tsss_edge.parity.parity_page import LOST, OTHER, TILE_SIDE, WON, difference_map, render, write_report

CLASSES = Classes(names=("background", "cat", "<b>dog</b>"))


def stage(name: str, miou: float, step: float) -> StageResult:
    return StageResult(
        name=name, file=f"{name}.bin", runs_on="fake", miou=miou, drop=70.0 - miou, step=step, pixel_agreement=0.98,
        boundary_agreement=0.9,
    )  # fmt: skip


def report(passed: bool = True) -> ParityReport:
    return ParityReport(
        passed=passed, miou_reference=70.0, miou_engine=69.0, miou_drop=1.0, pixel_agreement=0.98, boundary_agreement=0.9,
        images=5, stages=(stage("PyTorch", 70.0, 0.0), stage("engine", 69.0, 1.0)), max_drop=2.0,
        drop_interval=(0.5, 1.5), boundary_px=3, split="val", data_sha256="d" * 64, leak=0,
        per_class={
            "background": ClassChange(reference=90.0, engine=90.5),
            "cat": ClassChange(reference=50.0, engine=47.5),
            "<b>dog</b>": ClassChange(reference=None, engine=None),
        },
        worst=(WorstImage(id="one & only", agreement=0.5, lost_pixels=1, won_pixels=1),),
        problems=() if passed else ("mIoU drop 1.00 is more than 0.50: quantization",), notes=("a <note>",),
        guilty="the engine build loses 1.00 of 1.00 points", provenance={"subject": "net.int8.xml"},
    )  # fmt: skip


def seen(height: int = 2, width: int = 3) -> Seen:
    maps = np.zeros((3, height, width), np.uint8)
    truth, reference, engine = maps
    truth[0], reference[0, :3], engine[0, :3] = 1, [1, 0, 0], [0, 1, 2]  # lost, won, both wrong
    truth[1, 0], engine[1, 0] = 255, 1  # differ where nothing is labelled
    return Seen("one & only", np.full((height, width, 3), 90, np.uint8), truth, reference, engine)


def test_difference_map_by_hand() -> None:
    dim = [70, 70, 70]  # 40 + 90 / 3
    assert difference_map(seen()).tolist() == [[list(LOST), list(WON), list(OTHER)], [list(OTHER), dim, dim]]


def test_classes_that_changed_most_come_first_and_unchanged_ones_do_not_hide_them() -> None:
    classes = {
        "same": ClassChange(reference=80.0, engine=80.0),
        "cat": ClassChange(reference=50.0, engine=49.5),
        "dog": ClassChange(reference=50.0, engine=51.0),
        "absent": ClassChange(reference=None, engine=3.0),
    }
    made = msgspec.structs.replace(report(), per_class=classes)
    assert [name for name, _ in made.changed_classes()] == ["dog", "cat", "same"]
    rows = [row.strip() for row in made.summary().splitlines() if "IoU of" in row]
    assert rows == ["IoU of dog: 50.00 -> 51.00 (+1.00)", "IoU of cat: 50.00 -> 49.50 (-0.50)"]


def test_page_needs_nothing_from_elsewhere_and_escapes_names() -> None:
    page = render(report(), [seen()], CLASSES)
    assert not re.search(r"<script|https?://|<link|@import|url\(", page)
    assert "<b>dog" not in page and "&lt;b&gt;dog" in page
    assert "a &lt;note&gt;" in page and "one &amp; only" in page
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))


def test_pictures_in_the_page_are_the_pictures() -> None:
    page = render(report(), [seen()], CLASSES)
    sources = re.findall(r'src="data:image/(\w+);base64,([^"]*)"', page)
    assert [kind for kind, _ in sources] == ["jpeg", "png", "png", "png", "jpeg"]
    tiles = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for _, data in sources]
    assert {tile.shape for tile in tiles} == {(2, 3, 3)}
    _, truth, reference, engine, _ = tiles
    red = list(CLASSES.palette[1])
    assert truth[0].tolist() == [red] * 3 and truth[1, 0].tolist() == [224, 224, 192]
    assert reference[0, 0].tolist() == red and engine[0, 1].tolist() == red


def test_large_pictures_are_made_smaller_without_mixing_labels() -> None:
    page = render(report(), [seen(2 * TILE_SIDE, 4 * TILE_SIDE)], CLASSES)
    truth = re.findall(r'src="data:image/png;base64,([^"]*)"', page)[0]
    with Image.open(io.BytesIO(base64.b64decode(truth))) as tile:
        assert tile.size == (TILE_SIDE, TILE_SIDE // 2)
        colors = {tuple(c) for c in np.asarray(tile.convert("RGB")).reshape(-1, 3)}
    assert colors <= {*CLASSES.palette, (224, 224, 192)}


def test_verdict_is_at_the_top_and_classes_are_sorted_by_loss() -> None:
    failed = render(report(passed=False), [seen()], CLASSES)
    assert "Gate failed" in failed and "more than 0.50: quantization" in failed
    passed = render(report(), [seen()], CLASSES)
    assert "Gate passed" in passed and "Gate failed" not in passed
    assert passed.index("</i>cat") < passed.index("</i>background") < passed.index("</i>&lt;b&gt;dog")


def test_layers_are_shown_when_they_were_compared() -> None:
    assert "Layers of the INT8 graph" not in render(report(), [seen()], CLASSES)
    activation = QuantizedTensor(
        tensor="x", scale=0.1, own_db=22.5, saturated=0.0, used=0.125, dead_channels=2, channels=8
    )
    layer = LayerError(
        layer="conv7",
        output="y",
        accumulated_db=20.0,
        input_db=200.0,
        jump_db=10.0,
        weight_db=None,
        activation=activation,
    )
    layers = LayerReport(layers=(layer,), structure=(), scales=(), guilty="layer conv7: too large", images=3)
    page = render(msgspec.structs.replace(report(), layers=layers), [seen()], CLASSES)
    for part in ("Layers of the INT8 graph", "conv7", "layer conv7: too large", "2 of 8", "<td>float</td>", "12%"):
        assert part in page


def test_no_differing_picture_is_said() -> None:
    none = msgspec.structs.replace(report(), worst=())
    assert "No pixel of any picture differs" in render(none, [], CLASSES)


def test_page_and_json_twin_are_written(tmp_path: Path) -> None:
    page = write_report(report(), [seen()], CLASSES, tmp_path / "deep/report")
    assert page.read_text().startswith("<!doctype html>")
    twin = msgspec.json.decode(page.with_suffix(".json").read_bytes(), type=ParityReport)
    assert twin == report()
