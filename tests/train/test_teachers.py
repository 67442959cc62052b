"""Answers of teachers: what they are worth in the loss, and who may be one."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from trainkit import write_squares

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes, Preprocess
from tsss_edge.config import TrainConfig
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.models import build_model
from tsss_edge.train.lnet import train_lnet
from tsss_edge.train.supervised import supervised_stage, train_supervised
from tsss_edge.train.teachers import TeacherNets, answers_loss

TEACHERS_CLASS = 2


@pytest.fixture
def teacher(squares: Path, config: TrainConfig, tmp_path: Path) -> Path:
    """A network of the tiny set's classes that sees one class everywhere."""
    classes = VocDataset.open(squares).classes
    net = build_model("edge-s", num_classes=len(classes))
    assert net.class_head is not None
    with torch.no_grad():
        net.class_head.weight.zero_()  # type: ignore[operator, union-attr]
        net.class_head.bias[TEACHERS_CLASS] = 9.0  # type: ignore[index]
    meta = CheckpointMeta(stage="supervised", arch="edge-s", classes=classes, preprocess=config.preprocess)
    Checkpoint.save(tmp_path / "teacher.pt", meta, net.state_dict())
    return tmp_path / "teacher.pt"


def test_the_loss_is_zero_when_both_say_the_same_and_a_divergence_else() -> None:
    """Between (1/2, 1/2) and (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 0.1438."""
    halves, quarters = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1), torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    assert answers_loss(halves.log(), halves).item() == pytest.approx(0.0, abs=1e-6)
    assert answers_loss(quarters.log(), halves.expand(1, 2, 3, 5)[..., :1, :1]).item() == pytest.approx(
        0.1438, abs=1e-4
    )


def test_of_several_teachers_the_mean_of_their_probabilities_counts() -> None:
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(build_model("edge-s", num_classes=3).eval())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = sum(net(x)[0].softmax(dim=1) for net in nets) / 2
    got = TeacherNets(nets).answers(x)
    torch.testing.assert_close(got, wanted)
    assert got.shape == (2, 3, 8, 8) and not got.requires_grad


def test_a_student_learns_what_its_teacher_says(
    squares: Path, config: TrainConfig, teacher: Path, tmp_path: Path
) -> None:
    """The teacher is wrong everywhere, so the student is worse for it, and the log says how near it came."""
    plain = train_supervised(msgspec.structs.replace(config, epochs=3), squares, tmp_path / "plain")
    taught = train_supervised(
        msgspec.structs.replace(config, epochs=3, teachers=(str(teacher),)), squares, tmp_path / "taught"
    )
    lines = [json.loads(line) for line in (tmp_path / "taught/log.jsonl").read_text().splitlines()]
    assert lines[-1]["answers"] < lines[0]["answers"]
    assert taught.meta.training["teachers"] == [str(teacher)]
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = {}
    for name, checkpoint in (("plain", plain), ("taught", taught)):
        net = build_model("edge-s", num_classes=len(checkpoint.meta.classes)).eval()
        net.load_state_dict(checkpoint.state())
        with torch.no_grad():
            seen[name] = net(x)[0].softmax(dim=1)[:, TEACHERS_CLASS].mean().item()
    assert seen["taught"] > seen["plain"] + 0.1


def test_pictures_without_labels_teach_what_the_teacher_says_of_them(
    squares: Path, config: TrainConfig, teacher: Path, tmp_path: Path
) -> None:
    """Masks of the other set are not opened; an epoch has the pictures of both, half of them with masks; val is the first one's."""
    write_squares(tmp_path / "more", train=40)
    for mask in (tmp_path / "more/SegmentationClass").glob("*.png"):
        mask.write_bytes(b"not read")
    taught = msgspec.structs.replace(config, teachers=(str(teacher),))
    dataset = VocDataset.open(squares)
    net = build_model("edge-s", num_classes=len(dataset.classes))
    stage = supervised_stage(taught, dataset, net, unlabelled=[tmp_path / "more"])
    alone = len(dataset.ids("train"))
    assert len(stage.samples.ids) == round(40 / alone) * alone + 40 > 2 * alone + 40
    found = {i: mask for b in stage.samples.batches(0, threads=1) for i, mask in zip(b.ids, b.masks, strict=True)}
    assert all((mask == 255).all() for i, mask in found.items() if i.startswith("1/"))
    assert any((mask != 255).any() for i, mask in found.items() if i.startswith("0/"))
    made = train_supervised(taught, squares, tmp_path / "run", unlabelled=[tmp_path / "more"])
    assert made.meta.stage == "supervised"
    with pytest.raises(ArtifactError, match="other settings or data"):
        train_supervised(taught, squares, tmp_path / "run", resume=True)


def test_pictures_without_labels_want_a_teacher(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="give --teacher too"):
        train_supervised(config, squares, tmp_path / "run", unlabelled=[squares])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": Classes(names=("background", "x"))}, "of the classes"),
        ({"stage": "lnet"}, "this is a lnet"),
        ({"preprocess": Preprocess(size_hw=(64, 64), scale=2.0)}, "must see what the student sees"),
    ],
)
def test_who_cannot_teach_is_refused_before_anything_is_written(
    squares: Path, config: TrainConfig, teacher: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    checkpoint = Checkpoint.load(teacher)
    other = tmp_path / "other.pt"
    Checkpoint.save(other, msgspec.structs.replace(checkpoint.meta, **changes), checkpoint.state())
    with pytest.raises(ArtifactError, match=says):
        train_supervised(msgspec.structs.replace(config, teachers=(str(other),)), squares, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_method_takes_no_teachers(squares: Path, config: TrainConfig, teacher: Path, tmp_path: Path) -> None:
    """One could have seen masks of what is weak."""
    settings = msgspec.structs.replace(config, teachers=(str(teacher),))
    with pytest.raises(ArtifactError, match="only a supervised network learns from teachers"):
        train_lnet(settings, squares, tmp_path / "run", strong=("red",))
