"""Frozen stages keep weights and statistics; what they say is computed once, for every stage, and survives a kill."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from trainkit import same_weights

from tsss_edge import frozen
from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import TrainConfig
from tsss_edge.errors import ArtifactError
from tsss_edge.frozen import FeatureStore, freeze_stages, keep_features
from tsss_edge.models import build_model
from tsss_edge.train.start import fresh_net, start_from
from tsss_edge.train.supervised import train_supervised

LITE = TrainConfig(
    arch="lite0", size_hw=(64, 64), epochs=2, batch=4, threads=1, warmup_epochs=0.5, freeze=16, views=1, val_every=9
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    frozen.open_store.cache_clear()
    return tmp_path / "cache/tsss-edge/features"


@pytest.mark.parametrize(("arch", "stride", "stages"), [("lite0", 16, 4), ("lite0", 8, 3), ("edge-s", 32, 4)])
def test_stages_up_to_a_stride_are_frozen(arch: str, stride: int, stages: int) -> None:
    net = build_model(arch, num_classes=3)
    freeze_stages(net, stride)
    learns = [any(p.requires_grad for p in stage.parameters()) for stage in net.encoder.stages]
    assert learns == [False] * stages + [True] * (len(learns) - stages)
    assert all(p.requires_grad for p in net.decoder.parameters())


def test_training_leaves_frozen_stages_as_they_were_and_teaches_the_others(squares: Path, tmp_path: Path) -> None:
    before = fresh_net(LITE, num_classes=4).state_dict()
    after = train_supervised(LITE, squares, tmp_path / "run").state()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith(tuple(f"encoder.stages.{i}." for i in range(4)))]
    assert [name for name in changed if name.startswith("encoder.stages.4.") and name.endswith("running_mean")]


def test_each_view_is_computed_once(squares: Path, tmp_path: Path, cache: Path) -> None:
    """12 training pictures with one view each and 6 validation pictures; a second run adds nothing."""
    first = train_supervised(LITE, squares, tmp_path / "a")
    (keys,) = cache.glob("*/64x64/keys")
    assert keys.stat().st_size == (12 + 6) * frozen.KEY
    second = train_supervised(LITE, squares, tmp_path / "b")
    assert keys.stat().st_size == (12 + 6) * frozen.KEY
    assert same_weights(first.path, second.path)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_what_is_remembered_is_what_the_stages_say(stride: int) -> None:
    """To float16's rounding, the second time as the first."""
    torch.manual_seed(0)
    net = build_model("lite0", num_classes=2).eval()
    x = torch.rand(3, 3, 64, 96)
    with torch.no_grad():
        plain = net.encoder(x)
        keep_features(net, msgspec.structs.replace(LITE, freeze=stride))
        for _ in range(2):
            for a, b in zip(plain, net.encoder(x), strict=True):
                torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3 * float(a.abs().max()))


def test_what_is_kept_has_not_the_precision_of_the_step_that_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where PyTorch looks, and training's autocast is on."""
    monkeypatch.setattr(frozen, "fast_look", lambda part, like: part)
    net, x = build_model("lite0", num_classes=2).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = net.encoder(x)
        keep_features(net, msgspec.structs.replace(LITE, freeze=32))
        with torch.autocast("cpu", torch.bfloat16):
            found = net.encoder(x)
    assert all(torch.equal(a.half().float(), b) for a, b in zip(plain, found, strict=True))


def test_a_store_forgets_what_a_kill_left_half_written(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 4)
    arrays = {bytes([i]) * frozen.KEY: np.full(4, i, np.float16) for i in range(3)}
    store.add(arrays)
    del store
    with (tmp_path / "features").open("ab") as file:
        file.write(b"half")
    with (tmp_path / "keys").open("ab") as file:
        file.write(b"h")
    again = FeatureStore(tmp_path, 4)
    assert all(np.array_equal(again[key], value) for key, value in arrays.items())
    again.add({b"n" * frozen.KEY: np.full(4, 9, np.float16)})
    assert np.array_equal(again[b"n" * frozen.KEY], np.full(4, 9))


class Half(FileIO):
    """A file on a disk that is full after half of what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return super().write(data[: len(data) // 2])


def test_a_full_disk_ends_the_keeping_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path, 4)
    store.add({b"a" * frozen.KEY: np.ones(4, np.float16)})
    with Half(tmp_path / "features") as half:
        store._data = half
        store.add({b"b" * frozen.KEY: np.ones(4, np.float16)})
        store.add({b"c" * frozen.KEY: np.ones(4, np.float16)})
        assert caplog.text.count("kept no longer (") == 1 and "No space left" in caplog.text
        assert np.array_equal(store[b"a" * frozen.KEY], np.ones(4)) and b"b" * frozen.KEY not in store


def test_a_second_process_reads_and_keeps_nothing(tmp_path: Path) -> None:
    first = FeatureStore(tmp_path, 4)
    first.add({b"a" * frozen.KEY: np.ones(4, np.float16)})
    second = FeatureStore(tmp_path, 4)  # the lock belongs to the open file, so this stands for another process
    second.add({b"b" * frozen.KEY: np.ones(4, np.float16)})
    assert b"a" * frozen.KEY in second and b"b" * frozen.KEY not in second


def test_what_cannot_be_frozen_or_kept_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ArtifactError, match="no encoder stages to freeze"):
        freeze_stages(build_model("vgg16-largefov", num_classes=2), 8)
    with pytest.raises(ArtifactError, match="edge-s keeps no features"):
        keep_features(fresh_net(config, num_classes=2), msgspec.structs.replace(config, freeze=8, views=2))


def test_a_run_starts_from_another_as_far_as_it_fits(config: TrainConfig, squares: Path, tmp_path: Path) -> None:
    donor = train_supervised(config, squares, tmp_path / "donor")
    net = fresh_net(config, num_classes=7)
    start_from(net, msgspec.structs.replace(config, init_from=str(tmp_path / "donor")))
    ours, theirs = net.state_dict(), Checkpoint.load(donor.path).state()
    assert {n for n in ours if not torch.equal(ours[n], theirs[n])} == {"class_head.weight", "class_head.bias"}
    other = msgspec.structs.replace(config, arch="edge-m", init_from=str(tmp_path / "donor"))
    with pytest.raises(ArtifactError, match="is edge-s, whose encoder does not fit edge-m"):
        start_from(fresh_net(other, num_classes=7), other)
