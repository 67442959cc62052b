"""The loop: it learns, resumes bit for bit, stops on NaN, refuses what does not belong together."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainkit import same_weights, write_squares
from waiting import wait_for

from tsss_edge import machine
from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes
from tsss_edge.config import TrainConfig, read_toml
from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import ArtifactError, DataError, UnavailableError
from tsss_edge.models import load_model
from tsss_edge.train import loop
from tsss_edge.train.loop import Average, autocast_dtype, pick_device
from tsss_edge.train.runfolder import Checkpoints, Log, to_toml
from tsss_edge.train.start import fresh_net
from tsss_edge.train.supervised import supervised_stage, train_supervised


def test_loss_falls_and_the_run_folder_is_complete(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    config = msgspec.structs.replace(config, epochs=7)  # 21 steps
    checkpoint = train_supervised(config, squares, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert losses[-1] < 0.5 * losses[0]
    assert sum(losses[:3]) > 1.5 * sum(losses[-3:])  # not one lucky epoch; bf16 differs between CPUs, so no finer
    assert checkpoint.meta.metrics["miou"] == max(line["miou"] for line in lines)
    assert read_toml(tmp_path / "config.toml", TrainConfig) == config
    assert Checkpoint.load(tmp_path / "last.pt").resume()["epoch"] == 7
    load_model(checkpoint)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    names = {"lr", "loss", "miou", "pixel_accuracy", "iou/background", "iou/red", "iou/green", "iou/blue"}
    assert names <= set(board.Tags()["scalars"]) and board.Tags()["images"] == ["val"]
    last = {name: board.Scalars(name)[-1].value for name in names}
    assert last["miou"] == pytest.approx(np.mean([value for name, value in last.items() if name.startswith("iou/")]))
    assert board.Images("val")[-1].step == 7 and board.Images("val")[-1].width > 320


def test_same_seed_same_weights_other_seed_others(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    config = msgspec.structs.replace(config, epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_supervised(msgspec.structs.replace(config, seed=seed), squares, tmp_path / name)
    assert same_weights(tmp_path / "a/last.pt", tmp_path / "b/last.pt")
    assert not same_weights(tmp_path / "a/last.pt", tmp_path / "c/last.pt")


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_after_an_error_equals_an_uninterrupted_run(
    squares: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = msgspec.structs.replace(config, epochs=3, optimizer=optimizer)
    train_supervised(config, squares, tmp_path / "whole")
    update = Average.update

    def dies_in_the_second_epoch(self: Average, net: torch.nn.Module, step: int) -> None:
        if step == 4:
            raise Killed
        update(self, net, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Average, "update", dies_in_the_second_epoch)
        train_supervised(config, squares, tmp_path / "cut")
    assert Checkpoint.load(tmp_path / "cut/last.pt").resume()["epoch"] == 1
    train_supervised(config, squares, tmp_path / "cut", resume=True)
    for name in ("last.pt", "best.pt"):
        assert same_weights(tmp_path / "whole" / name, tmp_path / "cut" / name)
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


WAITS = """  # tsss-edge, but a training stands still in its second epoch
import time
from tsss_edge.cli import main
from tsss_edge.train import loop

class Average(loop.Average):
    def update(self, net, step):
        super().update(net, step)
        if step == 4:  # of three an epoch
            time.sleep(600)

loop.Average = Average
main()
"""


def test_resume_after_kill_9_equals_an_uninterrupted_run(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    """A process of its own, killed in its second epoch, in which it waits."""
    config = msgspec.structs.replace(config, epochs=8)
    train_supervised(config, squares, tmp_path / "whole")
    (tmp_path / "config.toml").write_text(to_toml(config))
    arguments = ["train", "supervised", "--data", str(squares), "--config", str(tmp_path / "config.toml")]
    command = [sys.executable, "-c", WAITS, *arguments, "--out", str(tmp_path / "cut")]
    with subprocess.Popen(command) as process:
        wait_for(lambda: (tmp_path / "cut/last.pt").exists() or process.poll() is not None, 300)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert Checkpoint.load(tmp_path / "cut/last.pt").resume()["epoch"] == 1
    train_supervised(config, squares, tmp_path / "cut", resume=True)
    for name in ("last.pt", "best.pt"):
        assert same_weights(tmp_path / "whole" / name, tmp_path / "cut" / name)


def test_a_log_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"epoch":1,"loss":2.0}\n{"epoch":2,"lo')
    with Log(tmp_path, first_epoch=1):
        assert (tmp_path / "log.jsonl").read_text() == '{"epoch":1,"loss":2.0}\n'


def test_settings_younger_than_a_run_do_not_stop_it(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    """A run started before a setting existed goes on with that setting's default, and refuses another value."""
    config = msgspec.structs.replace(config, epochs=1)
    train_supervised(config, squares, tmp_path)
    last = Checkpoint.load(tmp_path / "last.pt")
    meta = msgspec.structs.replace(
        last.meta, training={k: v for k, v in last.meta.training.items() if k != "optimizer"}
    )
    Checkpoint.save(last.path, meta, last.state(), last.resume())
    train_supervised(config, squares, tmp_path, resume=True)
    with pytest.raises(ArtifactError, match="optimizer"):
        train_supervised(msgspec.structs.replace(config, optimizer="muon"), squares, tmp_path, resume=True)


def test_resume_refuses_other_settings_and_a_second_start(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    config = msgspec.structs.replace(config, epochs=1)
    train_supervised(config, squares, tmp_path)
    with pytest.raises(ArtifactError, match="--resume"):
        train_supervised(config, squares, tmp_path)
    with pytest.raises(ArtifactError, match="lr"):
        train_supervised(msgspec.structs.replace(config, lr=1e-4), squares, tmp_path, resume=True)
    assert "lr = 0.0001" not in (tmp_path / "config.toml").read_text(), "a refused run leaves the folder as it was"
    before = (tmp_path / "best.pt").read_bytes()
    train_supervised(config, squares, tmp_path, resume=True)  # finished: nothing is trained again
    assert (tmp_path / "best.pt").read_bytes() == before


@pytest.mark.parametrize("what", ["list", "picture", "mask"])
def test_resume_refuses_other_data(squares: Path, config: TrainConfig, tmp_path: Path, what: str) -> None:
    config = msgspec.structs.replace(config, epochs=1)
    data = shutil.copytree(squares, tmp_path / "data")
    train_supervised(config, data, tmp_path / "run")
    listed = data / "ImageSets/Segmentation/train.txt"
    first = listed.read_text().split()[0]
    if what == "list":
        listed.write_text("\n".join(listed.read_text().split()[1:]))
    elif what == "picture":
        picture = next((data / "JPEGImages").glob(f"{first}.*"))
        picture.write_bytes(picture.read_bytes() + b"\0")
    else:
        write_mask(data / f"SegmentationClass/{first}.png", np.zeros((64, 64), np.uint8))
    with pytest.raises(ArtifactError, match=r"other settings or data \(data\)"):
        train_supervised(config, data, tmp_path / "run", resume=True)


def test_a_resumed_run_may_have_more_epochs(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    train_supervised(msgspec.structs.replace(config, epochs=1), squares, tmp_path)
    train_supervised(msgspec.structs.replace(config, epochs=2), squares, tmp_path, resume=True)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]
    with pytest.raises(ArtifactError, match=r"other settings or data \(epochs\)"):
        train_supervised(msgspec.structs.replace(config, epochs=1), squares, tmp_path, resume=True)


def test_a_run_that_scaled_no_gradients_goes_on_where_they_are_scaled(
    squares: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on a CPU or with bf16, resumed on a GPU that has FP16 alone."""
    train_supervised(msgspec.structs.replace(config, epochs=1), squares, tmp_path)
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda enabled: scaler("cpu", enabled=True))
    train_supervised(msgspec.structs.replace(config, epochs=2), squares, tmp_path, resume=True)
    assert Checkpoint.load(tmp_path / "last.pt").resume()["beside"]["scaler"]["scale"] > 1


def test_runs_older_than_the_hash_of_their_data_go_on(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    config = msgspec.structs.replace(config, epochs=1)
    train_supervised(config, squares, tmp_path)
    last = Checkpoint.load(tmp_path / "last.pt")
    assert len(last.meta.data_hash) == 64
    Checkpoint.save(last.path, msgspec.structs.replace(last.meta, data_hash=""), last.state(), last.resume())
    train_supervised(config, squares, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": -1}, "seed must not be negative"),
        ({"threads": -1}, "threads must not be negative"),
        ({"scale_range": (2.0, 0.5)}, "smaller first"),
        ({"scale_range": (0.0, 1.0)}, "positive"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"color": 1.0}, "less than 1"),
        ({"crop_hw": (48, 64)}, "multiples of 32"),
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainConfig(**changes)


def test_nan_loss_names_the_pictures(
    squares: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsss_edge.train.losses.class_loss", lambda *_: torch.tensor(torch.nan))
    with pytest.raises(DataError, match=r"im0\d\d, im0\d\d") as caught:
        train_supervised(config, squares, tmp_path)
    assert "nan" in str(caught.value)
    assert not (tmp_path / "best.pt").exists()


def test_unknown_architecture_and_device_are_refused(squares: Path, config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="edge-s"):
        train_supervised(msgspec.structs.replace(config, arch="unet"), squares, tmp_path)
    with pytest.raises(UnavailableError, match="knows no device"):
        pick_device("quantum")
    assert not list(tmp_path.iterdir())


def test_a_truncated_picture_is_one_clear_error(config: TrainConfig, tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    picture = data / "JPEGImages/im003.png"
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(DataError, match=r"im003\.png"):
        train_supervised(config, data, tmp_path / "run")


def test_a_set_without_background_trains(config: TrainConfig, tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data", background=False)
    config = msgspec.structs.replace(config, epochs=1)
    checkpoint = train_supervised(config, data, tmp_path / "run")
    assert not checkpoint.meta.classes.background
    assert checkpoint.meta.strong == ("floor", "red", "green", "blue")
    assert "object" not in json.loads((tmp_path / "run/log.jsonl").read_text())


def test_a_mask_is_never_seen_where_it_is_255(config: TrainConfig, tmp_path: Path) -> None:
    """Pictures whose masks are all 255 change nothing but batch statistics: the loss of such a batch is 0."""
    data = write_squares(tmp_path / "data", train=4)
    for path in sorted((data / "SegmentationClass").glob("*.png"))[:4]:
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    config = msgspec.structs.replace(config, epochs=1)
    train_supervised(config, data, tmp_path / "run")
    assert json.loads((tmp_path / "run/log.jsonl").read_text())["loss"] == 0


def test_a_score_that_is_no_number_is_beaten_by_any(config: TrainConfig, tmp_path: Path) -> None:
    """As of an epoch whose "val" had nothing to measure; runs that kept such a best go on too."""
    meta = CheckpointMeta(
        stage="supervised", arch="edge-s", classes=Classes(names=("a", "b")), preprocess=config.preprocess
    )
    net = torch.nn.Linear(1, 1)
    run = Checkpoints(tmp_path, meta, net, net, {}, {})
    for epoch, score in ((1, math.nan), (2, 0.5)):
        run.save(epoch, {"miou": float(epoch)}, score)
    assert Checkpoint.load(tmp_path).meta.metrics == {"miou": 2.0}
    run.best = math.nan
    run.save(3, {}, math.nan)
    assert (run.restore(), run.best) == (3, -math.inf)


@pytest.mark.parametrize("flags, trains_in", [("avx2 fma", torch.float32), ("avx2 avx512_bf16", torch.bfloat16)])
def test_a_cpu_trains_in_bf16_only_if_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, trains_in: torch.dtype
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    cpu = torch.device("cpu")
    assert autocast_dtype(TrainConfig(arch="edge-s"), cpu) == trains_in
    assert autocast_dtype(TrainConfig(arch="lite0"), cpu) == trains_in
    assert autocast_dtype(TrainConfig(arch="edge-s", amp=False), cpu) == torch.float32


def test_depthwise_convolutions_stay_in_float32_where_the_rest_is_bfloat16() -> None:
    x = torch.randn(1, 8, 6, 6)
    plain, depthwise = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
    with loop.mixed_precision(torch.device("cpu"), torch.bfloat16):
        first = plain(x)
        second = depthwise(first)
    assert first.dtype == torch.bfloat16
    assert second.dtype == torch.float32 and torch.equal(second, depthwise(first.float()))
    with loop.mixed_precision(torch.device("cpu"), torch.float32):
        assert torch.equal(plain(x), torch.nn.functional.conv2d(x, plain.weight, plain.bias, padding=1))


def test_the_settings_say_how_strong_random_colour_is(squares: Path, config: TrainConfig) -> None:
    """Pictures of one kind differ more in brightness."""
    dataset = VocDataset.open(squares)

    def spread(strength: float) -> float:
        settings = msgspec.structs.replace(config, color=strength)
        stage = supervised_stage(settings, dataset, fresh_net(settings, num_classes=4))
        return float(torch.cat([b.images.float().mean((1, 2, 3)) for b in stage.samples.batches(0)]).std())

    none, usual, strong = map(spread, (0.0, 0.3, 0.9))
    assert 2 * none < usual < 0.8 * strong
