"""Every example, on small data: pages are typed line by line, programs are run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import netkit
import numpy as np
import pytest
from foreignkit import write_net
from importkit import picture
from typedlines import commands, program

import tsss_edge
from tsss_edge.artifacts import Classes
from tsss_edge.cli import main
from tsss_edge.config import load_target
from tsss_edge.export.foreign import import_onnx

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def type_page(name: str, change: Callable[[list[str]], list[str]], where: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run each line of a page in `where`, as `change` has it. Returns how many."""
    monkeypatch.chdir(where)
    lines = commands(EXAMPLES / name / "README.md")
    for words in lines:
        monkeypatch.setattr(sys, "argv", ["tsss-edge", *change(words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), words
    return len(lines)


def write_clip(path: Path, frames: int = 6) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for number in range(frames):
        writer.write(netkit.picture(number))
    writer.release()


def test_own_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights: the gate is told to let them pass."""
    write_net(tmp_path / "net.onnx")
    netkit.write_set(tmp_path / "data")
    write_clip(tmp_path / "street.mp4")

    def lenient(words: list[str]) -> list[str]:
        return [*words, "--max-drop", "100", "--min-reference", "0"] if words[0] == "parity" else words

    assert type_page("01_own_onnx", lenient, tmp_path, monkeypatch) == 5
    assert (tmp_path / "named.mp4").stat().st_size > 1000


def test_every_target_that_a_page_names_is_one() -> None:
    pages = "".join(page.read_text() for page in EXAMPLES.rglob("README.md"))
    names = re.findall(r"--target ([\w-]+)", pages)
    assert names
    for name in names:
        load_target(name)


def test_the_triton_server_installs_the_wheel_that_is_mounted() -> None:
    page = (EXAMPLES / "06_triton_client/README.md").read_text()
    (made,) = re.findall(r"pip wheel .*--wheel-dir (\w+)", page)
    assert f"-v $PWD/{made}:/{made}:ro" in page and f"pip install /{made}/tsss_edge-*.whl" in page


@pytest.mark.slow_all
def test_coco_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("car", "bus", "truck", "person", "bicycle")
    found = [
        {"id": 10 * i + k, "image_id": i, "category_id": k, "iscrowd": 0, "area": 400.0,
         "segmentation": [[12 * k, 5, 12 * k + 11, 5, 12 * k + 11, 40, 12 * k, 40]]}
        for i in range(10) for k in range(len(names))
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(10)]
    (tmp_path / "coco/annotations").mkdir(parents=True)
    content = {
        "images": images,
        "annotations": found,
        "categories": [{"id": i, "name": n} for i, n in enumerate(names)],
    }
    (tmp_path / "coco/annotations/instances_all.json").write_text(json.dumps(content))
    for image in images:
        picture(tmp_path / "coco" / str(image["file_name"]), seed=int(str(image["id"])), hw=(48, 64))
    picture(tmp_path / "photos/one.jpg", seed=3, hw=(48, 64))
    (tmp_path / "vehicles.toml").write_text((EXAMPLES / "02_coco_data/vehicles.toml").read_text())

    def short(words: list[str]) -> list[str]:
        return [*(word if word != "40" else "1" for word in words), *(["--size", "64"] if words[0] == "train" else [])]

    assert type_page("02_coco_data", short, tmp_path, monkeypatch) == 5
    assert (tmp_path / "runs/worst.png").is_file() and (tmp_path / "runs/seen.png").is_file()
    assert (tmp_path / "runs/set/classes.txt").read_text().split() == ["background", "vehicle", "person"]


@pytest.mark.slow_all
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in order, with one epoch."""
    netkit.write_set(tmp_path / "data", train=8)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "03_notebook/labels.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("EPOCHS = 60", "EPOCHS = 1")
            exec(compile(source, "labels.ipynb", "exec"), names)
    assert names["after"].miou >= 0


def test_rtsp_service() -> None:
    events = program("04_rtsp_service/watch.py").events
    shares = [0, 0, 0.2, 0.2, *[0] * 30, 0.3]
    lines: Iterator[dict[str, Any]] = iter([*({"areas": {"cat": share}} for share in shares), {"frames": 35}])
    told = [(event["event"], event["share"]) for event in events(lines, "cat", 0.1)]
    assert told == [("appears", 0.2), ("gone", 0), ("appears", 0.3)]


def test_rtsp_service_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The command that it starts is one; a missing engine is its exit code and one line."""
    monkeypatch.setattr(sys, "argv", ["watch.py", str(tmp_path / "no.xml"), "synthetic://?frames=2", "cat"])
    with pytest.raises(SystemExit) as ended:
        program("04_rtsp_service/watch.py").main()
    assert ended.value.code == 1 and "no.xml" in capfd.readouterr().err


# -- ROS 2: a stand-in for rclpy ---------------------------------------------------------------------------------------------


class Publisher:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def publish(self, message: Any) -> None:
        self.sent.append(message)

    def get_subscription_count(self) -> int:
        return 1


class Node:
    engine = ""

    def __init__(self, name: str) -> None:
        self.topics: dict[str, Any] = {}
        self.errors: list[str] = []

    def declare_parameter(self, name: str, default: str) -> None:
        assert (name, default) == ("engine", "")

    def get_parameter(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(value=self.engine)

    def create_publisher(self, kind: type, topic: str, depth: int) -> Publisher:
        return self.topics.setdefault(topic, Publisher())

    def create_subscription(
        self, kind: type, topic: str, callback: Callable[[Any], None], qos: SimpleNamespace
    ) -> None:
        assert (qos.depth, qos.reliability) == (1, "best effort"), "drivers that send best effort are heard too"
        self.topics[topic] = callback

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(error=self.errors.append)

    def destroy_node(self) -> None:
        self.topics.clear()


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    qos = {
        "QoSProfile": SimpleNamespace, "HistoryPolicy": SimpleNamespace(KEEP_LAST="last"),
        "ReliabilityPolicy": SimpleNamespace(BEST_EFFORT="best effort"),
    }  # fmt: skip
    for name, more in {
        "rclpy": {}, "rclpy.node": {"Node": Node}, "rclpy.qos": qos, "sensor_msgs": {}, "sensor_msgs.msg": {"Image": SimpleNamespace}
    }.items():  # fmt: skip
        module = ModuleType(name)
        vars(module).update(more)
        monkeypatch.setitem(sys.modules, name, module)
    return program("05_ros2/segment_node.py")


def test_ros2_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ros: ModuleType) -> None:
    classes = Classes(names=("background", "a", "b", "c", "d"))
    import_onnx(write_net(tmp_path / "net.onnx"), tmp_path / "ours.onnx", classes=classes)
    monkeypatch.setattr(Node, "engine", str(tmp_path / "ours.onnx"))
    node = ros.SegmentNode()
    image = netkit.picture(1, (48, 80))
    padded = np.zeros((48, 256), np.uint8)
    padded[:, :240] = image[..., ::-1].reshape(48, 240)
    message = SimpleNamespace(header="h", encoding="bgr8", height=48, width=80, step=256, data=padded.tobytes())
    masks, overlay = node.topics["masks"], node.topics["overlay"]
    node.topics["image"](message)
    with tsss_edge.load(tmp_path / "ours.onnx") as model:
        want = model(image)
    (mask,), (seen,) = masks.sent, overlay.sent
    assert (mask.header, mask.encoding, mask.height, mask.width, mask.step) == ("h", "mono8", 48, 80, 80)
    assert mask.data == want.labels.tobytes() and (seen.encoding, seen.step) == ("rgb8", 240)
    node.topics["image"](SimpleNamespace(encoding="yuv422"))
    assert len(masks.sent) == 1 and node.errors == ["encoding yuv422: expected rgb8 or bgr8"]
    node.destroy_node()
