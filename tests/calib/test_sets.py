"""Which pictures calibrate: balanced, reproducible, from the training split, known by hash."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import netkit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsss_edge.calib.sets import Chosen, balanced, choose, evenly_spaced, find_set, noise, shuffled, spread
from tsss_edge.config import CalibSet, load_calib_set, shared_folder
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import sha256_file
from tsss_edge.segment import load_picture


def make_set(root: Path, labels: dict[str, str]) -> VocDataset:
    """Pictures that exist by name only, with image-level labels: {id: "1 3"}."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "classes.txt").write_text("background\ncat\ndog\ncow\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{i}\n" for i in labels))
    (root / "image_labels.csv").write_text("id,class ids\n" + "".join(f"{i},{c}\n" for i, c in labels.items()))
    for image_id in labels:
        (root / "JPEGImages" / f"{image_id}.jpg").write_bytes(image_id.encode())
    return VocDataset.open(root)


def counts(dataset: VocDataset, ids: tuple[str, ...]) -> Counter[int]:
    return Counter(c for i in ids for c in dataset.image_labels(i))


MANY = {
    **{f"cat{i}": "1" for i in range(40)},
    **{f"dog{i}": "2" for i in range(10)},
    "cow0": "3",
    "cow1": "3",
    "none": "",
}


def test_rare_classes_come_as_often_as_they_can(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, MANY)
    assert counts(dataset, balanced(dataset, dataset.ids("train"), 6, seed=0)) == {1: 2, 2: 2, 3: 2}
    assert counts(dataset, balanced(dataset, dataset.ids("train"), 22, seed=0)) == {1: 10, 2: 10, 3: 2}


def test_pictures_without_objects_come_last(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, MANY)
    ids = dataset.ids("train")
    assert "none" not in balanced(dataset, ids, len(ids) - 1, seed=0)
    assert balanced(dataset, ids, len(ids), seed=0) == tuple(sorted(ids))


def test_a_picture_counts_for_all_of_its_classes(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, {"both": "1 2", "cat": "1", "dog": "2", "cow": "3"})
    assert "cow" in balanced(dataset, dataset.ids("train"), 2, seed=0)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations([f"p{i}" for i in range(12)]), seed=st.integers(0, 5))
def test_the_seed_decides_and_not_the_order_of_the_list(order: list[str], seed: int) -> None:
    ids = [f"p{i}" for i in range(12)]
    assert shuffled(order, seed) == shuffled(ids, seed)
    assert spread(order, 5, seed) == spread(ids, 5, seed) == tuple(sorted(spread(ids, 5, seed)))


def test_other_seeds_choose_others(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, MANY)
    found = {balanced(dataset, dataset.ids("train"), 6, seed=s) for s in range(5)}
    assert len(found) == 5


# -- choose


def test_chosen_pictures_are_known_by_hash(tmp_path: Path) -> None:
    dataset = VocDataset.open(netkit.write_set(tmp_path, train=6))
    chosen = choose(dataset, netkit.SPEC, CalibSet(name="t", size=4))
    assert len(chosen.pictures) == len(chosen.ids) == 4 and chosen.split == "train" and not chosen.random
    assert chosen.sha256 == tuple(sha256_file(dataset.image_path(i)) for i in chosen.ids)
    picture = chosen.pictures[0]()
    assert picture.shape == (1, *netkit.SPEC.size_hw, 3) and picture.dtype == np.uint8


def test_the_list_hash_is_that_of_the_set_not_of_its_order() -> None:
    a, b = (Chosen((), hashes, "train", 0) for hashes in (("1", "2"), ("2", "1")))
    assert a.list_sha256 == b.list_sha256 != Chosen((), ("1", "3"), "train", 0).list_sha256


def test_ids_left_out_are_not_chosen(tmp_path: Path) -> None:
    dataset = VocDataset.open(netkit.write_set(tmp_path, train=6))
    chosen = choose(dataset, netkit.SPEC, CalibSet(name="t", size=6), without=("t0", "t3"))
    assert set(chosen.ids) == {"t1", "t2", "t4", "t5"}


def test_more_than_there_are_gives_all(tmp_path: Path) -> None:
    dataset = VocDataset.open(netkit.write_set(tmp_path, train=3))
    assert len(choose(dataset, netkit.SPEC, CalibSet(name="t", size=512)).pictures) == 3


def test_no_picture_at_all_is_refused(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, {"a": "1"})
    with pytest.raises(DataError, match="no picture of split train is left"):
        choose(dataset, netkit.SPEC, CalibSet(name="t", size=1), without=("a",))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        CalibSet(name="t", size=0)


def test_a_list_of_ids(tmp_path: Path) -> None:
    dataset = VocDataset.open(netkit.write_set(tmp_path / "data", train=6))
    (tmp_path / "mine.txt").write_text("t4\n\nt1\n")
    chosen = choose(dataset, netkit.SPEC, CalibSet(name="t", list="mine.txt"), list_folder=tmp_path)
    assert chosen.ids == ("t4", "t1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such list of calibration pictures"),
        ("\n", "the list is empty"),
        ("t0\nv0\n", r"1 of 2 pictures \(v0, ...\) are not in split 'train'"),
    ],
)
def test_bad_lists(tmp_path: Path, content: str | None, message: str) -> None:
    dataset = VocDataset.open(netkit.write_set(tmp_path / "data"))
    if content is not None:
        (tmp_path / "mine.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        choose(dataset, netkit.SPEC, CalibSet(name="t", list="mine.txt"), list_folder=tmp_path)


def test_few_pictures_are_warned_of() -> None:
    assert "only 127 calibration pictures" in Chosen((), ("0",) * 127, "train", 0).note
    assert Chosen((), ("0",) * 128, "train", 0).note == ""


def test_noise_is_marked_and_reproducible() -> None:
    first, second = noise(netkit.SPEC, 3, seed=1), noise(netkit.SPEC, 3, seed=1)
    assert first.random and "NOISE" in first.note and first.sha256 == second.sha256
    assert np.array_equal(first.pictures[2](), second.pictures[2]())
    assert first.sha256 != noise(netkit.SPEC, 3, seed=2).sha256


def test_a_picture_is_loaded_as_the_network_gets_it(tmp_path: Path) -> None:
    """RGB, not BGR: the red channel comes first."""
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 10, 20)).save(tmp_path / "red.png")
    picture = load_picture(tmp_path / "red.png", netkit.SPEC)
    assert picture.shape == (1, 64, 96, 3) and (picture == [200, 10, 20]).all()


# -- the sets of the project


@pytest.mark.parametrize("name", sorted(p.stem for p in shared_folder("calib").glob("*.toml")))
def test_shared_sets_are_as_they_say(name: str) -> None:
    found, folder = find_set(name)
    ids = (folder / found.list).read_text().split()
    assert found.name == name and found.split == "train"
    assert len(ids) == found.size == len(set(ids)) and ids == sorted(ids)


def test_a_set_of_ones_own_brings_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nlist = "mine.txt"\n')
    assert find_set(str(tmp_path / "mine.toml")) == (CalibSet(name="mine", list="mine.txt"), tmp_path)
    with pytest.raises(ArtifactError, match="no CalibSet named 'nothing'"):
        find_set("nothing")


def test_the_camvid_list_is_the_balanced_choice(shared_data: Path) -> None:
    dataset = VocDataset.open(shared_data / "camvid")
    found = load_calib_set("camvid-train-128")
    ids = balanced(dataset, dataset.ids("train"), found.size, found.seed)
    assert list(ids) == (shared_folder("calib") / found.list).read_text().split()


def test_the_voc_list_is_even_over_its_classes(shared_data: Path) -> None:
    """By the image-level labels: no class but people (who are everywhere) has twice another's pictures."""
    rows = [line.split(",") for line in (shared_data / "voc2012_lists/image_labels.csv").read_text().splitlines()[1:]]
    labels = {row[0]: [int(c) for c in row[1].split()] for row in rows}
    found = load_calib_set("voc2012-train-512")
    ids = (shared_folder("calib") / found.list).read_text().split()
    per_class = Counter(c for i in ids for c in labels[i])
    assert set(per_class) == set(range(1, 21))
    del per_class[15]
    assert min(per_class.values()) == 32 and max(per_class.values()) == 36


def test_a_few_of_many_come_from_all_parts_of_the_list() -> None:
    assert list(evenly_spaced(range(100), 4)) == [0, 25, 50, 75]
    assert list(evenly_spaced(range(3), 4)) == [0, 1, 2]
    assert len(set(evenly_spaced(range(33), 32))) == 32
