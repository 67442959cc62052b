"""The table on the tiny set: every row, resumed without training again, and its page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from trainkit import STRONG, same_weights, write_squares

from tsss_edge.config import TrainConfig
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.files import read_json
from tsss_edge.reproduce import ROWS, choose_rows, reproduce
from tsss_edge.reproduce.scores import RowScore
from tsss_edge.reproduce.table import Seed, Spread, Table, tabulate


def quick() -> TrainConfig:
    """Three epochs, one thread."""
    return TrainConfig(
        size_hw=(64, 64), epochs=3, batch=4, warmup_epochs=0.5, ema=0.5, scale_range=(0.9, 1.1), threads=1
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of both protocols for one seed, in `out`; the sets beside it."""
    root = tmp_path_factory.mktemp("table")
    rows = ["50:full", "50:flips", "50:labels-only", "0:full"]
    data, source = write_squares(root / "data"), write_squares(root / "source")
    reproduce(quick(), data, root / "out", source=source, seeds=[0], strong=STRONG, rows=rows)
    return root


def test_the_table_has_the_rows_asked_for_and_ratios_of_the_full_method(finished: Path) -> None:
    table = read_json(finished / "out/table.json", Table)
    assert [(row.protocol, row.name) for row in table.rows] == [
        ("100", "supervised"),
        ("50", "full"),
        ("50", "labels-only"),
        ("50", "flips"),
        ("0", "full"),
    ]
    supervised, full, *_ = table.rows
    assert table.ratios["50"] == pytest.approx(full.miou.mean / supervised.miou.mean)
    assert set(table.ratios) == {"50", "0"}
    assert supervised.ratio.values == (1.0,)
    assert supervised.ratio.deviation is None
    assert set(table.seeds[0].ladders) == set(table.seeds[0].relabels) == {"50", "0"}
    assert "50%" in table.summary()


def test_the_page_is_one_file_with_pictures(finished: Path) -> None:
    page = (finished / "out/table.html").read_text()
    for name in ("image", "truth", "supervised", "Lw, 50%", "P-Net, 50%", "Lw, 0%", "P-Net, 0%"):
        assert f"<span>{name}</span>" in page
    assert page.count("data:image/") == 7 * len(re.findall('<div class="row">', page)) > 0
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_a_second_start_trains_nothing_and_gives_the_same_table(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    before = (tmp_path / "out/table.json").read_bytes()
    weights = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("lnet/best.pt")}
    rows = ["50:full", "50:flips", "50:labels-only", "0:full"]
    monkeypatch.setattr("tsss_edge.reproduce.scores.measured", _forbidden)
    monkeypatch.setattr("tsss_edge.reproduce.ladder", _forbidden)
    reproduce(
        quick(), finished / "data", tmp_path / "out", source=finished / "source", seeds=[0], strong=STRONG, rows=rows
    )
    assert (tmp_path / "out/table.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in weights} == weights


def test_two_jobs_give_the_same_networks(finished: Path, tmp_path: Path) -> None:
    rows = ["50:full", "50:flips"]
    table = reproduce(quick(), finished / "data", tmp_path, seeds=[0], strong=STRONG, rows=rows, jobs=2)
    one = {row.name: row.miou for row in read_json(finished / "out/table.json", Table).rows if row.protocol != "0"}
    assert {row.name: row.miou for row in table.rows}.items() <= one.items()
    for path in ("supervised", "50/draft", "50/pnet"):
        assert same_weights(finished / f"out/seed-0/{path}/best.pt", tmp_path / f"seed-0/{path}/best.pt"), path


def _forbidden(*_: object, **__: object) -> None:
    raise AssertionError("was measured before")


def test_rows_are_chosen_by_name() -> None:
    assert [plan.key for plan in choose_rows(["50:full"], with_source=False)] == ["100:supervised", "50:full"]
    assert {plan.protocol for plan in choose_rows(None, with_source=False)} == {"100", "50"}
    assert choose_rows(None, with_source=True) == ROWS
    with pytest.raises(
        ValueError, match=r"unknown row '50:fill'; choose from 100:supervised, 100:cutmix, 100:flips, 50:full"
    ):
        choose_rows(["50:fill"], with_source=True)
    with pytest.raises(ValueError, match="--source"):
        choose_rows(["0:full"], with_source=False)


def test_ratios_are_taken_seed_by_seed(finished: Path) -> None:
    score = read_json(finished / "out/seed-0/supervised/score.json", RowScore)
    seeds = [
        Seed(
            seed=n,
            scores=dict(zip(("100:supervised", "50:full"), pair, strict=True)),
            labels={},
            relabels={},
            ladders={},
        )
        for n, pair in enumerate([(at(score, 80.0), at(score, 76.0)), (at(score, 50.0), at(score, 50.0))])
    ]
    rows = [("100:supervised", "100", "supervised"), ("50:full", "50", "full")]
    table = tabulate(seeds, rows, quick(), VocDataset.open(finished / "data"))
    assert table.rows[1].miou == Spread(mean=63.0, deviation=pytest.approx(26 / 2**0.5), values=(76.0, 50.0))
    assert table.ratios == {"50": pytest.approx(0.975)}  # (0.95 + 1) / 2, not 63 / 65
    assert json.loads(msgspec.json.encode(table))["paper_ratios"] == {"50": 0.965, "0": 0.894}


def at(score: RowScore, miou: float) -> RowScore:
    return msgspec.structs.replace(score, miou=miou)


@pytest.mark.parametrize(("strong", "half"), [((), "strong"), (("red", "green", "blue"), "weak")])
def test_a_table_without_one_of_its_halves_is_refused_before_it_trains(
    finished: Path, tmp_path: Path, strong: tuple[str, ...], half: str
) -> None:
    with pytest.raises(DataError, match=f"val shows no {half} category"):
        reproduce(quick(), finished / "data", tmp_path / "out", seeds=[0], strong=strong)
    assert not (tmp_path / "out").exists()
