"""Still clips and what `--reuse` costs and loses on them; photographs at several sizes: run small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import photo_sizes
import pytest
import reuse_bench
import still_clip
import torch
from PIL import Image
from tiny import CLASSES, PREPROCESS, tiny_onnx
from trainkit import write_squares

from tsss_edge.artifacts import Checkpoint, CheckpointMeta, Preprocess
from tsss_edge.config import load_target
from tsss_edge.data.voc import VocDataset
from tsss_edge.export.build import build_engine
from tsss_edge.models import build_model

FRAMES, SIZE_HW = 5, (64, 96)
GROUND, DOG = 30, 160  # of tiny.py's classes: background, and dog


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A bright square that moves over a dark ground whose colour changes, as a camera's that moves; and its masks."""
    folder = tmp_path / "films/clip"
    folder.mkdir(parents=True)
    frames = []
    for n in range(FRAMES):
        mask = np.zeros(SIZE_HW, np.uint8)
        mask[16:40, 8 * n + 8 : 8 * n + 32] = 1
        Image.fromarray(mask).save(folder / f"{n:05d}.png")
        frames.append(np.where(mask[..., None] > 0, DOG, GROUND + n).astype(np.uint8).repeat(3, axis=2))
    still_clip.write_frames(folder.with_suffix(".mp4"), iter(frames))
    return folder


def made(clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    monkeypatch.setattr(sys, "argv", ["still_clip.py", str(clip), str(out), *options])
    still_clip.main()
    return out


def test_the_ground_stands_still_and_the_object_moves(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made(clip, tmp_path / "still", monkeypatch)
    frames = np.stack(list(still_clip.read_frames(out.with_suffix(".mp4")))).astype(int)
    masks = np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))])
    assert frames.shape == (FRAMES, *SIZE_HW, 3) and masks.shape == (FRAMES, *SIZE_HW)
    assert np.ptp(frames[:, 50:, 60:].mean(axis=(1, 2, 3))) < 1  # it changed by a level a frame
    assert all(frames[n][masks[n] == 1].mean() > 120 for n in range(FRAMES))


def test_a_far_object_is_smaller(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = (
        made(clip, tmp_path / name, monkeypatch, *options) for name, options in (("a", ()), ("b", ("--size", "0.5")))
    )
    areas = [np.asarray(Image.open(folder / "00002.png")).sum() for folder in (near, far)]
    assert areas[1] == pytest.approx(areas[0] / 4, rel=0.2)


def test_a_clip_with_too_few_masks_is_refused(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clip / "00004.png").unlink()
    with pytest.raises(SystemExit, match="4 masks and 5 frames"):
        made(clip, tmp_path / "still", monkeypatch)
    assert not (tmp_path / "still").exists()


def test_each_switch_has_a_row(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = build_engine(
        tiny_onnx(tmp_path / "tiny.onnx").path, load_target("cpu"), tmp_path / "t.xml", precision="fp32"
    )
    monkeypatch.setattr(sys, "argv", ["reuse_bench.py", str(engine.path), f"{clip}.mp4:dog", "--rounds", "1"])
    reuse_bench.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["off", "still", "motion"]
    assert [row[2] for row in rows] == ["5, 5", "5, 5", "5, 2"]  # of the moves every fourth is seen
    assert all(float(row[3]) > 0 for row in rows)
    assert float(rows[0][5]) > 60 and rows[1][5] == rows[0][5]  # 3 cells of 8 pixels have round corners


def test_sizes_are_scored_timed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_squares(tmp_path / "data")
    torch.manual_seed(0)
    classes = VocDataset.open(data).classes
    meta = CheckpointMeta(stage="supervised", arch="edge-s", classes=classes, preprocess=Preprocess(size_hw=(64, 64)))
    Checkpoint.save(tmp_path / "run/best.pt", meta, build_model("edge-s", num_classes=4).state_dict())
    out, page = tmp_path / "sizes", tmp_path / "page.md"
    monkeypatch.setattr(photo_sizes, "SCORED", ("background", "red"))
    given = [str(tmp_path / "run"), "--data", str(data), "--out", str(out), "--page", str(page)]
    monkeypatch.setattr(
        sys, "argv", ["photo_sizes.py", *given, "--sizes", "64,96", "--pictures", "4", "--seconds", "0.1"]
    )
    photo_sizes.main()
    points = json.loads(page.with_suffix(".json").read_text())["points"]
    assert [(p["run"], p["size"], p["trained_at"]) for p in points] == [("run", 64, 64), ("run", 96, 64)]
    assert all(p["core_ms"] > 0 and 0 <= p["miou7"] <= 100 for p in points)
    assert "| run (edge-s, trained at 64) | 96x96 |" in page.read_text()
    with Image.open(page.with_suffix(".png")) as picture:
        assert picture.size == (960, 540)


def test_the_tiny_engine_knows_both_grays() -> None:
    """What the clip's colours mean to tiny.py: the class whose brightness is nearest."""
    centres = (np.arange(len(CLASSES)) + 0.5) / len(CLASSES) * 255
    assert CLASSES.names[int(np.abs(centres - DOG).argmin())] == "dog" and PREPROCESS.size_hw == SIZE_HW
    assert CLASSES.names[int(np.abs(centres - GROUND).argmin())] == "background"
