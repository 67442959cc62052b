"""CamVid's page from known numbers, and the curve from a log."""

from __future__ import annotations

from pathlib import Path

import camvid_page
import training_curve
from PIL import Image

from tsss_edge.bench import Machine
from tsss_edge.scoring import EvalReport


def scored(miou: float) -> EvalReport:
    return EvalReport(miou=miou, pixel_accuracy=0.9, per_class={"Sky": 91.04, "Pole": None}, images=101)


def test_page_of_known_numbers() -> None:
    scores = {"pytorch": scored(70.0), "fp32": scored(70.0), "bf16": scored(70.04), "int8": scored(69.75)}
    run = camvid_page.NetworkRun(name="edge-m", epochs=60, minutes=18.4, settings='arch = "edge-m"\n', scores=scores)
    machine = Machine(
        cpu="x", cores=2, threads=1, governor=None, mhz_before=None, mhz_after=None, load_before=None, gpu=None
    )
    text = camvid_page.page(
        camvid_page.CamvidResults(runs=(run,), machine=machine, date="2026-11-24", tool="t"), "../images/c.png"
    )
    assert "| edge-m | 70 | 70.00 | met | 60 | 18 |" in text and "x, 2 cores, no GPU, 2026-11-24" in text
    assert "| edge-m | OpenVINO INT8 | 69.75 | +0.25 | 0.9000 |" in text
    assert "| edge-m | OpenVINO bf16 | 70.04 | -0.04 |" in text
    assert "| Sky | 91.0 |" in text and "| Pole | - |" in text
    assert '```toml\narch = "edge-m"\n```' in text


def test_curve_goes_through_the_validated_epochs(tmp_path: Path) -> None:
    lines = ['{"epoch":1,"loss":2.0}', '{"epoch":2,"miou":40.0}', '{"epoch":4,"miou":80.0}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert training_curve.read_curve(tmp_path) == [(2, 40.0), (4, 80.0)]
    training_curve.main(["--run", "net", str(tmp_path), "--out", str(tmp_path / "images/curve.png")])
    (axes,) = training_curve.draw({"net": [(2, 40.0), (4, 80.0)]}).axes
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[2, 40], [4, 80]] and line.get_label() == "net: best 80.0"
    with Image.open(tmp_path / "images/curve.png") as picture:
        assert picture.size == (960, 480)
