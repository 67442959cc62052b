"""The results page of the transfer method: numbers of a table between its markers, what is missing named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import transfer_page as script

from tsss_edge.files import write_json
from tsss_edge.label.annotate import LabelConfig
from tsss_edge.label.write import LabelReport
from tsss_edge.reproduce.scores import Ladder, RowScore
from tsss_edge.reproduce.table import Row, Seed, Spread, Table


def spread(*values: float) -> Spread:
    return Spread.of(values)


def row(protocol: str, name: str, miou: float, ratio: float) -> Row:
    other = {
        "miou_strong": spread(70.0),
        "miou_weak": spread(60.0),
        "object_iou": spread(85.0),
        "seconds": spread(12.4),
    }
    return Row(protocol=protocol, name=name, miou=spread(miou), ratio=spread(ratio), **other)


def table() -> Table:
    labels = LabelReport(
        images=3, split="train", seconds=1, images_per_s=3, unsure=0.125, miou=81.5, object_iou=90, strong=(),
        sha256={}, settings=LabelConfig(),
    )  # fmt: skip
    again = msgspec.structs.replace(labels, miou=92.0, unsure=0.05)
    rungs = Ladder(images=7, object_iou=84.0, maps_in_true_foreground=91.0, diffusion_in_true_foreground=92.0, lw=80.25)
    score = RowScore(miou=80, miou_strong=1, miou_weak=1, object_iou=1, per_class={}, seconds=1, checkpoint_sha256="")
    seed = Seed(
        seed=0, scores={"100:supervised": score}, labels={"50": labels}, relabels={"50": again}, ladders={"50": rungs}
    )
    rows = (row("100", "supervised", 80.0, 1.0), row("50", "full", 78.5, 0.98125))
    paper = {"50": 0.965, "0": 0.894}
    return Table(
        ratios={"50": 0.98125}, rows=rows, seeds=(seed,), config={}, data_sha256={}, paper_ratios=paper, tool="t"
    )


def test_the_page_gets_the_tables_and_a_json_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "run/table.json", table())
    page = tmp_path / "transfer.md"
    page.write_text(f"before\n{script.BEGIN}\nold numbers\n{script.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["transfer_page.py", str(tmp_path / "run"), str(page)])
    script.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old numbers" not in text
    assert "| 50% | full | 78.50 | 0.981 | 0.965 | 70.00 | 60.00 | 85.00 | 12 |" in text
    assert "| 50% | 7 | 91.00 | 92.00 | 80.25 | 84.00 | 81.50 | 12.5% | 92.00 | 5.0% |" in text
    assert "Not measured: 100:cutmix, 100:flips, 50:labels-only, 50:without-relabel" in text
    twin = page.with_suffix(".json")
    assert json.loads(twin.read_text())["ratios"] == {"50": 0.98125}
    before = {**json.loads(twin.read_text()), "earlier": 1}
    write_json(twin, before)
    script.main()
    assert page.read_text() == text  # again, with the same result
    assert json.loads(twin.read_text()) == before


def test_a_second_table_stands_below_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "run/table.json", table())
    write_json(tmp_path / "more.json", msgspec.structs.replace(table(), rows=(row("50", "cutmix", 77.0, 0.9625),)))
    page = tmp_path / "transfer.md"
    page.write_text(f"{script.BEGIN}{script.END}")
    given = ["transfer_page.py", str(tmp_path / "run"), str(page), "--more", str(tmp_path / "more.json")]
    monkeypatch.setattr("sys.argv", given)
    script.main()
    text = page.read_text()
    assert text.count("Seeds: 0.") == 2
    assert "| 50% | cutmix | 77.00 |" in text
    assert "50:cutmix" not in text  # it is measured
    assert json.loads(page.with_suffix(".json").read_text())["more_seeds"]["rows"][0]["name"] == "cutmix"


def test_a_page_without_markers_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "run/table.json", table())
    page = tmp_path / "transfer.md"
    page.write_text("nothing here\n")
    monkeypatch.setattr("sys.argv", ["transfer_page.py", str(tmp_path / "run"), str(page)])
    with pytest.raises(SystemExit, match="no lines"):
        script.main()
    assert page.read_text() == "nothing here\n"
    assert not page.with_suffix(".json").exists()
