"""Two processes under torchrun, half the batch each: one training, written by one of them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import rankwork
import torch

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.data.augment import TrainAugment
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.files import read_json
from tsss_edge.label.write import LabelReport
from tsss_edge.train.distributed import average_gradients, join_training, mean_of_processes
from tsss_edge.train.judge import QualityJudge
from tsss_edge.train.loader import Samples
from tsss_edge.train.loop import epoch_seed
from tsss_edge.train.runfolder import to_toml
from tsss_edge.train.supervised import train_supervised

TOLERANCE = 1e-3  # of the loss of an epoch, relative: sums in another order, over 6 steps (measured: at most 2e-5)


def torchrun(arguments: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "tsss_edge", *arguments], env=environment, capture_output=True, text=True, timeout=600
    )


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_two_processes_follow_one(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    config = msgspec.structs.replace(config, amp=False)  # bf16 would hide a wrong mean in its rounding
    train_supervised(config, squares, tmp_path / "one")
    (tmp_path / "config.toml").write_text(to_toml(config))
    arguments = ["train", "supervised", "--data", str(squares), "--config", str(tmp_path / "config.toml")]
    done = torchrun([*arguments, "--out", str(tmp_path / "two")], processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best.pt") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=TOLERANCE)
    one, two = (Checkpoint.load(tmp_path / run / "last.pt").state() for run in ("one", "two"))
    name = "encoder.stem.1.running_var"  # of half the batch it would differ by percents
    torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=0)
    files = {path.name for path in (tmp_path / "two").iterdir()} - {"tensorboard"}
    assert files == {"best.pt", "last.pt", "config.toml", "log.jsonl"}
    assert len(list((tmp_path / "two/tensorboard").iterdir())) == 1  # one writer


@pytest.mark.parametrize("world", [2, 4])
def test_shares_of_a_batch_are_the_batch(squares: Path, config: TrainConfig, world: int) -> None:
    dataset = VocDataset.open(squares)
    augment = TrainAugment(config.size_hw, config.preprocess)
    samples = Samples(
        dataset, dataset.ids("train"), dataset.mask, augment, batch=4, weak=frozenset(dataset.ids("train")[:4])
    )
    shares = zip(*(samples.batches(1, rank=rank, world=world) for rank in range(world)), strict=True)
    for whole, parts in zip(samples.batches(1), shares, strict=True):
        ids = [image_id for part in parts for image_id in part.ids]
        assert sorted(ids) == sorted(whole.ids) and len(set(ids)) == 4
        picture = {image_id: image for part in parts for image_id, image in zip(part.ids, part.images, strict=True)}
        assert all(torch.equal(picture[i], image) for i, image in zip(whole.ids, whole.images, strict=True))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ArtifactError, match="a batch of 4 does not divide among 3 processes; choose a multiple of 3"):
        join_training(torch.device("cpu"), batch=4)


def test_a_world_of_one_changes_nothing() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    (3 * used.sum()).backward()
    average_gradients([used, unused])
    assert used.grad is not None and used.grad.tolist() == [3, 3] and unused.grad is None
    assert mean_of_processes(torch.tensor(2.0)).item() == 2


def test_every_epoch_and_process_has_a_seed_of_its_own() -> None:
    seeds = {epoch_seed(seed, epoch, rank) for seed in range(3) for epoch in range(50) for rank in range(8)}
    assert len(seeds) == 3 * 50 * 8


def test_labels_calibration_and_validation_of_two_processes_are_those_of_one(
    config: TrainConfig, tmp_path: Path
) -> None:
    rankwork.prepare(tmp_path, msgspec.structs.replace(config, epochs=2))
    rankwork.work(tmp_path, tmp_path / "one")
    script, places = Path(rankwork.__file__), os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    done = subprocess.run(
        [*command, str(tmp_path), str(tmp_path / "two")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        {p.relative_to(root): p for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one.keys() == two.keys() and len(list((tmp_path / "two/labels/SegmentationClass").iterdir())) > 16
    timed = {"manifest.json", "auto.search.json", "auto.search.svg"}
    assert not [
        name for name, path in one.items() if name.name not in timed and path.read_bytes() != two[name].read_bytes()
    ]
    a, b = (read_json(tmp_path / run / "labels/manifest.json", LabelReport) for run in ("one", "two"))
    assert a == msgspec.structs.replace(b, seconds=a.seconds, images_per_s=a.images_per_s)


def test_a_process_without_strong_pictures_takes_the_same_step() -> None:
    judge, before = QualityJudge(TrainConfig()), copy.deepcopy(QualityJudge(TrainConfig()).net.state_dict())
    nothing = judge.learn(torch.zeros(0, 3, 8, 8), torch.zeros(0, 4, 8, 8), torch.Generator())
    assert nothing.item() == 0
    assert all(torch.equal(before[name], value) for name, value in judge.net.state_dict().items())
