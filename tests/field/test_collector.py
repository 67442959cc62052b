"""Collecting: who is kept, who is passed over, the budget, and what a kill leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fieldkit import CLASSES, collector, offered

from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.field.collector import parse_bytes, parse_period_s
from tsss_edge.field.kept import KeptFrames
from tsss_edge.files import write_bytes


def frames(root: Path) -> list[int]:
    """Frame numbers of what is kept, by the folder alone."""
    return sorted(entry.frame for entry in KeptFrames(root, CLASSES, features="encoder").entries.values())


def test_one_frame_a_period_and_the_best_of_it(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k")
    for n, entropy in enumerate([0.2, 0.9, 0.5]):
        kept.offer(offered(n, towards=n, entropy=entropy))
    kept.offer(offered(12, towards=4))
    kept.close()
    assert frames(tmp_path / "k") == [1, 12]
    assert len(list((tmp_path / "k/JPEGImages").iterdir())) == len(list((tmp_path / "k/Prelabels").iterdir())) == 2


def test_an_unknown_object_comes_first(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k")
    kept.offer(offered(0, towards=0, unknown=0.1, entropy=0.1))
    kept.offer(offered(1, towards=1, entropy=0.9))
    kept.close()
    assert frames(tmp_path / "k") == [0]


def test_what_shows_the_drift_comes_before_everything(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k")
    kept.offer(offered(0, towards=0, unknown=0.3, entropy=0.9))
    kept.offer(offered(1, towards=1, entropy=0.1, drift=True))
    kept.close()
    assert frames(tmp_path / "k") == [1]


def test_no_near_duplicates_not_even_after_a_restart(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k")
    assert kept.offer(offered(0, towards=3))
    assert not kept.offer(offered(20, towards=3))
    kept.close()
    again = collector(tmp_path / "k")
    assert not again.offer(offered(40, towards=3))
    assert again.offer(offered(41, towards=5))
    again.close()
    assert frames(tmp_path / "k") == [0, 41]


def test_what_is_kept_is_a_set_in_voc_layout_without_a_truth(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k")
    kept.offer(offered(0, unknown=0.3))
    kept.close()
    dataset = VocDataset.open(tmp_path / "k")
    (image_id,) = dataset.ids("train")
    assert dataset.classes == CLASSES
    assert not dataset.mask_path(image_id).exists()
    entry = kept.kept.entries[image_id]
    assert (entry.classes, entry.unknown, entry.engine, entry.source) == ((1,), 0.3, "e.xml", "s")


def test_the_budget_drops_the_least_useful_and_never_a_labelled_one(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k")
    kept.offer(offered(0, towards=0, entropy=0.1))
    kept.close()
    first, size = next(iter(kept.kept.entries.items()))
    write_bytes(tmp_path / "k/image_labels.csv", f"id,classes\n{first},1\n".encode())
    again = collector(tmp_path / "k", budget=int(size.size * 2.5))
    for n, entropy in ((20, 0.2), (40, 0.9)):
        again.offer(offered(n, towards=n // 10, entropy=entropy))
    again.close()
    assert frames(tmp_path / "k") == [0, 40]


def test_a_picture_without_an_entry_is_taken_up_again(tmp_path: Path) -> None:
    kept = collector(tmp_path / "k")
    kept.offer(offered(0))
    kept.close()
    name = next((tmp_path / "k/JPEGImages").iterdir())
    name.with_name("killed.jpg").write_bytes(name.read_bytes())
    reopened = KeptFrames(tmp_path / "k", CLASSES, features="encoder")
    assert "killed" in reopened.entries
    assert "killed" in VocDataset.open(tmp_path / "k").ids("train")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        collector(tmp_path)


def test_units() -> None:
    assert (parse_bytes("2GiB"), parse_bytes("1.5 MiB")) == (2 << 30, 3 << 19)
    assert (parse_period_s("10/h"), parse_period_s("2/min")) == (360.0, 30.0)
    for wrong in ("2", "x/h", "0/h", "3/week"):
        with pytest.raises(DataError, match="as 10/h"):
            parse_period_s(wrong)
    with pytest.raises(DataError, match="as 500MiB"):
        parse_bytes("2 gigs")


def test_two_processes_do_not_collect_into_one_folder(tmp_path: Path) -> None:
    kept = collector(tmp_path / "field", period_s=1.0)
    code = "import sys; sys.path[:0] = sys.argv[2:]; from fieldkit import *; collector(Path(sys.argv[1]), period_s=1.0)"
    call = [sys.executable, "-c", f"from pathlib import Path; {code}", str(tmp_path / "field"), *sys.path]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 1 and "this folder of collected frames" in done.stderr
    kept.close()
    assert subprocess.run(call, capture_output=True, text=True).returncode == 0
