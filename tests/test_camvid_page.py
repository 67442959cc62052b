"""CamVid's page from known numbers, the curve from a log, and the loader's speed on a tiny set."""

from __future__ import annotations

import sys
from pathlib import Path

import netkit
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import camvid_page
import loader_speed
import training_curve

from tsss_edge.bench import Machine
from tsss_edge.config import TrainConfig
from tsss_edge.scoring import EvalReport

SPEED = {
    "loader_images_per_second": 400.0,
    "step_images_per_second": 20.5,
    "both_images_per_second": 20.0,
    "share": 0.05,
    "threads": 1.0,
}


def scored(miou: float) -> EvalReport:
    return EvalReport(miou=miou, pixel_accuracy=0.9, per_class={"Sky": 91.04, "Pole": None}, images=101)


def test_page_of_known_numbers() -> None:
    scores = {"pytorch": scored(70.0), "fp32": scored(70.0), "bf16": scored(70.04), "int8": scored(69.75)}
    run = camvid_page.Run(
        name="edge-m", epochs=60, pictures=360, settings='arch = "edge-m"\n', loader=SPEED, scores=scores
    )
    machine = Machine(
        cpu="x", cores=2, threads=1, governor=None, mhz_before=None, mhz_after=None, load_before=None, gpu=None
    )
    text = camvid_page.page(
        camvid_page.Results(runs=(run,), machine=machine, date="2026-11-24", tool="t"), "../images/c.png"
    )
    assert "| edge-m | 70 | 70.00 | met |" in text and "x, 2 cores, no GPU, 2026-11-24" in text
    assert "| edge-m | OpenVINO INT8 | 69.75 | +0.25 | 0.9000 |" in text
    assert "| edge-m | OpenVINO bf16 | 70.04 | -0.04 |" in text
    assert "| Sky | 91.0 |" in text and "| Pole | - |" in text
    assert "| edge-m | 400 | 20.5 | 20.0 | 5.0% | 60 | 18 |" in text  # 60 * 360 / 20 / 60 minutes
    assert '```toml\narch = "edge-m"\n```' in text


def test_curve_goes_through_the_validated_epochs(tmp_path: Path) -> None:
    lines = ['{"epoch":1,"loss":2.0}', '{"epoch":2,"miou":40.0}', '{"epoch":4,"miou":80.0}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert training_curve.read_curve(tmp_path) == [(2, 40.0), (4, 80.0)]
    training_curve.main(["--run", "net", str(tmp_path), "--out", str(tmp_path / "images/curve.png")])
    picture = np.asarray(training_curve.Image.open(tmp_path / "images/curve.png"))
    x, y = training_curve.Axes(4).xy(3, 60)  # half way between the points
    drawn = picture[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].reshape(-1, 3).tolist()
    assert list(training_curve.COLORS[0]) in drawn


def test_loader_and_step_are_measured(tmp_path: Path) -> None:
    netkit.write_set(tmp_path / "data")
    config = TrainConfig(size_hw=(64, 96), batch=3, threads=1)
    found = loader_speed.measure(config, tmp_path / "data", steps=2)
    assert found["share"] == pytest.approx(found["both_images_per_second"] / found["loader_images_per_second"])
    assert found["both_images_per_second"] > 0 and found["step_images_per_second"] > 0
