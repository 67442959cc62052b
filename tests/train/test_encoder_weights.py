"""Encoder weights from a local file: ours, torchvision's VGG16, and every file that is not what was asked for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Classes
from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.models.vgg16 import IMAGENET_STD
from tsss_edge.train.start import fresh_net, load_encoder


def with_weights(config: TrainConfig, arch: str, path: Path) -> TrainConfig:
    return msgspec.structs.replace(config, arch=arch, encoder_weights=str(path))


def vgg16_of_torchvision() -> dict[str, Tensor]:
    """Names and shapes of `torchvision.models.vgg16().state_dict()`, its classifier cut to a stump."""
    channels, state = 3, {}
    plan = {
        0: 64,
        2: 64,
        5: 128,
        7: 128,
        10: 256,
        12: 256,
        14: 256,
        17: 512,
        19: 512,
        21: 512,
        24: 512,
        26: 512,
        28: 512,
    }
    for index, width in plan.items():
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3)
        state[f"features.{index}.bias"] = torch.randn(width)
        channels = width
    return {**state, "classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}


def test_a_checkpoint_of_ours_gives_its_encoder_and_nothing_else(config: TrainConfig, tmp_path: Path) -> None:
    donor = fresh_net(msgspec.structs.replace(config, seed=7), num_classes=3)
    meta = CheckpointMeta(
        stage="supervised", arch="edge-s", classes=Classes(names=("a", "b", "c")), preprocess=config.preprocess
    )
    Checkpoint.save(tmp_path / "donor.pt", meta, donor.state_dict())
    net = fresh_net(config, num_classes=5)
    before = net.decoder.state_dict()["smooth.0.0.weight"].clone()
    load_encoder(net, with_weights(config, "edge-s", tmp_path / "donor.pt"))
    ours, theirs = net.encoder.state_dict(), donor.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(net.decoder.state_dict()["smooth.0.0.weight"], before)


def test_torchvision_names_are_understood(config: TrainConfig, tmp_path: Path) -> None:
    state = vgg16_of_torchvision()
    torch.save(state, tmp_path / "vgg16.pth")
    config = with_weights(config, "vgg16-largefov", tmp_path / "vgg16.pth")
    net = fresh_net(config, num_classes=3)
    load_encoder(net, config)
    loaded = net.encoder.state_dict()
    assert torch.equal(loaded["features.28.weight"], state["features.28.weight"])
    red = state["features.0.weight"][:, 0] / IMAGENET_STD[0]
    torch.testing.assert_close(loaded["features.0.weight"][:, 0], red)


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        del state["features.12.bias"]
    elif how == "shape":
        state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    elif how == "more":
        state["features.30.weight"] = torch.zeros(1)
    elif how == "nan":
        state["features.7.bias"][3] = torch.nan
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"holds no features\.12\.bias"),
        ("shape", r"features\.0\.weight is \(64, 1, 3, 3\), expected \(64, 3, 3, 3\)"),
        ("more", r"its features\.30\.weight belongs to another network"),
        ("nan", r"features\.7\.bias is not a tensor of finite numbers"),
    ],
)
def test_a_wrong_vgg16_file_is_refused(config: TrainConfig, tmp_path: Path, how: str, message: str) -> None:
    torch.save(broken(vgg16_of_torchvision(), how), tmp_path / "wrong.pth")
    config = with_weights(config, "vgg16-largefov", tmp_path / "wrong.pth")
    net = fresh_net(config, num_classes=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ArtifactError, match=rf"wrong\.pth: .*{message}"):
        load_encoder(net, config)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_efficientnet_names_are_understood_for_lite0(config: TrainConfig, tmp_path: Path) -> None:
    donor = fresh_net(with_weights(msgspec.structs.replace(config, seed=3), "lite0", tmp_path), num_classes=0)
    theirs = {"_conv_stem.weight": donor.encoder.stages[0][0][1].weight}
    torch.save(theirs, tmp_path / "part.pth")
    settings = with_weights(config, "lite0", tmp_path / "part.pth")
    with pytest.raises(ArtifactError, match=r"not weights of the lite0 encoder: it holds no stages"):
        load_encoder(fresh_net(settings, num_classes=3), settings)
    torch.save({f"encoder.{k}": v for k, v in donor.encoder.state_dict().items()}, tmp_path / "whole.pth")
    net = fresh_net(config=with_weights(config, "lite0", tmp_path / "whole.pth"), num_classes=3)
    load_encoder(net, with_weights(config, "lite0", tmp_path / "whole.pth"))
    assert torch.equal(net.encoder.stages[0][0][1].weight, donor.encoder.stages[0][0][1].weight)


def test_imagenet_weights_are_for_lite_alone(config: TrainConfig) -> None:
    settings = msgspec.structs.replace(config, encoder_weights="imagenet")
    with pytest.raises(ArtifactError, match="known for lite0, lite1, lite2, not for edge-s"):
        load_encoder(fresh_net(settings, num_classes=3), settings)


def test_a_file_for_another_architecture_or_no_file_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    torch.save(vgg16_of_torchvision(), tmp_path / "vgg16.pth")
    (tmp_path / "text.pth").write_text("no weights")
    net = fresh_net(config, num_classes=3)
    for name, message in (("vgg16.pth", "edge-s encoder"), ("text.pth", "not a readable"), ("none.pth", "no such")):
        with pytest.raises(ArtifactError, match=message):
            load_encoder(net, with_weights(config, "edge-s", tmp_path / name))
