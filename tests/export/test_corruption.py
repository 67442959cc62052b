"""Twenty damaged engines and records: twenty clear refusals in one line each, no crash, nothing loaded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from tiny import tiny_onnx

from tsss_edge.artifacts import Engine
from tsss_edge.backends import open_backend, trt
from tsss_edge.backends.cuda.gpus import Gpu
from tsss_edge.backends.trt_api import load
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError, TsssEdgeError, UnavailableError
from tsss_edge.export.build import build_engine
from tsss_edge.files import sha256_file

Damage = Callable[[Path], None]
ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", total_bytes=1 << 34, free_bytes=1 << 34, driver_cuda="13.0")


def flip(suffix: str, where: float, bit: int = 0) -> Damage:
    """Flip one bit of the engine's file with `suffix`, at a fraction of its length."""

    def damage(path: Path) -> None:
        data = bytearray((file := path.with_suffix(suffix)).read_bytes())
        data[int(where * (len(data) - 1))] ^= 1 << bit
        file.write_bytes(data)

    return damage


def cut(suffix: str, part: float) -> Damage:
    def damage(path: Path) -> None:
        data = (file := path.with_suffix(suffix)).read_bytes()
        file.write_bytes(data[: int(part * len(data))])

    return damage


def record(**changes: object) -> Damage:
    """Change fields of the record as somebody would who means it: without the digest, which would tell."""

    def damage(path: Path) -> None:
        content = msgspec.json.decode(path.with_suffix(".json").read_bytes())
        path.with_suffix(".json").write_bytes(msgspec.json.encode(content | changes | {"digest": ""}))

    return damage


def careless(path: Path) -> None:
    text = path.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(text.replace('"precision": "fp32"', '"precision": "fp16"'))


def header(offset: int, fmt: str, *values: int) -> Damage:
    """Write into the plan's header and make the record's hash fit, as if somebody had meant it."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        struct.pack_into(fmt, data, offset, *values)
        path.write_bytes(data)
        record(files={path.name: sha256_file(path)})(path)

    return damage


def remove(suffix: str) -> Damage:
    return lambda path: path.with_suffix(suffix).unlink()


def prefixed(path: Path) -> None:
    """A JSON header in front, as Ultralytics writes it, with a fitting record."""
    text = b'{"task": "segment"}'
    path.write_bytes(len(text).to_bytes(4, "little") + text + path.read_bytes())
    record(files={path.name: sha256_file(path)})(path)


def renamed_to_other(path: Path) -> None:
    record(files={"other" + path.suffix: "0" * 64})(path)


XML: dict[str, tuple[Damage, str]] = {
    "xml bit": (flip(".xml", 0.5), "its hash is not the one"),
    "bin bit": (flip(".bin", 0.3, bit=7), "its hash is not the one"),
    "xml cut": (cut(".xml", 0.5), "its hash is not the one"),
    "bin empty": (cut(".bin", 0.0), "its hash is not the one"),
    "bin gone": (remove(".bin"), "named in t.fp32.json but missing"),
    "record gone": (remove(".json"), "no record t.fp32.json beside it"),
    "record changed": (careless, "was changed after it was written"),
    "record without files": (record(files={}), "not a valid EngineRecord"),
    "record that climbs": (record(files={"../t.fp32.xml": "0" * 64}), "not a valid EngineRecord"),
    "record without inputs": (record(inputs=[]), "names no inputs"),
    "record of 96 GiB": (
        record(outputs=[{"name": "logits", "dtype": "float32", "shape": [1, 24, 32768, 32768]}]),
        "not a valid EngineRecord",
    ),
    "record cut": (cut(".json", 0.7), "not a valid EngineRecord"),
    "record empty": (cut(".json", 0.0), "not a valid EngineRecord"),
    "record of another": (renamed_to_other, "describes other.xml, not t.fp32.xml"),
    "record unknown field": (record(surprise=1), "not a valid EngineRecord"),
    "record wrong type": (record(precision="int4"), "not a valid EngineRecord"),
    "record of a plan": (record(backend="tensorrt"), "its record is of tensorrt"),
}
PLAN: dict[str, tuple[Damage, str]] = {
    "plan bit": (flip(".engine", 0.5), "its hash is not the one"),
    "plan cut": (cut(".engine", 0.9), "its hash is not the one"),
    "wrong tag": (header(0, "<I", 0x12345678), "not a TensorRT plan"),
    "tag of TensorRT": (header(0, "<I", 0x74727466), "its record says tensorrt-rtx"),
    "another version": (header(24, "4B", 1, 5, 0, 9), r"is a plan of TensorRT-RTX 1\.5\.0\.9, its record says"),
    "length": (header(16, "<Q", 12), "its header promises 12 bytes"),
    "prefix": (prefixed, "as Ultralytics writes it"),
    "record of an IR": (record(backend="openvino"), "its record says openvino"),
    "record without version": (record(versions={}, device=3), "not a valid EngineRecord"),
}


def refusal(path: Path) -> TsssEdgeError:
    with pytest.raises(TsssEdgeError) as caught:
        open_backend(path)
    assert "\n" not in str(caught.value), "one line"
    assert path.parent.name in str(caught.value), "says which file"
    return caught.value


def test_there_are_at_least_twenty() -> None:
    assert len(XML) + len(PLAN) >= 20


@pytest.mark.parametrize("name", XML)
def test_openvino(tmp_path: Path, name: str) -> None:
    damage, words = XML[name]
    path = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("cpu"), tmp_path / "t", precision="fp32").path
    damage(path)
    error = refusal(path)
    assert isinstance(error, ArtifactError)
    assert words in str(error)


@pytest.mark.parametrize("name", PLAN)
def test_tensorrt(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    damage, words = PLAN[name]
    path = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("rtx"), tmp_path / "t", precision="fp32").path
    damage(path)
    error = refusal(path)
    assert isinstance(error, ArtifactError), "told before the missing GPU is"
    assert error.args[0].count("; ") >= 1, "says what to do"
    assert re.search(words, str(error))


def test_plan_of_another_version_with_an_honest_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = build_engine(tiny_onnx(tmp_path / "t.onnx").path, load_target("rtx"), tmp_path / "t", precision="fp32").path
    header(24, "4B", 1, 5, 0, 9)(path)
    record(versions={"tensorrt-rtx": "1.5.0.9"})(path)
    installed = load("tensorrt-rtx")
    monkeypatch.setattr(trt, "PrimaryContext", lambda: SimpleNamespace(use=lambda: None, close=lambda: None))
    monkeypatch.setattr(trt, "first_gpu", lambda: ADA)
    error = refusal(path)
    assert isinstance(error, UnavailableError)
    assert f"built by TensorRT-RTX 1.5.0.9, this machine has {installed}" in str(error)
    assert f"build it here with `tsss-edge build-engine {path}`" in str(error)
    assert Engine.load(path).record.versions == {"tensorrt-rtx": "1.5.0.9"}
