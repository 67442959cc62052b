"""Bad input at the command line: one clear line, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from netkit import checkpoint, write_set
from PIL import Image

from tsss_edge.artifacts import Checkpoint
from tsss_edge.config import load_target
from tsss_edge.data.voc import VocDataset
from tsss_edge.export.build import build_engine
from tsss_edge.export.onnx_export import export_onnx


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ (a small set), net.pt, net.onnx, net.fp32.xml with its record, clip.mp4 of nothing."""
    root = tmp_path_factory.mktemp("made")
    write_set(root / "data")
    checkpoint(root / "net.pt")
    export_onnx(root / "net.pt", root / "net.onnx")
    build_engine(root / "net.onnx", load_target("cpu"), root / "net.xml", precision="fp32")
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` that a test may break."""
    return shutil.copytree(made, tmp_path / "world")


Run = Callable[..., tuple[int, str, str]]


def train_arguments(world: Path) -> list[str | Path]:
    return ["train", "supervised", "--data", world / "data", "--size", "64", "--epochs", "1", "--out", world / "out"]


def remove_folder(world: Path) -> None:
    shutil.rmtree(world / "data")


def remove_mask(world: Path) -> None:
    (world / "data/SegmentationClass/t0.png").unlink()


def shrink_mask(world: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(world / "data/SegmentationClass/t0.png")


def unknown_class(world: Path) -> None:
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(world / "data/SegmentationClass/t0.png")


def empty_split(world: Path) -> None:
    (world / "data/ImageSets/Segmentation/train.txt").write_text("")


def truncated_picture(world: Path) -> None:
    picture = world / "data/JPEGImages/t0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:400])
    (world / "data/JPEGImages/t0.png").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_folder, "data"),
        (remove_mask, "t0"),
        (shrink_mask, r"t0.*8x8|t0.*\(8, 8\)"),
        (unknown_class, r"t0.*77"),
        (empty_split, "train"),
        (truncated_picture, "t0"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_training_refuses_a_bad_set(world: Path, run: Run, damage: Callable[[Path], None], says: str) -> None:
    damage(world)
    code, _, error = run(*train_arguments(world))
    assert code == 1
    require_one_line(error, says)
    assert not (world / "out/best.pt").exists()
    assert not (world / "out/last.pt").exists()


def not_utf8(world: Path) -> None:
    (world / "data/classes.txt").write_bytes("background\nvélo\nb\nc\nd\n".encode("latin-1"))


@pytest.mark.parametrize("command", ["check", "train"])
def test_lists_that_are_not_utf8(world: Path, run: Run, command: str) -> None:
    not_utf8(world)
    code, _, error = run(*(train_arguments(world) if command == "train" else ["data", "check", world / "data"]))
    assert code == 1
    require_one_line(error, "classes.txt: expected UTF-8")


def test_a_byte_order_mark_is_no_part_of_the_first_class(world: Path) -> None:
    classes = world / "data/classes.txt"
    plain = VocDataset.open(world / "data").classes
    classes.write_bytes(b"\xef\xbb\xbf" + classes.read_bytes())
    assert VocDataset.open(world / "data").classes == plain
    assert plain.background


def test_a_seed_is_not_negative(world: Path, run: Run) -> None:
    code, _, error = run(*train_arguments(world), "--seed", "-1")
    assert code == 2 and "--seed" in error
    assert not (world / "out").exists()


def test_a_config_without_a_size_gets_that_of_the_pictures(world: Path, run: Run) -> None:
    (world / "c.toml").write_text('epochs = 1\noptimizer = "muon"\n')
    base = ["train", "supervised", "--data", world / "data", "--config", world / "c.toml"]
    assert run(*base, "--out", world / "a")[0] == 0
    assert Checkpoint.load(world / "a").meta.preprocess.size_hw == (64, 64)
    (world / "c.toml").write_text("epochs = 1\nsize_hw = [32, 64]\n")
    assert run(*base, "--out", world / "b")[0] == 0
    assert Checkpoint.load(world / "b").meta.preprocess.size_hw == (32, 64)


def test_training_on_the_unbroken_set_works(world: Path, run: Run) -> None:
    code, _, error = run(*train_arguments(world))
    assert (code, error) == (0, "")
    assert (world / "out/best.pt").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rows", "50:ful"], "unknown row '50:ful'"),
        (["--rows", "0:full"], "give --source"),
        (["--strong", "unicorn"], "unknown categories unicorn"),
        (["--seeds", "0,one"], "'0,one': expected one or more different numbers"),
        (["--seeds", "0,0"], "different numbers"),
        (["--seeds", ""], "one or more different numbers"),
        (["--seeds", "0,-1"], "numbers from 0 on"),
    ],
)
def test_reproduce_refuses_bad_options_before_it_trains(world: Path, run: Run, options: list[str], says: str) -> None:
    code, _, error = run("reproduce", "--data", world / "data", "--size", "64", "--out", world / "table", *options)
    assert code == 2
    assert says in error
    assert not (world / "table").exists()


def test_what_goes_wrong_within_reproduce_is_no_bad_option(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ValueError("a defect of ours")

    monkeypatch.setattr("tsss_edge.reproduce.reproduce", fail)
    code, _, error = run("reproduce", "--data", world / "data", "--size", "64", "--out", world / "table")
    assert code == 70
    require_one_line(error, "internal error, please report: ValueError: a defect of ours .*--debug")


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("onnx.helper", "onnx")])
def test_a_package_that_is_not_installed_is_named(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    def missing(*args: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("tsss_edge.artifacts.Checkpoint.load", missing)
    code, _, error = run("inspect", world / "net.pt")
    assert code == 4
    require_one_line(error, rf"No module named .*{module}.*tsss-edge\[{extra}\]")


def test_a_module_of_ours_that_is_missing_is_a_defect(world: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> None:
        raise ModuleNotFoundError("No module named 'tsss_edge.gone'", name="tsss_edge.gone")

    monkeypatch.setattr("tsss_edge.artifacts.Checkpoint.load", missing)
    code, _, error = run("inspect", world / "net.pt")
    assert code == 70
    require_one_line(error, "internal error, please report: ModuleNotFoundError: .*tsss_edge.gone")


def other_architecture(world: Path) -> None:
    old = Checkpoint.load(world / "net.pt")
    state = {name: tensor for name, tensor in old.state().items() if "decoder" not in name}
    Checkpoint.save(world / "net.pt", old.meta, state)


def nan_weight(world: Path) -> None:
    old = Checkpoint.load(world / "net.pt")
    state = old.state()
    next(iter(state.values())).view(-1)[0] = torch.nan
    Checkpoint.save(world / "net.pt", old.meta, state)


def truncated_checkpoint(world: Path) -> None:
    (world / "net.pt").write_bytes((world / "net.pt").read_bytes()[:5000])


def foreign_checkpoint(world: Path) -> None:
    torch.save({"model": torch.zeros(3)}, world / "net.pt")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (other_architecture, "do not fit"),
        (nan_weight, "NaN"),
        (truncated_checkpoint, "not a readable checkpoint"),
        (foreign_checkpoint, "not a tsss-edge checkpoint"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_export_refuses_a_bad_checkpoint(world: Path, run: Run, damage: Callable[[Path], None], says: str) -> None:
    damage(world)
    code, _, error = run("export", world / "net.pt", "--out", world / "new.onnx")
    assert code == 1
    require_one_line(error, says)
    assert not (world / "new.onnx").exists()


def test_a_run_of_another_architecture_is_not_resumed(world: Path, run: Run) -> None:
    code, _, error = run(*train_arguments(world))
    assert (code, error) == (0, "")
    before = (world / "out/last.pt").read_bytes()
    code, _, error = run(*train_arguments(world), "--arch", "edge-m", "--resume")
    assert code == 1
    require_one_line(error, "other settings")
    assert (world / "out/last.pt").read_bytes() == before


def flip_engine_byte(world: Path) -> None:
    data = bytearray((world / "net.fp32.bin").read_bytes())
    data[100] ^= 1
    (world / "net.fp32.bin").write_bytes(data)


def forged_record(world: Path) -> None:
    record = json.loads((world / "net.fp32.json").read_text())
    record["files"] = dict.fromkeys(record["files"], "0" * 64)
    record["digest"] = ""
    (world / "net.fp32.json").write_text(json.dumps(record))


def missing_record(world: Path) -> None:
    (world / "net.fp32.json").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [(flip_engine_byte, "hash"), (forged_record, "hash"), (missing_record, "no record")],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_engine_that_is_not_its_record_is_refused(
    world: Path, run: Run, damage: Callable[[Path], None], says: str
) -> None:
    damage(world)
    code, _, error = run("eval", world / "net.fp32.xml", "--data", world / "data")
    assert code == 1
    require_one_line(error, says)


def test_truncated_onnx_is_refused_and_builds_nothing(world: Path, run: Run) -> None:
    (world / "net.onnx").write_bytes((world / "net.onnx").read_bytes()[:3000])
    before = sorted(p.name for p in world.iterdir())
    code, _, error = run("build-engine", world / "net.onnx", "--target", "cpu", "--out", world / "new.xml")
    assert code == 1
    require_one_line(error, "ONNX")
    assert sorted(p.name for p in world.iterdir()) == before


def test_a_video_of_zero_bytes_is_refused(world: Path, run: Run) -> None:
    (world / "clip.mp4").write_bytes(b"")
    code, _, error = run("stream", world / "net.fp32.xml", world / "clip.mp4", world / "out.mp4")
    assert code == 1
    require_one_line(error, "empty")
    assert not (world / "out.mp4").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bench", "e.xml", "--stream", "a.mp4", "--duration", "3"), "takes no --duration and no --compare"),
        (("bench", "e.xml", "--stream", "a.mp4", "--compare", "f.xml"), "takes no --duration and no --compare"),
        (("bench", "e.xml", "--naive", "n.onnx"), "--naive is the other loop of --stream"),
        (("stream", "e.xml", "a.mp4", "--budget", "1GiB"), "--budget and --rate are of what --collect keeps"),
        (("stream", "e.xml", "a.mp4", "--rate", "1/h"), "--budget and --rate are of what --collect keeps"),
        (("stream", "e.xml", "a.mp4", "--parity-every", "3"), "--parity-every need --reference"),
        (("stream", "e.xml", "--sources", "c.toml", "--rate", "1/h"), "--rate is for one SOURCE"),
        (("calibrate", "n.onnx", "--data", "d", "--out", "i.onnx", "--calib-set", "a", "--size", "9"), "leave --size"),
        (
            ("segment", "e.xml", "s3://city/day1", "--out", "masks"),
            "s3://city/day1: addresses are read and written with --ray",
        ),
        (("segment", "e.xml", "photos", "--out", "s3://city/masks"), "s3://city/masks: addresses"),
        (("inspect", "e.xml", "--json", "/"), "a file cannot be written there"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(run: Run, words: tuple[str, ...], says: str) -> None:
    code, _, error = run(*words)
    assert code == 2
    assert says in " ".join(error.replace("│", " ").split())


def test_wrong_usage_is_exit_2(world: Path, run: Run) -> None:
    code, _, error = run(*train_arguments(world), "--size", "50")
    assert code == 2
    assert "multiples of 32" in error


def require_one_line(error: str, says: str) -> None:
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert re.search(says, lines[0]), lines[0]


def test_fine_tuning_takes_no_other_start(run: Run, world: Path) -> None:
    for option in (("--cutmix",), ("--encoder-weights", world / "net.pt"), ("--set", "arch=lite0")):
        code, _, err = run(*train_arguments(world), "--qat", world / "net.onnx", *option)
        assert code == 2
        assert "--qat goes on from" in err
        assert not (world / "out").exists()
