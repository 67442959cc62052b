"""A third category added to a run of two, from image-level labels alone."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from trainkit import same_weights, write_squares

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError, DataError
from tsss_edge.files import read_json
from tsss_edge.models import Heads, load_model
from tsss_edge.scoring import Views, class_matrix
from tsss_edge.train.adapt import AdaptReport, adapt, explain, repeated, shortened
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.new_row import fit_new_row, widened
from tsss_edge.train.pnet import PLAIN, class_stage
from tsss_edge.train.supervised import train_supervised

NEW = 3  # "blue"


@pytest.fixture(scope="module")
def old_run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run that knows red and green."""
    root = tmp_path_factory.mktemp("old")
    data = without_blue(squares, root / "data")
    config = TrainConfig(
        size_hw=(64, 64), epochs=8, batch=4, lr=2e-3, warmup_epochs=0.5, ema=0.5, scale_range=(0.9, 1.1), threads=1
    )
    train_supervised(config, data, root / "run")
    return root / "run"


def without_blue(squares: Path, out: Path) -> Path:
    """Only the pictures without category 3, and no word of it."""
    shutil.copytree(squares, out)
    dataset = VocDataset.open(squares)
    (out / "classes.txt").write_text("background\nred\ngreen\n")
    for split in ("train", "val"):
        kept = [i for i in dataset.ids(split) if NEW not in dataset.image_labels(i)]
        (out / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{i}\n" for i in kept))
    with (squares / "image_labels.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if str(NEW) not in row[1].split()]
    (out / "image_labels.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
    return out


def change_masks(data: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Rewrite the training masks of pictures that show the new category."""
    dataset = VocDataset.open(data)
    for image_id in dataset.ids("train"):
        if NEW in dataset.image_labels(image_id):
            write_mask(dataset.mask_path(image_id), change(dataset.mask(image_id).copy()))
    return data


def test_it_reports_old_and_new_apart_and_keeps_the_old_names(squares: Path, old_run: Path, tmp_path: Path) -> None:
    report = adapt(old_run, squares, tmp_path / "new", new_class="blue")
    assert report == read_json(tmp_path / "new/adapt.json", AdaptReport)
    dataset = VocDataset.open(squares)
    assert report.images_with_new_class == sum(NEW in dataset.image_labels(i) for i in dataset.ids("train"))
    assert report.lost == report.miou_old_before - report.miou_old_after
    assert report.iou_new is not None and report.iou_new_interval is not None
    low, high = report.iou_new_interval
    assert low <= report.iou_new <= high
    low, high = report.old_change_interval or (1.0, -1.0)
    assert low <= -report.lost <= high
    assert report.per_class["blue"].before in (None, 0.0)
    new = Checkpoint.load(tmp_path / "new")
    assert new.meta.parent == report.parent == Checkpoint.load(old_run).sha256
    assert new.meta.classes.names == ("background", "red", "green", "blue")
    assert new.meta.strong == ("red", "green")
    for path in (tmp_path / "new/labels/SegmentationClass").iterdir():
        assert set(np.unique(read_mask(path)).tolist()) <= {0, 255, *dataset.image_labels(path.stem)}


def test_masks_of_the_new_category_are_never_read(squares: Path, old_run: Path, tmp_path: Path) -> None:
    adapt(old_run, squares, tmp_path / "clean", new_class="blue", epochs=1)
    shutil.copytree(squares, tmp_path / "data")
    rng = np.random.default_rng(3)

    def poisoned(mask: np.ndarray) -> np.ndarray:
        hidden = ~np.isin(mask, (1, 2))
        mask[hidden] = rng.choice(np.array([0, NEW, 255], np.uint8), int(hidden.sum()))
        return mask

    change_masks(tmp_path / "data", poisoned)
    adapt(old_run, tmp_path / "data", tmp_path / "poisoned", new_class="blue", epochs=1)
    assert same_weights(tmp_path / "clean/best.pt", tmp_path / "poisoned/best.pt")


def test_old_pictures_without_a_mask_get_the_old_network_s_answer(squares: Path, old_run: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "data")
    dataset = VocDataset.open(tmp_path / "data")
    old = next(i for i in dataset.ids("train") if NEW not in dataset.image_labels(i))
    dataset.mask_path(old).unlink()
    adapt(old_run, tmp_path / "data", tmp_path / "new", new_class="blue", epochs=1)
    assert (tmp_path / f"new/labels/SegmentationClass/{old}.png").is_file()


def test_collected_frames_join_the_old_set_and_only_labelled_ones(squares: Path, old_run: Path, tmp_path: Path) -> None:
    old, both = VocDataset.open(old_run.parent / "data"), VocDataset.open(squares)
    blue = [i for i in both.ids("train") if NEW in both.image_labels(i)]
    field = tmp_path / "field"
    for image_id in blue:
        copied = field / "JPEGImages" / f"frame-{both.image_path(image_id).name}"
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(both.image_path(image_id), copied)
    (field / "ImageSets/Segmentation").mkdir(parents=True)
    (field / "ImageSets/Segmentation/train.txt").write_text("".join(f"frame-{i}\n" for i in blue))
    (field / "classes.txt").write_text("background\nred\ngreen\nblue\n")
    with pytest.raises(DataError, match="no labelled frame"):
        adapt(old_run, old.root, tmp_path / "new", new_class="blue", collected=field, epochs=1)
    rows = [f"frame-{i},{' '.join(map(str, sorted(both.image_labels(i))))}" for i in blue[1:]]
    (field / "image_labels.csv").write_text("\n".join(["id,classes", *rows]) + "\n")
    report = adapt(old_run, old.root, tmp_path / "new", new_class="blue", collected=field, eval_data=squares, epochs=1)
    assert report.images_with_new_class == len(blue) - 1
    assert report.images == len(both.ids("val"))
    joined = VocDataset.open(tmp_path / "new/data")
    assert joined.ids("train") == (*old.ids("train"), *(f"frame-{i}" for i in blue[1:]))
    assert joined.ids("val") == old.ids("val")


def test_it_measures_on_the_masks_of_another_set(squares: Path, old_run: Path, tmp_path: Path) -> None:
    """The new category has image-level labels alone, in "val" too; the set of --eval-data has its masks."""
    data = shutil.copytree(squares, tmp_path / "data")
    dataset = VocDataset.open(data)
    for image_id in (*dataset.ids("train"), *dataset.ids("val")):
        if NEW in dataset.image_labels(image_id):
            dataset.mask_path(image_id).unlink()
    report = adapt(old_run, data, tmp_path / "a", new_class="blue", eval_data=squares, epochs=1)
    assert report.images == 6 and report.iou_new is not None
    made = Checkpoint.load(tmp_path / "a")
    assert made.meta.metrics["miou"] == pytest.approx(report.miou)
    shutil.rmtree(data / "SegmentationClass")
    with pytest.raises(DataError, match="none of the 6 pictures of val has a mask"):
        adapt(old_run, data, tmp_path / "b", new_class="blue")
    assert not (tmp_path / "b").exists()


def test_explain_gives_the_new_category_what_no_named_one_explains() -> None:
    p = torch.tensor([[0.2, 0.5], [0.1, 0.3], [0.7, 0.2]])  # background, red, green in two cells
    heads = Heads(
        logits=p.log().view(3, 1, 2), objectness=torch.tensor([30.0, -30.0]).view(1, 1, 2)
    )  # object, not object
    # red and blue are named: green must be blue, and background that looks like an object too.
    found = explain(heads, frozenset({1, NEW}), NEW)[:, 0]
    np.testing.assert_allclose(found, [[0.0, 0.5], [0.1, 0.3], [0.9, 0.2]], atol=1e-6)
    # Without blue in the label the rest is shared out among what is named.
    found = explain(heads, frozenset({1}), NEW)[:, 0]
    np.testing.assert_allclose(found, [[2 / 3, 5 / 8], [1 / 3, 3 / 8]], atol=1e-6)


def test_a_wider_head_says_the_same_of_old_categories(old_run: Path) -> None:
    net = load_model(Checkpoint.load(old_run))
    config = msgspec.convert(Checkpoint.load(old_run).meta.training, TrainConfig)
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before, after = net(x).logits, widened(net, config, 4).eval()(x).logits
    torch.testing.assert_close(after[:, :3], before, rtol=1e-5, atol=1e-5)  # other kernels for another width
    assert (after[:, 3] == -5).all()


def test_the_new_row_finds_its_category_before_the_first_step(squares: Path, old_run: Path) -> None:
    old, dataset = Checkpoint.load(old_run), VocDataset.open(squares)
    config = msgspec.convert(old.meta.training, TrainConfig)
    net = widened(load_model(old), config, 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ids = dataset.ids("train")
    stage = class_stage(config, dataset, net, strong=(), mask_of=dataset.mask, switches=PLAIN, ids=ids)
    fit_new_row(net, stage.samples, config)
    after = net.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"class_head.weight", "class_head.bias"}
    assert all(torch.equal(after[name][:NEW], before[name][:NEW]) for name in changed)
    found = class_matrix(net, Views(dataset, dataset.ids("val"), config.preprocess))
    assert found.iou[NEW] > 0.5


def test_pictures_of_the_new_category_make_a_quarter_of_an_epoch() -> None:
    ids = tuple("abcdefghij")
    assert Counter(repeated(ids, ("i",))) == Counter({**dict.fromkeys(ids, 1), "i": 3})
    assert repeated(ids, ids[:5]) == ids  # they are enough


def test_a_second_category_is_learnt_as_long_as_the_first() -> None:
    once = shortened(TrainConfig(epochs=40, lr=0.004), None)
    assert (once.epochs, once.lr) == (10, 0.002)
    assert shortened(once, None, again=True) == once
    assert shortened(once, 3, again=True).epochs == 3


def test_it_refuses_a_folder_that_holds_a_run_before_it_writes(squares: Path, old_run: Path, tmp_path: Path) -> None:
    taken = shutil.copytree(old_run, tmp_path / "run")
    with pytest.raises(ArtifactError, match="holds a run already"):
        adapt(old_run, squares, taken, new_class="blue")
    assert not (taken / "labels").exists()


def test_it_wants_a_background(squares: Path, old_run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    (data / "classes.txt").write_text("ground\nred\ngreen\nblue\n")
    with pytest.raises(DataError, match="background"):
        adapt(old_run, data, tmp_path / "out", new_class="blue")


def test_it_refuses_what_does_not_fit(squares: Path, old_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="as the last"):
        adapt(old_run, squares, tmp_path / "a", new_class="violet")
    without = without_blue(squares, tmp_path / "data")
    (without / "classes.txt").write_text("background\nred\ngreen\nblue\n")
    with pytest.raises(DataError, match="no training picture"):
        adapt(old_run, without, tmp_path / "b", new_class="blue")
    lnet = write_squares(tmp_path / "small", train=6, val=3)
    train_lnet(
        TrainConfig(size_hw=(64, 64), epochs=1, batch=4, threads=1), lnet, tmp_path / "lnet", strong=("red", "green")
    )
    with pytest.raises(ArtifactError, match="expected one that tells categories apart"):
        adapt(tmp_path / "lnet", squares, tmp_path / "c", new_class="blue")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
