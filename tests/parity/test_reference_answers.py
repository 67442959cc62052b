"""Parity against recorded answers: the same verdict as against the checkpoint, without PyTorch, on the same pictures only."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import netkit
import numpy as np
import pytest
from PIL import Image

from tsss_edge.artifacts import Checkpoint
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.export.onnx_export import export_onnx
from tsss_edge.parity import ParityReport, check_parity
from tsss_edge.parity.reference_answers import Answers, record_answers


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its ONNX file, a set, and the answers on its split val."""
    folder = tmp_path_factory.mktemp("answers")
    checkpoint = netkit.checkpoint(folder / "best.pt")
    export_onnx(checkpoint.path, folder / "graph.onnx", objectness=True)
    dataset = VocDataset.open(netkit.write_set(folder / "data", val=2))
    record_answers(checkpoint, dataset, "val", folder / "answers")
    return folder


def test_the_verdict_is_the_checkpoints(made: Path, tmp_path: Path) -> None:
    """Told by the command, in a process that cannot import torch, as on a Jetson."""
    want = check_parity(made / "graph.onnx", made / "best.pt", made / "data", min_reference=0)
    script = "import sys; sys.modules['torch'] = None; from tsss_edge.cli import main; main()"
    arguments = [
        "--reference",
        made / "answers",
        "--data",
        made / "data",
        "--json",
        tmp_path / "told.json",
        "--min-reference",
        "0",
    ]
    command = [sys.executable, "-c", script, "parity", made / "graph.onnx", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    got = msgspec.json.decode((tmp_path / "told.json").read_bytes(), type=ParityReport)
    same = ("passed", "miou_reference", "miou_engine", "pixel_agreement", "boundary_agreement", "per_class", "worst")
    assert {name: getattr(got, name) for name in same} == {name: getattr(want, name) for name in same}
    assert got.stages[0].runs_on == "recorded answers of pytorch fp32 cpu"
    assert got.stages[-1].objectness_agreement == want.stages[-1].objectness_agreement


def test_another_picture_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "data", tmp_path / "data")
    path = next((tmp_path / "data/JPEGImages").glob("v0.*"))
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
    with pytest.raises(ArtifactError, match=r"the reference saw another picture v0 .*use the data that came with"):
        check_parity(made / "graph.onnx", made / "answers", tmp_path / "data")


def test_answers_of_another_checkpoint_are_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "answers", tmp_path / "answers")
    answers = Answers.load(tmp_path / "answers")
    other = msgspec.structs.replace(answers.recorded, checkpoint_sha256="0" * 64)
    (tmp_path / "answers/answers.json").write_bytes(msgspec.json.encode(other))
    with pytest.raises(ArtifactError, match="made from checkpoint"):
        check_parity(made / "graph.onnx", tmp_path / "answers", made / "data")


def test_a_damaged_answer_is_told(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "answers", tmp_path / "answers")
    (tmp_path / "answers/labels/v1.png").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"v1\.png: not a readable answer"):
        check_parity(made / "graph.onnx", tmp_path / "answers", made / "data")


def test_answers_are_the_checkpoints_labels(made: Path) -> None:
    assert Checkpoint.load(made / "best.pt").sha256 == Answers.load(made / "answers").sha256
    labels = Answers.load(made / "answers").of("v0").labels
    assert labels.shape == (48, 64) and labels.dtype == np.uint8 and len(np.unique(labels)) > 1
