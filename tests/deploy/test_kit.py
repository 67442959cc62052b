"""Build kits: what is inside, that build.sh really builds, and that a failure leaves nothing."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import msgspec
import netkit
import numpy as np
import pytest
from netkit import checkpoint
from PIL import Image
from tiny import CALIBRATION, tiny_onnx

from tsss_edge.artifacts import CalibrationRecord, EngineRecord, Target
from tsss_edge.config import load_target, read_toml, shared_folder
from tsss_edge.deploy import kit as kits
from tsss_edge.deploy.bundle import write_wheel
from tsss_edge.deploy.kit import Kit, runs_here, script_text, toml_text, write_kit
from tsss_edge.errors import ArtifactError
from tsss_edge.export.onnx_export import EngineSources, export_onnx
from tsss_edge.files import read_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ORIN = load_target("jetson-orin")


@pytest.mark.parametrize("name", sorted(p.stem for p in shared_folder("export").glob("*.toml")))
def test_toml_text_reads_back(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.toml").write_text(toml_text(load_target(name)))
    assert read_toml(tmp_path / "t.toml", Target) == load_target(name)


def test_kit_for_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineSources, "_calibrate", lambda self, floating, out: tiny_onnx(out, precision="int8"))
    monkeypatch.setattr(EngineSources, "_half", lambda self, given, out: tiny_onnx(out, precision="fp16"))
    write_kit(tiny_onnx(tmp_path / "fused.onnx").path, ORIN, tmp_path / "kit", calib_data=tmp_path)
    names = {p.name for p in (tmp_path / "kit").iterdir()}
    wheel = next(n for n in names if n.endswith(".whl"))
    assert names == {
        "fused.int8.onnx", "fused.fp16.onnx", "target.toml", "kit.json", "calibration.json", "build.sh", "SHA256SUMS", wheel,
    }  # fmt: skip
    kit = read_json(tmp_path / "kit" / "kit.json", Kit)
    assert kit.graphs == {"int8": "fused.int8.onnx", "fp16": "fused.fp16.onnx"}
    assert (
        read_toml(tmp_path / "kit" / "target.toml", Target) == msgspec.structs.replace(ORIN, local=True) == kit.target
    )
    assert read_json(tmp_path / "kit" / "calibration.json", CalibrationRecord) == CALIBRATION
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "kit", capture_output=True, text=True)
    assert check.returncode == 0 and check.stdout.count("OK") == len(names) - 1


def test_build_script_builds_and_packs(tmp_path: Path) -> None:
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",), local=False)
    write_kit(tiny_onnx(tmp_path / "fused.onnx").path, target, tmp_path / "kit")
    python = tmp_path / "python"  # everything for real but the timing
    python.write_text(f'#!/bin/sh\n[ "$3" = bench ] || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "kit/build.sh"], env={**os.environ, "TSSS_EDGE_PYTHON": str(python)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(tmp_path / "kit/result.tar.gz") as archive:
        names = {Path(n).name for n in archive.getnames()}
    assert {"fused.fp32.xml", "fused.fp32.bin", "fused.fp32.json", "doctor.json"} <= names
    record = read_json(tmp_path / "kit/out/fused.fp32.json", EngineRecord)
    assert (record.build.target.name, record.precision) == ("cpu", "fp32")


def test_changed_file_stops_the_script(tmp_path: Path) -> None:
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    write_kit(tiny_onnx(tmp_path / "fused.onnx").path, target, tmp_path / "kit")
    (tmp_path / "kit/fused.fp32.onnx").write_bytes(b"x")
    done = subprocess.run(
        ["sh", tmp_path / "kit/build.sh"],
        env={**os.environ, "TSSS_EDGE_PYTHON": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "fused.fp32.onnx: FAILED" in done.stdout
    assert not (tmp_path / "kit/out").exists()


def test_an_old_python_is_told_with_the_other_way(tmp_path: Path) -> None:
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    write_kit(tiny_onnx(tmp_path / "fused.onnx").path, target, tmp_path / "kit")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10"\n[ "$1" != -c ]\n')
    (tmp_path / "bin/python3").chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    done = subprocess.run(["sh", tmp_path / "kit/build.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 4
    assert "needs Python 3.10 (JetPack 6), Python 3.8.10 is here" in done.stderr and "trtexec --onnx" in done.stderr
    assert not (tmp_path / "kit/venv").exists()


@pytest.mark.parametrize(
    ("numpy", "kernel", "words"),
    [
        ("1.21.5", "5.15.136-tegra", "numpy>=1.26,<2"),  # an OpenCV built for NumPy 1 stays, whatever the machine
        ("1.26.4", "6.1.0-arm64", "numpy>=1.26,<2"),
        ("2.2.6", "6.8.12-tegra", "onnxruntime>=1.18 numpy>=1.26\n"),
        ("", "6.1.0-arm64", "onnxruntime>=1.18 opencv-python numpy>=1.26\n"),
        ("", "5.15.136-tegra", "no OpenCV here; on a Jetson it comes with the system: sudo apt install python3-opencv"),
    ],
)
def test_the_systems_opencv_stays_and_numpy_with_it(tmp_path: Path, numpy: str, kernel: str, words: str) -> None:
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    write_kit(tiny_onnx(tmp_path / "fused.onnx").path, target, tmp_path / "kit")
    (tmp_path / "bin").mkdir()
    python3 = f"""case "$*" in
    *version_info*) exit 0 ;;
    *cv2*) echo {numpy}; [ -n "{numpy}" ] ;;
    "-m venv"*) mkdir -p venv/bin && cp "$0" venv/bin/python ;;
    *) echo "$@"; case "$*" in *force-reinstall*) exit 9 ;; esac ;;
    esac"""
    for name, text in (("python3", python3), ("uname", f"echo {kernel}")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    done = subprocess.run(["sh", tmp_path / "kit/build.sh"], env=env, capture_output=True, text=True)
    assert words in done.stdout + done.stderr
    assert done.returncode == (4 if words.startswith("no OpenCV") else 9)


def test_what_pip_installs_is_all_that_the_package_needs(tmp_path: Path) -> None:
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    write_kit(tiny_onnx(tmp_path / "fused.onnx").path, target, tmp_path / "kit")
    (line,) = [x for x in (tmp_path / "kit/build.sh").read_text().splitlines() if "install $index" in x]
    asked = {word.replace(" ", "").replace('"', "'") for word in shlex.split(line)}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = {text.replace(" ", "") for text in project["dependencies"]}
    assert {text for text in wanted if not text.startswith(("numpy", "opencv-python"))} <= asked
    assert {"onnx>=1.16", "onnxruntime>=1.18"} <= asked
    assert not [word for word in asked if word.startswith(("numpy", "opencv", "torch", "onnxscript"))]


def test_a_doctor_that_fails_does_not_stop_the_build(tmp_path: Path) -> None:
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    write_kit(tiny_onnx(tmp_path / "fused.onnx").path, target, tmp_path / "kit")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ran $3"\n[ "$3" != doctor ]\n')
    python.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "kit/build.sh"], env={**os.environ, "TSSS_EDGE_PYTHON": str(python)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "ran build-engine" in done.stdout and "doctor failed" in done.stderr


def test_failure_leaves_nothing_and_an_existing_folder_stays(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "fused.onnx", size_hw=(32, 32))
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    with pytest.raises(ArtifactError, match="export it again"):
        write_kit(model.path, target, tmp_path / "kit")
    assert [p.name for p in tmp_path.iterdir()] == ["fused.onnx"]
    (tmp_path / "kit").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        write_kit(model.path, target, tmp_path / "kit")


def test_parity_step_comes_with_data(tmp_path: Path) -> None:
    data = tmp_path / "set"
    for folder in ("JPEGImages/day", "SegmentationClass/day", "ImageSets/Segmentation"):
        (data / folder).mkdir(parents=True)
    for name in ("a", "b", "day/c"):  # an id may name a folder
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(data / f"JPEGImages/{name}.jpg")
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(data / f"SegmentationClass/{name}.png")
    (data / "ImageSets/Segmentation/val.txt").write_text("a\nday/c\n")
    (data / "classes.txt").write_text("\n".join(netkit.CLASSES.names))
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    made, other = checkpoint(tmp_path / "made.pt"), checkpoint(tmp_path / "other.pt", seed=1)
    graph = export_onnx(made, tmp_path / "fused.onnx")
    with pytest.raises(ValueError, match="needs --reference CKPT"):
        write_kit(graph.path, target, tmp_path / "kit", eval_data=data)
    with pytest.raises(ValueError, match="give --eval-data too"):
        write_kit(graph.path, target, tmp_path / "kit", reference=made)
    with pytest.raises(ArtifactError, match=r"made from checkpoint .*give its own checkpoint"):
        write_kit(graph.path, target, tmp_path / "kit", eval_data=data, reference=other)
    assert not (tmp_path / "kit").exists()
    kit = write_kit(graph.path, target, tmp_path / "kit", eval_data=data, reference=made)
    copied = {str(p.relative_to(tmp_path / "kit/data")) for p in (tmp_path / "kit/data").rglob("*") if p.is_file()}
    pairs = {
        f"{folder}/{name}"
        for folder, end in (("JPEGImages", "jpg"), ("SegmentationClass", "png"))
        for name in (f"a.{end}", f"day/c.{end}")
    }
    assert copied == {*pairs, "ImageSets/Segmentation/val.txt", "classes.txt"}
    assert any((tmp_path / "kit/answers").iterdir())
    assert "--split val --max-drop 0.5" in script_text(kit, "w.whl", ())


def test_a_kit_made_from_within_the_run_has_the_run_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "street").mkdir()
    checkpoint(tmp_path / "street/best.pt")
    monkeypatch.chdir(tmp_path / "street")
    target = msgspec.structs.replace(load_target("cpu"), precisions=("fp32",))
    kit = write_kit(Path("best.pt"), target, tmp_path / "kit")
    assert kit.graphs == {"fp32": "street.fp32.onnx"} and (tmp_path / "kit/street.fp32.onnx").is_file()


def test_local_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from tsss_edge.backends.cuda.gpus import Gpu

    monkeypatch.setattr(kits, "first_gpu", lambda: None)
    assert runs_here(load_target("cpu")) and not runs_here(ORIN)
    orin = Gpu(name="Orin", compute_capability="8.7", total_bytes=1, free_bytes=1, driver_cuda="12.2")
    monkeypatch.setattr(kits, "first_gpu", lambda: orin)
    assert runs_here(ORIN) and not runs_here(load_target("jetson-thor"))


def test_wheel_holds_the_package_and_is_packed_again_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_wheel(tmp_path)
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    assert {"tsss_edge/artifacts.py", "tsss_edge/_share/export/cpu.toml", "tsss_edge/py.typed"} <= names
    assert not [n for n in names if "__pycache__" in n]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "t", first],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t/tsss_edge/artifacts.py").is_file()
    (installed,) = Distribution.discover(name="tsss-edge", path=[str(tmp_path / "t")])
    monkeypatch.setattr("importlib.metadata.files", lambda _: installed.files)
    monkeypatch.setattr("tsss_edge.__file__", str(tmp_path / "t/tsss_edge/__init__.py"))
    (tmp_path / "again").mkdir()
    with zipfile.ZipFile(write_wheel(tmp_path / "again")) as archive:
        assert set(archive.namelist()) == names
        record = next(archive.read(n).decode() for n in names if n.endswith("/RECORD"))
    assert {line.split(",")[0] for line in record.splitlines()} == names
