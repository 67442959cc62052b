"""Sets made of another one: wrong labels in the share asked for, pictures left out, nothing of the original touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainkit import write_squares

from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.files import write_bytes
from tsss_edge.reproduce import derived
from tsss_edge.reproduce.derived import narrowed, with_masks, with_noisy_labels, without_categories


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("derived") / "data", train=40)


def test_a_share_of_labels_is_dropped_and_as_many_are_added(squares: Path, tmp_path: Path) -> None:
    before, after = (VocDataset.open(p) for p in (squares, with_noisy_labels(squares, tmp_path, share=0.1, seed=0)))
    old = {(i, c) for i in before.ids("train") for c in before.image_labels(i)}
    new = {(i, c) for i in after.ids("train") for c in after.image_labels(i)}
    assert len(old - new) == len(new - old) == round(0.1 * len(old))
    assert all(before.image_labels(i) == after.image_labels(i) for i in before.ids("val"))


def test_the_same_seed_makes_the_same_errors(squares: Path, tmp_path: Path) -> None:
    tables = [
        (with_noisy_labels(squares, tmp_path / name, share=0.2, seed=seed) / "image_labels.csv").read_text()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert tables[0] == tables[1] != tables[2]


def test_who_reads_a_set_that_is_made_again_sees_no_other(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of a benchmark make it again beside each other's trainings."""
    written: list[Path] = []
    monkeypatch.setattr(derived, "write_bytes", lambda path, data: (written.append(path), write_bytes(path, data)))
    with_noisy_labels(squares, tmp_path / "noisy", share=0.2, seed=0)
    narrowed(squares, tmp_path / "narrow", only=("red", "green"))
    without_categories(squares, tmp_path / "without", ("green",))
    assert len(written) == len(set(written)) > 9


def test_a_narrowed_set_shows_only_what_it_may(squares: Path, tmp_path: Path) -> None:
    whole, part = VocDataset.open(squares), VocDataset.open(narrowed(squares, tmp_path / "a", only=("red", "green")))
    for split in ("train", "val"):
        assert set(part.ids(split)) == {i for i in whole.ids(split) if 3 not in whole.image_labels(i)}
    (squares / "ImageSets/Segmentation/few.txt").write_text("\n".join(whole.ids("train")[:3]))
    assert VocDataset.open(narrowed(squares, tmp_path / "b", train_list="few")).ids("train") == whole.ids("train")[:3]
    with pytest.raises(DataError, match="no such split"):
        narrowed(squares, tmp_path / "c", train_list="many")


def test_the_supervised_network_learns_from_pictures_with_masks(tmp_path: Path) -> None:
    """As in CCP, where most photos have labels alone."""
    some = VocDataset.open(write_squares(tmp_path / "some", train=6))
    ids = some.ids("train")
    rows = "".join(f"{i},{' '.join(str(c) for c in some.image_labels(i))}\n" for i in ids)
    assert with_masks(some.root, tmp_path / "a") == some.root and not (tmp_path / "a").exists()
    (some.root / "image_labels.csv").write_text(f"id,classes\n{rows}")
    for image_id in ids[::2]:
        some.mask_path(image_id).unlink()
    assert VocDataset.open(with_masks(some.root, tmp_path / "b")).ids("train") == ids[1::2]
    for image_id in ids[1::2]:
        some.mask_path(image_id).unlink()
    with pytest.raises(DataError, match="no picture of train has a mask"):
        with_masks(some.root, tmp_path / "c")


def test_pictures_of_a_category_are_left_out(squares: Path, tmp_path: Path) -> None:
    part = VocDataset.open(without_categories(squares, tmp_path, ("green",)))
    whole = VocDataset.open(squares)
    assert set(part.ids("train")) == {i for i in whole.ids("train") if 2 not in whole.image_labels(i)}
    assert part.ids("val") == whole.ids("val")
    with pytest.raises(DataError, match="leave out fewer"):
        without_categories(squares, tmp_path / "none", ("red", "green", "blue"))


def test_links_follow_a_set_that_was_moved_but_never_become_those_of_another(squares: Path, tmp_path: Path) -> None:
    first, other = (write_squares(tmp_path / name, train=6) for name in ("first", "other"))
    made = with_noisy_labels(first, tmp_path / "out", share=0.1, seed=0)
    with pytest.raises(DataError, match=r"JPEGImages: is a link to .*first.*name another --out"):
        with_noisy_labels(other, tmp_path / "out", share=0.1, seed=0)
    moved = first.rename(tmp_path / "moved")
    assert with_noisy_labels(moved, tmp_path / "out", share=0.1, seed=0) == made
    assert (made / "JPEGImages").resolve() == moved / "JPEGImages"
    assert not list(made.glob(".*"))
