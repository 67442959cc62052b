"""A student learns what a teacher's encoder sees, from pictures alone; block by block where the two are built alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from trainkit import same_weights, write_squares

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes
from tsss_edge.config import TrainConfig
from tsss_edge.data.photographs import Photographs, to_learn_from
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.models import build_model
from tsss_edge.models.lite import PlainBlock, blocks_of
from tsss_edge.train.distill import Student, relative_error, train_distilled
from tsss_edge.train.optimizers import learning_rate
from tsss_edge.train.start import fresh_net, start_from

CONFIG = TrainConfig(
    arch="plain0", size_hw=(64, 64), epochs=2, batch=4, threads=1, amp=False, warmup_epochs=0.2, ema=0.0
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets, the masks of one unreadable, and a teacher: lite0 with fresh weights whose norms know the pictures."""
    root = tmp_path_factory.mktemp("distill")
    write_squares(root / "a")
    write_squares(root / "b", train=4)
    for mask in (root / "b/SegmentationClass").glob("*.png"):
        mask.write_bytes(b"not read")
    torch.manual_seed(0)
    net = build_model("lite0", num_classes=0)
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = None
    data = VocDataset.open(root / "a")
    x = torch.from_numpy(np.stack([data.image(i) for i in data.ids("train")])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        net.train()(x)
    classes = Classes(names=("background", "red", "green", "blue"))
    meta = CheckpointMeta(stage="lnet", arch="lite0", classes=classes, preprocess=CONFIG.preprocess)
    Checkpoint.save(root / "teacher/best.pt", meta, net.state_dict())
    return root


def test_pictures_of_several_sets_are_one_and_their_masks_stay_closed(root: Path) -> None:
    both = Photographs.of([root / "a", root / "b"])
    assert len(both.ids("train")) == 12 + 4 and len(both.ids("val")) == 6
    assert both.image("1/im000").shape == (64, 64, 3)
    assert set(np.unique(both.nothing("1/im000"))) == {255}


def test_a_picture_is_turned_as_its_own_set_turns_it(tmp_path: Path) -> None:
    """A mask that was made on the stored pixels of a picture with an EXIF turn: both stay as they are stored."""
    some = VocDataset.open(write_squares(tmp_path / "some"))
    first = some.ids("train")[0]
    some.image_path(first).unlink()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter of a turn
    Image.new("RGB", (64, 32)).save(some.root / f"JPEGImages/{first}.jpg", exif=turned)
    for size, wanted in (((64, 32), (32, 64)), ((32, 64), (64, 32))):
        Image.new("L", size).save(some.mask_path(first))
        both = Photographs.of([some.root])
        assert (
            both.image(f"0/{first}").shape[:2] == both.nothing(f"0/{first}").shape == some.mask(first).shape == wanted
        )


def test_every_listed_picture_is_learnt_from_but_those_of_val_and_test(root: Path, tmp_path: Path) -> None:
    """Lists of pictures without masks too (CCP's "weak"); a set of "val" alone is there to be used (DAVIS)."""
    shutil.copytree(root / "a", tmp_path / "a")
    lists = tmp_path / "a/ImageSets/Segmentation"
    ids = (lists / "train.txt").read_text().split()
    val = (lists / "val.txt").read_text().split()
    (lists / "train.txt").write_text("\n".join(ids[:8]))
    (lists / "weak.txt").write_text("\n".join(ids[6:11]))
    (lists / "test.txt").write_text(ids[11])
    (lists / "trainval.txt").write_text("\n".join(ids[:8] + val))
    assert sorted(to_learn_from(VocDataset.open(tmp_path / "a"))) == sorted(ids[:11])
    for other in ("train", "weak", "test", "trainval"):
        (lists / f"{other}.txt").unlink()
    assert to_learn_from(VocDataset.open(tmp_path / "a")) == val


def test_plain0_is_lite0_with_plain_blocks_of_the_same_channels() -> None:
    lite, plain = (build_model(arch, num_classes=0).eval() for arch in ("lite0", "plain0"))
    assert len(blocks_of(lite.encoder)) == len(blocks_of(plain.encoder)) == 16
    assert all(isinstance(b, PlainBlock) for b in blocks_of(plain.encoder))
    assert not [m for m in plain.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    x = torch.rand(1, 3, 64, 64)
    assert [f.shape for f in lite.encoder(x)] == [f.shape for f in plain.encoder(x)]


@pytest.mark.parametrize(("arch", "blocks_first"), [("plain0", 0.5), ("plain0", 0.0), ("edge-s", 0.0)])
def test_a_student_comes_nearer_to_its_teacher(root: Path, tmp_path: Path, arch: str, blocks_first: float) -> None:
    """Squared error as a share of the variance: 1 is a student that says the mean."""
    config = msgspec.structs.replace(CONFIG, arch=arch, epochs=12, lr=4e-3)
    sets, teacher = [root / "a", root / "b"], str(root / "teacher")
    found = train_distilled(config, sets, tmp_path / "run", teacher=teacher, blocks_first=blocks_first)
    assert found.meta.stage == "distilled"
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert ("blocks" in log[0]) == (blocks_first > 0)
    errors = [entry["feature_error"] for entry in log]
    assert errors[-1] < 0.97 < errors[0]
    net = fresh_net(config, num_classes=4)
    start_from(net, msgspec.structs.replace(config, init_from=str(tmp_path / "run")))
    name = next(n for n in net.state_dict() if n.startswith("encoder.") and n.endswith("weight"))
    assert torch.equal(net.state_dict()[name], found.state()[name])


@pytest.mark.parametrize(
    ("arch", "teacher", "kinds", "pairs"),
    [
        ("plain0", "lite0", ["Identity"] * 3, 16),
        ("edge-s", "lite0", ["Conv2d"] * 3, 0),  # 112 channels at stride 16 in both, but its features are never below 0
        ("edge-s", "edge-s", ["Identity"] * 3, 0),
        ("lite1", "lite0", ["Identity"] * 3, 0),  # as wide, but deeper
        ("lite2", "lite1", ["Conv2d"] * 3, 0),  # as deep, but wider
    ],
)
def test_what_stands_between_student_and_teacher(arch: str, teacher: str, kinds: list[str], pairs: int) -> None:
    net, guide = (build_model(name, num_classes=0).eval() for name in (arch, teacher))
    student = Student(net, guide.encoder, CONFIG)
    assert [type(adapter).__name__ for adapter in student.adapters] == kinds
    assert len(student.pairs) == pairs


def test_a_student_has_seen_what_its_teacher_has(root: Path, tmp_path: Path) -> None:
    """So that its weights start no network to which a category is weak whose masks the teacher saw."""
    teacher = Checkpoint.load(root / "teacher")
    knows = Checkpoint.save(tmp_path / "t.pt", msgspec.structs.replace(teacher.meta, strong=("red",)), teacher.state())
    config = msgspec.structs.replace(CONFIG, epochs=1)
    made = train_distilled(config, [root / "b"], tmp_path / "run", teacher=str(knows.path))
    assert made.meta.strong == ("red",)


@pytest.mark.parametrize(
    "setting",
    [
        {"freeze": 8},
        {"init_from": "runs/a"},
        {"encoder_weights": "imagenet"},
        {"encoder_lr": 0.1},
        {"color": 0.0},
        {"jaccard": 1.0},
    ],
)
def test_settings_that_a_student_does_not_take_are_refused(
    root: Path, tmp_path: Path, setting: dict[str, object]
) -> None:
    with pytest.raises(ArtifactError, match=f"leave {next(iter(setting))} out of its settings"):
        train_distilled(msgspec.structs.replace(CONFIG, **setting), [root / "a"], tmp_path, teacher="none")


def test_it_goes_on_where_it_stopped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters and their optimizer survive too."""
    config = msgspec.structs.replace(CONFIG, arch="edge-s")
    whole = train_distilled(config, [root / "a"], tmp_path / "whole", teacher=str(root / "teacher"))
    with monkeypatch.context() as stop:
        calls = iter(range(4))
        stop.setattr("tsss_edge.train.loop.learning_rate", lambda *a: (next(calls), learning_rate(*a))[1])
        with pytest.raises((StopIteration, RuntimeError)):
            train_distilled(config, [root / "a"], tmp_path / "cut", teacher=str(root / "teacher"))
    went_on = train_distilled(config, [root / "a"], tmp_path / "cut", teacher=str(root / "teacher"), resume=True)
    assert same_weights(whole.path, went_on.path)


def test_relative_error_by_hand() -> None:
    wanted = torch.tensor([[[[0.0, 2.0]]]])  # variance 2 (unbiased)
    assert relative_error(wanted + 1, wanted).item() == pytest.approx(0.5)


def test_no_teacher_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such"):
        train_distilled(CONFIG, [root / "a"], tmp_path / "run", teacher=str(root / "nobody"))
