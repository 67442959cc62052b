"""Plan headers: read without TensorRT or CUDA, and every mismatch told in one sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest
from tiny import tiny_onnx

from tsss_edge.artifacts import Engine, EngineRecord
from tsss_edge.backends.cuda.gpus import Gpu, name_with_board
from tsss_edge.backends.plan import foreign_prefix, read_header, require_record, require_runnable, strip_prefix
from tsss_edge.backends.trt_api import Trt
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.build import build_engine

ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", total_bytes=1 << 34, free_bytes=1 << 34, driver_cuda="13.0")
HOPPER = msgspec.structs.replace(ADA, name="NVIDIA H100 80GB HBM3", compute_capability="9.0")


def tensorrt_plan(path: Path, version: tuple[int, int, int, int] = (10, 3, 0, 26), serialization: int = 239) -> Path:
    """A header as NVIDIA's sample reads it, and some bytes after it."""
    path.write_bytes(struct.pack("<II16s4B", 0x74727466, serialization, b"", *version) + b"\0" * 100)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(tmp_path_factory.mktemp("plan") / "t.onnx")
    return build_engine(model.path, load_target("rtx"), model.path.with_suffix(".engine"), precision="fp32")


@pytest.mark.parametrize(
    "asked", [("7.5",), ("8.0",), ("8.6",), ("8.9",), ("12.0",), ("12.1",), ("8.0", "8.6", "8.9", "12.0")]
)
def test_real_plans_tell_their_compute_capabilities(tmp_path: Path, asked: tuple[str, ...]) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = msgspec.structs.replace(load_target("rtx"), compute_capabilities=asked)
    path = build_engine(tiny_onnx(tmp_path / "t.onnx").path, target, tmp_path / "t", precision="fp32").path
    header = read_header(path)
    assert header.compute_capabilities == asked
    assert header.flavour == "tensorrt-rtx"
    assert header.length == path.stat().st_size


def test_default_leaves_turing_out(engine: Engine) -> None:
    assert read_header(engine.path).compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1", "later")


def test_header_version_is_the_builders(engine: Engine) -> None:
    header = read_header(engine.path)
    require_record(engine.path, header, engine.record)
    assert str(header) == f"TensorRT-RTX {engine.record.versions['tensorrt-rtx']}"


def test_tensorrt_header(tmp_path: Path) -> None:
    header = read_header(tensorrt_plan(tmp_path / "a.engine"))
    assert (header.flavour, header.serialization, header.version) == ("tensorrt", 239, (10, 3, 0, 26))
    assert str(header) == "TensorRT 10.3.0.26"


def test_plans_of_tensorrt_8_have_no_version_but_in_their_record(engine: Engine, tmp_path: Path) -> None:
    """8.5 and 8.6 write the tag ptrt (JetPack 5, and JetPack 6 at first)."""
    plan = tmp_path / "a.engine"
    plan.write_bytes(b"ptrt" + b"\0" * 5 + b"\xe8" + b"\0" * 100)
    header, record = read_header(plan), as_tensorrt(engine.record, "8.5.3.1", "NVIDIA L4 (compute capability 8.9)")
    assert (header.flavour, header.version, str(header)) == ("tensorrt", None, "TensorRT 8")
    require_record(plan, header, record)
    require_runnable(plan, header, record, Trt(None, "tensorrt", (8, 5, 3, 1)), ADA)
    with pytest.raises(UnavailableError, match=r"built by TensorRT 8\.5\.3\.1, this machine has TensorRT 8\.6\.1"):
        require_runnable(plan, header, record, Trt(None, "tensorrt", (8, 6, 1)), ADA)
    with pytest.raises(ArtifactError, match=r"is a plan of TensorRT 8, its record says 10\.3\.0"):
        require_record(plan, header, as_tensorrt(engine.record, "10.3.0"))


def test_ultralytics_prefix_is_found_and_stripped(tmp_path: Path) -> None:
    plan = tensorrt_plan(tmp_path / "plain.engine").read_bytes()
    text = b'{"description": "Ultralytics YOLO11n model", "stride": 32}'
    prefixed = tmp_path / "yolo.engine"
    prefixed.write_bytes(len(text).to_bytes(4, "little") + text + plan)
    assert foreign_prefix(prefixed) == 4 + len(text)
    with pytest.raises(ArtifactError, match=r"JSON stand before the plan, as Ultralytics writes it; .*--strip"):
        read_header(prefixed)
    strip_prefix(prefixed, tmp_path / "stripped.engine")
    assert (tmp_path / "stripped.engine").read_bytes() == plan
    with pytest.raises(ArtifactError, match="nothing to strip"):
        strip_prefix(tmp_path / "stripped.engine", tmp_path / "again.engine")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes, too short"),
        (b"ftrt", "4 bytes, too short"),
        (b"PK\x03\x04" + b"\0" * 60, "a zip"),
        (b"<?xml version='1.0'?>" + b" " * 60, "an XML file"),
        (b"\xff" * 64, "it starts with ffffffff"),
        (b"\x08\x00\x00\x00{notjson" + b"\0" * 60, "not a TensorRT plan"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.engine").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        read_header(tmp_path / "x.engine")


def test_truncated_rtx_plan_is_seen_without_its_record(engine: Engine, tmp_path: Path) -> None:
    data = engine.path.read_bytes()
    (tmp_path / "t.engine").write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=rf"promises {len(data)} bytes, the file has {len(data) - 1}"):
        read_header(tmp_path / "t.engine")


def test_record_of_another_builder(engine: Engine, tmp_path: Path) -> None:
    header = read_header(tensorrt_plan(tmp_path / "a.engine"))
    with pytest.raises(ArtifactError, match=r"is a plan of TensorRT 10\.3\.0\.26, its record says tensorrt-rtx"):
        require_record(tmp_path / "a.engine", header, engine.record)
    record = as_tensorrt(engine.record, "10.16.0.72")
    with pytest.raises(ArtifactError, match=r"plan of TensorRT 10\.3\.0\.26, its record says 10\.16\.0\.72"):
        require_record(tmp_path / "a.engine", header, record)


def as_tensorrt(record: EngineRecord, version: str, device: str = "") -> EngineRecord:
    return msgspec.structs.replace(record, backend="tensorrt", versions={"tensorrt": version}, device=device)


def test_machine_mismatches_name_both_sides_and_the_way_out(engine: Engine, tmp_path: Path) -> None:
    rtx = read_header(engine.path)
    here = Trt(None, "tensorrt-rtx", rtx.version)
    require_runnable(engine.path, rtx, engine.record, here, ADA)
    with pytest.raises(
        UnavailableError, match=r"made for compute capability 8\.0, .* this GPU \(NVIDIA H100.*has 9\.0"
    ):
        require_runnable(engine.path, rtx, engine.record, here, HOPPER)
    future = msgspec.structs.replace(ADA, compute_capability="13.0")
    require_runnable(engine.path, rtx, engine.record, here, future)  # "and later"
    plan = tensorrt_plan(tmp_path / "a.engine")
    header, record = read_header(plan), as_tensorrt(engine.record, "10.3.0.26", "NVIDIA L4 (compute capability 8.9)")
    require_runnable(plan, header, record, Trt(None, "tensorrt", (10, 3, 0, 30)), ADA)
    with pytest.raises(UnavailableError, match=r"built by TensorRT 10\.3\.0\.26, this machine has TensorRT 11\.4\.0"):
        require_runnable(plan, header, record, Trt(None, "tensorrt", (11, 4, 0)), ADA)
    with pytest.raises(
        UnavailableError, match=r"built for NVIDIA L4 .*build it here with `tsss-edge build-engine .*a\.engine`"
    ):
        require_runnable(plan, header, record, Trt(None, "tensorrt", (10, 3, 0)), HOPPER)
    newer = msgspec.structs.replace(record, versions={"tensorrt": "10.3.0.26", "driver_cuda": "14.1"})
    with pytest.raises(
        UnavailableError, match=r"driver that serves CUDA 14\.1, this one serves 13\.0; install a newer"
    ):
        require_runnable(plan, header, newer, Trt(None, "tensorrt", (10, 3, 0)), ADA)


@pytest.mark.parametrize(
    ("level", "name", "capability", "runs"),
    [
        ("", "NVIDIA A10", "8.6", False),
        ("ampere_plus", "NVIDIA A10", "8.6", True),
        ("ampere_plus", "NVIDIA H100", "9.0", True),
        ("ampere_plus", "Tesla T4", "7.5", False),
        ("same_compute_capability", "NVIDIA RTX 4090", "8.9", True),
        ("same_compute_capability", "NVIDIA A10", "8.6", False),
    ],
)
def test_hardware_compatible_plans_travel(
    engine: Engine, tmp_path: Path, level: str, name: str, capability: str, runs: bool
) -> None:
    """Built on an L4 (8.9)."""
    plan = tensorrt_plan(tmp_path / "a.engine")
    record = as_tensorrt(engine.record, "10.3.0.26", "NVIDIA L4 (compute capability 8.9)")
    record = with_target(record, hardware_compatible=level)
    gpu = msgspec.structs.replace(ADA, name=name, compute_capability=capability)
    if runs:
        require_runnable(plan, read_header(plan), record, Trt(None, "tensorrt", (10, 3, 0)), gpu)
    else:
        with pytest.raises(UnavailableError, match="built for NVIDIA L4"):
            require_runnable(plan, read_header(plan), record, Trt(None, "tensorrt", (10, 3, 0)), gpu)


def test_a_plan_of_another_jetson_is_refused_though_both_gpus_are_called_orin(engine: Engine, tmp_path: Path) -> None:
    plan, trt = tensorrt_plan(tmp_path / "a.engine"), Trt(None, "tensorrt", (10, 3, 0))
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    name = name_with_board("Orin", tmp_path / "model")
    orin = msgspec.structs.replace(ADA, name=name, compute_capability="8.7")

    def run_one_built_for(gpu: str) -> None:
        record = as_tensorrt(engine.record, "10.3.0.26", f"{gpu} (compute capability 8.7)")
        require_runnable(plan, read_header(plan), record, trt, orin)

    run_one_built_for("Orin, NVIDIA Jetson Orin Nano Developer Kit")
    for other in ("Orin, NVIDIA Jetson AGX Orin Developer Kit", "Orin"):  # the second: from before boards were told
        with pytest.raises(UnavailableError, match=f"built for {other} .*, this GPU is {name}; build it here"):
            run_one_built_for(other)


@pytest.mark.parametrize(
    ("compatible", "here", "runs"),
    [(False, (10, 16, 0), False), (True, (10, 16, 0), True), (True, (10, 2, 0), False), (True, (11, 0, 0), False)],
)
def test_version_compatible_plans_travel_forward(
    engine: Engine, tmp_path: Path, compatible: bool, here: tuple[int, ...], runs: bool
) -> None:
    """Built by 10.3."""
    plan = tensorrt_plan(tmp_path / "a.engine")
    record = as_tensorrt(engine.record, "10.3.0.26", "NVIDIA L4 (compute capability 8.9)")
    record = with_target(record, version_compatible=compatible)
    if runs:
        require_runnable(plan, read_header(plan), record, Trt(None, "tensorrt", here), ADA)
    else:
        with pytest.raises(UnavailableError, match=r"built by TensorRT 10\.3\.0\.26"):
            require_runnable(plan, read_header(plan), record, Trt(None, "tensorrt", here), ADA)


def with_target(record: EngineRecord, **changes: object) -> EngineRecord:
    target = msgspec.structs.replace(record.build.target, **changes)
    return msgspec.structs.replace(record, build=msgspec.structs.replace(record.build, target=target))
