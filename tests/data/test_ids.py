"""Ids are names: whatever list, table or annotation gives them, nothing is read or written outside its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tsss_edge.data.ids import check_list_name, inside, place
from tsss_edge.data.importers.found import Item
from tsss_edge.data.voc import VocDataset, write_pair
from tsss_edge.errors import DataError
from tsss_edge.label.write import label_path

BAD = (
    "../a",
    "/etc/a",
    "a/../b",
    ".hidden",
    "a/.b",
    "a\\b",
    "a\tb",
    "C:a",
    "",
    "a/",
    "a\0b",
    "x" * 300,
    "a\ud800",
    " a",
)


@pytest.mark.parametrize("bad", BAD)
def test_no_path_comes_of_a_bad_id(tmp_path: Path, bad: str) -> None:
    image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    for way in (
        lambda: place(tmp_path, bad, ".png"),
        lambda: label_path(tmp_path, bad),
        lambda: write_pair(tmp_path, bad, image, mask),
        lambda: Item(id=bad, picture=tmp_path / "a.jpg"),
    ):
        with pytest.raises(DataError, match="is no image id"):
            way()
    assert not list(tmp_path.iterdir())


def test_a_table_of_labels_and_a_subset_are_checked_too(tiny: Path) -> None:
    (tiny / "image_labels.csv").write_text("id,classes\n../../evil,1\n")
    with pytest.raises(DataError, match=r"line 2: '\.\./\.\./evil' is no image id"):
        VocDataset.open(tiny).image_labels("a")
    with pytest.raises(DataError, match="is no name of a list"):
        Item(id="a", picture=tiny / "a.jpg", split="../../evil")
    assert check_list_name("train", "here") == "train"


def test_folders_of_ids_are_fine_and_links_out_of_them_are_not(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "real").mkdir(parents=True)
    elsewhere.mkdir()
    Image.new("RGB", (2, 2)).save(elsewhere / "a.png")
    (home / "linked").symlink_to(elsewhere)
    (home / "real/b.png").symlink_to(elsewhere / "a.png")  # what an import makes: the picture itself is a link
    assert place(home, "real/b", ".png").is_file()
    with pytest.raises(DataError, match="a link that leads out of"):
        place(home, "linked/a", ".png")


def test_names_of_annotations_stay_inside(tmp_path: Path) -> None:
    assert inside(tmp_path, "a\\b.jpg", "x") == tmp_path / "a/b.jpg"
    for bad in ("/etc/a.jpg", "../a.jpg", "a/../../b.jpg", "", "a\0.jpg"):
        with pytest.raises(DataError, match="leaves the folder"):
            inside(tmp_path, bad, "x")
