"""The results page of the photo benchmark: numbers between its markers, what is missing named, what stood beside kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import photos_page as script
import pytest

from tsss_edge.config import TrainConfig
from tsss_edge.files import write_json
from tsss_edge.reproduce.benchmark import Benchmark, PartEpochs
from tsss_edge.reproduce.results import BenchmarkResult, Cell, ResultRow
from tsss_edge.reproduce.table import PAPER, Spread


def result() -> BenchmarkResult:
    lnet = (
        Cell(seed=0, fold="A", object_strong=76.5, object_weak=66.0),
        Cell(seed=0, fold="B", object_strong=73.0, object_weak=69.0),
    )
    full = (Cell(seed=0, fold="A", miou7=60.0, miou=31.0), Cell(seed=0, fold="B", miou7=58.0, miou=30.0))
    return BenchmarkResult(
        miou7=62.5,
        ratios={"50": 0.944},
        rows=(
            ResultRow(key="50:lnet", cells=lnet),
            ResultRow(key="50:full", cells=full, miou7=Spread.of([59.0]), ratio=Spread.of([0.944])),
        ),
        trivial=(ResultRow(key="everything-is-object", cells=(Cell(seed=0, fold="A", object_weak=29.9),)),),
        missing=("seed-0/0/pnet",),
        benchmark=Benchmark(
            train=TrainConfig(), epochs=PartEpochs(lnet=1, lnet_source=1, classifier=1, pnet=1), folds={}, score=()
        ),
        data_sha256={},
        paper_ratios=PAPER,
        tool="t",
    )


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    monkeypatch.setattr(sys, "argv", ["photos_page.py", *(str(a) for a in arguments)])
    script.main()


def test_the_page_shows_folds_ratios_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "photos.md"
    page.write_text(f"Before.\n\n{script.BEGIN}\nstale\n{script.END}\n\nAfter.\n")
    write_json(tmp_path / "benchmark.json", result())
    write_json(tmp_path / "more.json", {"live": [{"clip": "dog", "IoU": 70.5}]})
    run(monkeypatch, tmp_path / "benchmark.json", page, "--more", tmp_path / "more.json")
    text = page.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "stale" not in text
    assert "| 50:full | 59.00 | A 60.00, B 58.00 | A 31.00, B 30.00 | 0.944 | 0.965 | 0 |" in text
    assert "| 50:lnet | A 76.50, B 73.00 | A 66.00, B 69.00 | 67.50 |" in text
    assert "| everything-is-object | - | A 29.90 | - |" in text
    assert "Not yet run: 0/full." in text and "| dog | 70.5 |" in text
    twin = json.loads(page.with_suffix(".json").read_text())
    assert twin["miou7"] == 62.5 and twin["ratios"] == {"50": 0.944} and len(twin["rows"]) == 2


def test_what_stood_beside_the_tables_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "photos.md"
    page.write_text(f"{script.BEGIN}{script.END}")
    write_json(page.with_suffix(".json"), {"engines": [{"engine": "int8"}]})
    write_json(tmp_path / "benchmark.json", result())
    run(monkeypatch, tmp_path / "benchmark.json", page)
    assert json.loads(page.with_suffix(".json").read_text())["engines"] == [{"engine": "int8"}]
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="has no"):
        run(monkeypatch, tmp_path / "benchmark.json", page)
