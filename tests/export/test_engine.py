"""build_engine: names, records, what is refused, and that a failed build leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import netkit
import pytest
from tiny import CALIBRATION, CLASSES, tiny_onnx

from tsss_edge.artifacts import Engine, EngineRecord, OnnxModel, Target
from tsss_edge.backends.cuda.gpus import Gpu, first_gpu
from tsss_edge.backends.trt_api import Trt
from tsss_edge.config import load_target
from tsss_edge.deploy.rebuild import rebuild_engine
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export import tensorrt_attempts, tensorrt_build
from tsss_edge.export.build import build_engine, dry_run, engine_path
from tsss_edge.files import sha256_file
from tsss_edge.seals import read_sealed

CPU, RTX = load_target("cpu"), load_target("rtx")


def has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize(
    ("out", "target", "want"),
    [
        ("fused.engine", CPU, "fused.int8.xml"),
        ("fused.int8.xml", CPU, "fused.int8.xml"),
        ("fused.fp32.xml", CPU, "fused.int8.xml"),
        ("fused", RTX, "fused.int8.engine"),
        ("v1.2", RTX, "v1.2.int8.engine"),
        ("fused.onnx", RTX, "fused.int8.engine"),
    ],
)
def test_names_carry_the_precision(out: str, target: Target, want: str) -> None:
    assert engine_path(Path("runs") / out, target, "int8") == Path("runs") / want


def test_int8_cpu_engine_and_its_record(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "tiny.onnx", precision="int8", objectness=True)
    engine = build_engine(model.path, CPU, tmp_path / "out" / "tiny.xml")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tiny.int8.bin", "tiny.int8.json", "tiny.int8.xml"]
    record = read_sealed(tmp_path / "out" / "tiny.int8.json", EngineRecord)
    assert record == engine.record == Engine.load(engine.path).record
    assert record.files["tiny.int8.bin"] == sha256_file(tmp_path / "out" / "tiny.int8.bin")
    assert (record.backend, record.build.target.name, record.precision, record.meta.classes) == (
        "openvino",
        "cpu",
        "int8",
        CLASSES,
    )
    assert (record.onnx_sha256, record.meta.calibration) == (model.sha256, CALIBRATION)
    assert record.realised == {"int8": 2}
    assert [(s.name, s.dtype, s.shape) for s in (*record.inputs, *record.outputs)] == [
        ("image", "uint8", (1, 64, 96, 3)),
        ("logits", "float32", (1, 4, 8, 12)),
        ("objectness", "float32", (1, 1, 8, 12)),
    ]
    assert "openvino" in record.versions and record.device and record.created


def test_fp32_stays_fp32_where_the_cpu_prefers_bf16(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "tiny.onnx")
    assert build_engine(model.path, CPU, tmp_path / "t", precision="fp32").record.realised == {"fp32": 1}


def test_bf16_where_the_cpu_has_it_and_a_clear_no_elsewhere(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "tiny.onnx")
    if has_bf16():
        assert build_engine(model.path, CPU, tmp_path / "t", precision="bf16").record.realised == {"bf16": 1}
    else:
        with pytest.raises(UnavailableError, match="this CPU has no bf16"):
            build_engine(model.path, CPU, tmp_path / "t", precision="bf16")


def test_plain_ir_loads_without_us(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "tiny.onnx", precision="int8")
    path = build_engine(model.path, CPU, tmp_path / "t").path
    script = f"import openvino as ov; m = ov.Core().compile_model({str(path)!r}, 'CPU'); print(m.input('image').shape)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1,64,96,3]"


@pytest.mark.parametrize(("precision", "typed"), [("int8", {"int8": 2}), ("fp16", {"fp16": 2}), ("fp32", {"fp32": 2})])
@pytest.mark.parametrize("batch", [(1, 1, 1), (1, 2, 4)])
def test_rtx_plans_build_without_a_gpu(
    tmp_path: Path, precision: str, typed: dict[str, int], batch: tuple[int, int, int]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(
        tmp_path / "t.onnx", precision=precision, head="labels", objectness=True, batch=int(batch == (1, 1, 1))
    )
    engine = build_engine(model.path, msgspec.structs.replace(RTX, batch=batch), tmp_path / "t", precision=precision)
    assert engine.path.name == f"t.{precision}.engine"
    assert engine.record.build.typed == typed
    assert engine.record.build.strongly_typed is True
    assert engine.record.outputs[0].dtype == "uint8"
    assert engine.record.inputs[0].shape[0] == (1 if batch == (1, 1, 1) else -1)
    parsed = {"t.int8.trt.onnx"} if precision == "int8" else set()  # the graph with casts
    assert {p.name for p in tmp_path.iterdir()} == {"t.onnx", f"t.{precision}.engine", f"t.{precision}.json", *parsed}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.chdir(tmp_path)
    tiny_onnx(Path("t.onnx"))
    engine = build_engine(Path("t.onnx"), RTX, Path("out/t.engine"), precision=precision)
    made = {"t.fp16.onnx"} if precision == "fp16" else set()
    assert {p.name for p in Path("out").iterdir()} == {f"t.{precision}.engine", f"t.{precision}.json", *made}
    assert engine.record.build.parsed_onnx == ""
    assert f"--onnx={next(iter(made), 't.onnx')} " in engine.record.build.command


def test_record_of_another_engine_is_never_overwritten(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", precision="int8")
    first = build_engine(model.path, CPU, tmp_path / "t")
    pytest.importorskip("tensorrt_rtx")
    second = build_engine(model.path, RTX, tmp_path / "t")  # w.int8.xml and w.int8.engine share a folder
    assert Engine.record_path(second.path).name == "t.int8.engine.json"
    assert Engine.load(second.path).record.backend == "tensorrt-rtx"
    assert Engine.load(first.path) == first
    build_engine(model.path, CPU, tmp_path / "t")  # its own record may be replaced
    (tmp_path / "u.int8.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not an engine record"):
        build_engine(model.path, CPU, tmp_path / "u")


def test_onnx_of_another_size_leaves_nothing(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx", size_hw=(32, 32))
    with pytest.raises(ArtifactError, match=r"its input is \[1, 32, 32, 3\].*export it again"):
        build_engine(model.path, CPU, tmp_path / "t", precision="fp32")
    assert [p.name for p in tmp_path.iterdir()] == ["t.onnx"]


def test_batch_that_the_graph_cannot_do(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx")
    for target in (CPU, RTX):
        wide = msgspec.structs.replace(target, batch=(1, 2, 4))
        with pytest.raises(ArtifactError, match="export with --batch 0"):
            build_engine(model.path, wide, tmp_path / "t", precision="fp32")
    assert [p.name for p in tmp_path.iterdir()] == ["t.onnx"]


def test_precision_must_fit_target_and_file(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx")
    with pytest.raises(ArtifactError, match="target cpu builds int8, bf16, fp32, not fp16"):
        build_engine(model.path, CPU, tmp_path / "t", precision="fp16")
    with pytest.raises(ArtifactError, match=r"INT8 needs ranges .* give --calib-data"):
        build_engine(model.path, CPU, tmp_path / "t", precision="int8")
    quantized = tiny_onnx(tmp_path / "q.onnx", precision="int8")
    with pytest.raises(ArtifactError, match=r"is int8, fp32 was asked; give the FP32 ONNX file"):
        build_engine(quantized.path, CPU, tmp_path / "t", precision="fp32")


def test_a_dry_run_refuses_what_the_build_would(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="target cpu builds int8, bf16, fp32, not fp16"):
        dry_run(tiny_onnx(tmp_path / "t.onnx").path, CPU, tmp_path / "t", precision="fp16")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": (8, 4, 1)}, "least, usual, most"),
        ({"batch": (0, 0, 0)}, "least, usual, most"),
        ({"precisions": ()}, "one or more"),
        ({"precisions": ("bf16",)}, "not bf16"),
        ({"optimization_level": 9}, "expected 0 to 5"),
        ({"workspace_mib": -5}, "MiB from 0 on"),
    ],
)
def test_a_target_that_cannot_be_is_refused_at_the_door(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        msgspec.structs.replace(RTX, **change)


def test_graphs_beside_an_engine_stay_ours_when_it_is_built_again(tmp_path: Path) -> None:
    """What a build from a checkpoint left there: a rebuild from the graph does not make it, and must not forget it."""
    first = netkit.checkpoint(tmp_path / "a.pt")
    engine = build_engine(first, CPU, tmp_path / "x", precision="fp32")
    kept = engine.record.build.kept
    assert kept == ("x.fp32.onnx",)
    rebuild_engine(engine.path)
    assert Engine.load(engine.path).record.build.kept == kept
    build_engine(netkit.checkpoint(tmp_path / "b.pt", seed=1), CPU, tmp_path / "x", precision="fp32")


def test_graph_that_tensorrt_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    import onnx

    model = tiny_onnx(tmp_path / "t.onnx")
    graph = onnx.load(model.path)
    cast, transpose = graph.graph.node[0], graph.graph.node[1]
    transpose.input[0], cast.input[0], graph.graph.node[2].input[0] = "image", transpose.output[0], cast.output[0]
    graph.graph.node.remove(cast)
    graph.graph.node.insert(1, cast)  # transpose of uint8, then cast
    OnnxModel.save(tmp_path / "bad.onnx", graph, model.meta)
    with pytest.raises(ArtifactError, match="TensorRT-RTX"):
        build_engine(tmp_path / "bad.onnx", RTX, tmp_path / "bad", precision="fp32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.onnx", "t.onnx"]


def test_crashing_and_killed_builder_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(tmp_path / "t.onnx")
    script = tmp_path / "python"
    monkeypatch.setattr(tensorrt_attempts.sys, "executable", str(script))
    for number, words in ((signal.SIGKILL, "out of memory"), (signal.SIGSEGV, "crashed with SIGSEGV")):
        script.write_text(f"#!/bin/sh\ncat > /dev/null\nkill -{int(number)} $$\n")
        script.chmod(0o755)
        with pytest.raises(ArtifactError, match=words):
            build_engine(model.path, RTX, tmp_path / "t", precision="fp32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["python", "t.onnx"]


def test_fp16_engine_with_fp32_convolutions_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(tmp_path / "t.onnx")  # float weights inside, but called fp16
    import onnx

    liar = OnnxModel.save(
        tmp_path / "liar.onnx", onnx.load(model.path), msgspec.structs.replace(model.meta, precision="fp16")
    )
    with pytest.raises(ArtifactError, match="1 convolutions would run in FP32 in an fp16 engine"):
        build_engine(liar.path, RTX, tmp_path / "t")
    asked = OnnxModel.save(
        tmp_path / "asked.onnx",
        onnx.load(model.path),
        msgspec.structs.replace(model.meta, precision="fp16", float_nodes=("logits",)),
    )
    assert build_engine(asked.path, RTX, tmp_path / "t").record.build.typed == {"fp32": 1}


GPU = Gpu(name="NVIDIA T4 (x)", compute_capability="7.5", total_bytes=16 << 30, free_bytes=1 << 28, driver_cuda="13.0")


def test_job_follows_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tiny_onnx(tmp_path / "t.onnx", precision="int8")
    target = msgspec.structs.replace(RTX, workspace_mib=4096)
    job = tensorrt_build.plan_job(
        Trt(None, "tensorrt-rtx", (1, 7, 1)), GPU, model, target, "int8", tmp_path, "t.engine"
    )
    assert (job.strong, job.workspace_bytes, job.compute_capabilities) == (True, 1 << 27, ("7.5",))
    assert Path(job.timing_cache).name == "tensorrt-rtx-1.7.1-NVIDIA_T4__x_-7.5.cache"
    old = tensorrt_build.plan_job(Trt(None, "tensorrt", (8, 5, 3)), None, model, target, "int8", tmp_path, "t.engine")
    assert (old.strong, old.workspace_bytes, old.timing_cache) == (False, 4096 << 20, "")


@pytest.mark.skipif(first_gpu() is not None, reason="this machine has a GPU")
def test_tensorrt_without_gpu_or_module_is_exit_4(tmp_path: Path) -> None:
    model = tiny_onnx(tmp_path / "t.onnx")
    target = msgspec.structs.replace(RTX, backend="tensorrt")
    with pytest.raises(UnavailableError):
        build_engine(model.path, target, tmp_path / "t", precision="fp32")
    assert [p.name for p in tmp_path.iterdir()] == ["t.onnx"]


def test_dry_run_says_what_would_be_built_and_writes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny_onnx(tmp_path / "t.onnx")
    rows = dry_run(model.path, CPU, tmp_path / "t.engine", calib_data=tmp_path)
    assert [(r.precision, r.engine, r.onnx) for r in rows] == [
        ("int8", "t.int8.xml", "t.int8.onnx (calibrated on the way)"),
        ("bf16", "t.bf16.xml", "t.onnx"),
        ("fp32", "t.fp32.xml", "t.onnx"),
    ]
    assert rows[0].command == "ovc t.int8.onnx --output_model t.int8.xml --compress_to_fp16=False"
    (int8,) = dry_run(model.path, RTX, tmp_path / "t.engine", precision="int8", calib_data=tmp_path)
    assert int8.command.startswith("tensorrt_rtx --onnx=t.int8.trt.onnx --saveEngine=t.int8.engine")
    rtx = dry_run(model.path, RTX, tmp_path / "t.engine", precision="fp16")
    assert [r.onnx for r in rtx] == ["t.fp16.onnx (cast on the way)"]
    assert rtx[0].command.startswith("tensorrt_rtx --onnx=t.fp16.onnx --saveEngine=t.fp16.engine --skipInference")
    gone = dry_run(model.path, msgspec.structs.replace(RTX, backend="tensorrt"), tmp_path / "t", precision="fp32")
    assert gone[0].command == "" and "tsss-edge[tensorrt]" in gone[0].note
    assert [p.name for p in tmp_path.iterdir()] == ["t.onnx"]
