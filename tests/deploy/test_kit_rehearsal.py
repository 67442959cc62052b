"""From a laptop to a folder to a "Jetson" and back: record and parity of both precisions, though nothing there fits easily."""

from __future__ import annotations

import ast
import json
import subprocess
import tarfile
from pathlib import Path

import jetson
import msgspec
import netkit
import pytest
import tensorrt_standin

from tsss_edge.artifacts import EngineRecord
from tsss_edge.config import load_target
from tsss_edge.deploy.kit import write_kit
from tsss_edge.files import read_json

API = Path(__file__).parents[1] / "backends/trt_api/10.3.0.json"


@pytest.mark.slow
def test_a_kit_comes_back_with_records_and_parity(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    device = jetson.make(tmp_path / "jetson", report)
    kit = laptop(tmp_path)
    (kit / "wheels").symlink_to(jetson.wheels(jetson.python310(), kit))
    done = subprocess.run(["sh", str(kit / "build.sh")], env=device, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with tarfile.open(kit / "result.tar.gz") as archive:
        archive.extractall(tmp_path / "back", filter="data")
    out = tmp_path / "back/out"
    for precision in ("int8", "fp16"):
        record = read_json(out / f"camvid.{precision}.json", EngineRecord)
        assert record.versions["tensorrt"] == "10.3.0" and "Fake GPU 0 (compute capability 8.7)" in record.device
        assert record.parity is not None and record.parity.passed
        parity = json.loads((out / f"parity-{precision}.json").read_text())
        assert parity["stages"][0]["runs_on"].startswith("recorded answers of pytorch")
        assert parity["pixel_agreement"] > (0.99 if precision == "fp16" else 0.9)
        assert json.loads((out / f"bench-{precision}.json").read_text())["latency_ms"]["p50"] > 0
    checks = {c["name"]: c for c in json.loads((out / "doctor.json").read_text())["checks"]}
    assert checks["OpenCV"]["found"].startswith("4.5.5") and checks["PyTorch"]["status"] == "missing"
    installed = subprocess.run(
        [kit / "venv/bin/python", "-c", "import numpy, cv2; print(numpy.__version__, cv2.__file__)"],
        env=device, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert installed.startswith("1.26.") and "/system/cv2" in installed, (
        "the system's OpenCV, and a NumPy it loads beside"
    )
    ends = [json.loads(line) for line in report.read_text().splitlines()]
    assert all(end["errors"] == {} and not end["device_memory"] and not end["contexts"] for end in ends)


def laptop(tmp_path: Path) -> Path:
    """The kit, made as the README's line makes it."""
    data = netkit.write_set(tmp_path / "data", val=2)
    run = tmp_path / "camvid/best.pt"
    run.parent.mkdir()
    netkit.checkpoint(run)
    # random weights have no accuracy to lose: the gate is left open, the answers are compared above
    target = msgspec.structs.replace(
        load_target("jetson-orin"), max_drop=100.0, min_reference=0.0, min_int8_speedup=0.0
    )
    write_kit(run, target, tmp_path / "kit", calib_data=data, eval_data=data)
    assert not (tmp_path / "kit/checkpoint.pt").exists(), "nothing there could read it"
    return tmp_path / "kit"


def test_the_stand_in_has_no_name_that_tensorrt_has_not() -> None:
    recorded = json.loads(API.read_text())["names"]
    tree = ast.parse(Path(tensorrt_standin.__file__).read_text())
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        assert kind.name in recorded, kind.name
        known = set(recorded[kind.name]) | {"__init__"}
        names = {node.name for node in kind.body if isinstance(node, ast.FunctionDef)}
        names |= {
            t.id for node in kind.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
        }
        assert {name for name in names if not name.startswith("_")} <= known, kind.name
