"""The Python face: light to import, functions and modules of one name side by side, the README's lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import netkit
import numpy as np
import pytest
from PIL import Image

import tsss_edge
from tsss_edge import api
from tsss_edge.artifacts import Classes
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.config import TrainConfig
from tsss_edge.data.pictures import read_mask
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import ArtifactError
from tsss_edge.segmentation import Segmentation

ROOT = Path(__file__).parents[1]
CLASSES = Classes(names=("background", "cat", "dog"))


def found() -> Segmentation:
    """A grey picture of 20x30 with a 6x4 cat and two dogs."""
    labels = np.zeros((20, 30), np.uint8)
    labels[2:6, 3:9] = 1
    labels[10:12, 1:4] = labels[10:12, 20:23] = 2
    return Segmentation(labels, np.full((20, 30, 3), 100, np.uint8), CLASSES)


def test_the_import_is_light_and_the_rooms_are_modules_and_functions() -> None:
    code = """
import sys, tsss_edge
assert not {"numpy", "torch", "msgspec"} & set(sys.modules), "heavy"
assert {"load", "train", "stream"} <= set(dir(tsss_edge))
import tsss_edge.train.loop as loop
assert tsss_edge.train.loop is loop
calls = []
from tsss_edge import api
for name in ("export", "segment", "stream", "train"):
    setattr(api, name, lambda *a, name=name, **k: calls.append((name, a, k)))
tsss_edge.train("data", out="run"); tsss_edge.export(1); tsss_edge.segment(2); tsss_edge.stream(3)
assert calls == [("train", ("data",), {"out": "run"}), ("export", (1,), {}), ("segment", (2,), {}), ("stream", (3,), {})]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tsss_edge.nonsense  # noqa: B018


def test_a_model_takes_files_and_arrays_and_closes(tmp_path: Path) -> None:
    checkpoint = netkit.checkpoint(tmp_path / "best.pt")
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    with tsss_edge.load(str(checkpoint.path), threads=1) as model:
        from_file, from_array = model(str(tmp_path / "p.png")), model(picture)
    assert from_file.labels.shape == (40, 50) and from_file.classes == checkpoint.meta.classes
    assert np.array_equal(from_file.labels, from_array.labels)
    assert sum(from_file.areas().values()) == 40 * 50
    with pytest.raises(ArtifactError, match=r"p\.png"):
        tsss_edge.load(tmp_path / "p.png")


def test_a_model_of_a_loaded_back_end() -> None:
    model = api.Model(FakeBackend(CLASSES, netkit.SPEC))
    assert model.classes == CLASSES and model.preprocess == netkit.SPEC


def test_areas_and_outlines() -> None:
    assert found().areas() == {"background": 600 - 24 - 12, "cat": 24, "dog": 12}
    polygons = found().polygons()
    assert {name: len(outlines) for name, outlines in polygons.items()} == {"cat": 1, "dog": 2}
    (cat,) = polygons["cat"]
    assert {tuple(point) for point in cat.tolist()} == {(3, 2), (8, 2), (8, 5), (3, 5)}


def test_the_overlay_colours_objects_and_leaves_the_picture_alone() -> None:
    segmentation = found()
    blended = segmentation.overlay(1.0, "plain")
    assert tuple(blended[3, 4]) == CLASSES.palette[1] and tuple(blended[0, 0]) == (100, 100, 100)
    assert (segmentation.image == 100).all()


def test_files(tmp_path: Path) -> None:
    assert np.array_equal(read_mask(found().save(tmp_path / "new/mask.png")), found().labels)
    with Image.open(found().save(str(tmp_path / "picture.jpg"))) as picture:
        assert picture.format == "JPEG" and picture.width == 30 and picture.height > 20  # a legend below
    with pytest.raises(ValueError, match=r"expected \.png"):
        found().save(tmp_path / "mask.bmp")


def test_settings_follow_the_pictures_unless_a_size_is_named(tmp_path: Path) -> None:
    data = netkit.write_set(tmp_path / "data")
    followed = api.training_settings(data, epochs=3, arch=None)  # its pictures are 64x48
    assert followed.epochs == 3 and followed.arch == TrainConfig().arch and followed.size_hw == (64, 64)
    assert api.training_settings(data, TrainConfig(size_hw=(64, 32))).size_hw == (64, 32)
    (tmp_path / "t.toml").write_text("size_hw = [96, 64]\n")
    assert api.training_settings(data, str(tmp_path / "t.toml"), seed=5).size_hw == (96, 64)
    with pytest.raises(ValueError, match="multiples of 32"):
        api.training_settings(data, size_hw=(50, 50))


def test_from_labels_to_an_engine_in_python(tmp_path: Path) -> None:
    data = netkit.write_set(tmp_path / "data")
    trained = tsss_edge.train(
        str(data), str(tmp_path / "run"), epochs=1, size_hw=(64, 96), config=TrainConfig(threads=1)
    )
    graph = tsss_edge.export(trained, tmp_path / "fused.onnx", data=data)
    int8 = tsss_edge.calibrate(str(graph.path), data, tmp_path / "fused.int8.onnx", size=2)
    engine = tsss_edge.build_engine(int8, "cpu", str(tmp_path / "fused.xml"), precision="int8")
    report = tsss_edge.check_parity(str(engine.path), trained, data, max_drop=100.0, min_reference=0, threads=1)
    assert report.passed and report.images == len(VocDataset.open(data).ids("val"))
    sheet = str(tmp_path / "sheet.png")
    masks = tsss_edge.segment(engine.path, str(data / "JPEGImages"), tmp_path / "masks", sheet=sheet)
    assert Path(sheet).is_file()
    assert masks.images == len(list((tmp_path / "masks").rglob("*.png")))
    shadow = str(tsss_edge.build_engine(graph, "cpu", tmp_path / "float.xml", precision="fp32").path)
    live = tsss_edge.stream(str(engine.path), "synthetic://?frames=3&size=64x48", force=True, threads=1, shadow=shadow)
    assert live.frames == 3


def test_an_engine_whose_hash_differs_is_compared_when_it_is_trusted(tmp_path: Path) -> None:
    made = netkit.checkpoint(tmp_path / "net.pt")
    graph = tsss_edge.export(made, tmp_path / "net.onnx", check_images=[])
    engine = tsss_edge.build_engine(graph, "cpu", tmp_path / "net", precision="fp32").path
    engine.write_bytes(engine.read_bytes() + b"\n")
    data, how = netkit.write_set(tmp_path / "data"), {"min_reference": 0, "threads": 1}
    with pytest.raises(ArtifactError, match="hash"):
        tsss_edge.check_parity(engine, made, data, **how)
    assert tsss_edge.check_parity(engine, made, data, trust=True, **how).images == 3


def test_the_lines_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    netkit.checkpoint(tmp_path / "runs/camvid/best.pt")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "street.jpg")
    exec(block[1], {})
    assert (tmp_path / "street.png").is_file()
