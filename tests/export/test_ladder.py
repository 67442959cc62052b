"""The attempts of a TensorRT build: their order by version, where they stop, and layers given back to FP16."""

from __future__ import annotations

from pathlib import Path

import chain
import msgspec
import onnx
import pytest
from tiny import PREPROCESS, tiny_onnx

from tsss_edge.artifacts import OnnxModel
from tsss_edge.backends.cuda.gpus import Gpu
from tsss_edge.backends.trt_api import Trt
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError
from tsss_edge.export.tensorrt_attempts import climb, fixed_attempts
from tsss_edge.export.tensorrt_build import parsed_graphs, plan_job, trtexec_command
from tsss_edge.export.tensorrt_worker import BuildJob, BuildResult

RTX = load_target("rtx")
GPU = Gpu(name="NVIDIA T4 (x)", compute_capability="7.5", total_bytes=16 << 30, free_bytes=1 << 28, driver_cuda="13.0")
TRT_8, TRT_10, TRT_11 = (Trt(None, "tensorrt", v) for v in ((8, 5, 3), (10, 3, 0), (11, 4, 0)))


def job_for(trt: Trt, folder: Path, gpu: Gpu | None = None, batch: int = 1, **changes: object) -> BuildJob:
    model = tiny_onnx(folder / "t.onnx", precision="int8", batch=batch)
    target = msgspec.structs.replace(RTX, compute_capabilities=(), batch=(1, 1, 1) if batch else (1, 2, 4), **changes)
    return plan_job(trt, gpu, model, target, "int8", folder, "t.engine")


def attempts(trt: Trt, folder: Path, gpu: Gpu | None = None) -> list[str]:
    job = job_for(trt, folder, gpu)
    graphs = parsed_graphs(OnnxModel.load(folder / "t.onnx"), job, folder)
    return [attempt.name for attempt in fixed_attempts(trt, gpu, job, graphs)]


def test_order_by_version(tmp_path: Path) -> None:
    levels = ["optimization level 5", "optimization level 1"]
    assert attempts(TRT_8, tmp_path) == ["as asked", "four times the workspace"]
    assert attempts(TRT_10, tmp_path) == ["as asked", "FP16 scales", "four times the workspace", *levels]
    assert attempts(TRT_11, tmp_path, GPU) == ["as asked", "FP16 scales", *levels], "the GPU has no room for more"


def try_all(trt: Trt, folder: Path, answers: list[BuildResult]) -> tuple[list[BuildJob], object]:
    """Climb with a builder that gives `answers`, the last one for ever -> (jobs it saw, what came of it)."""
    seen: list[BuildJob] = []

    def builder(job: BuildJob) -> BuildResult:
        seen.append(job)
        return answers[min(len(seen), len(answers)) - 1]

    job = job_for(trt, folder)
    source = OnnxModel.load(folder / "t.onnx")
    try:
        return seen, climb(trt, None, job, parsed_graphs(source, job, folder), source, builder)
    except ArtifactError as error:
        return seen, error


FAILS = BuildResult(error="no implementation", retryable=True)
REFUSED = BuildResult(error="bad graph", retryable=False)


def test_stops_at_the_first_that_works(tmp_path: Path) -> None:
    seen, climbed = try_all(TRT_10, tmp_path, [FAILS, FAILS, FAILS, BuildResult()])
    assert len(seen) == 4 and climbed.attempt.job.optimization_level == 5
    assert list(climbed.failed) == ["as asked", "FP16 scales", "four times the workspace"]


def test_gives_up_with_the_first_message_and_all_attempts(tmp_path: Path) -> None:
    first = msgspec.structs.replace(FAILS, error="the first message")
    seen, error = try_all(TRT_10, tmp_path, [first, FAILS])
    assert [job.strong for job in seen] == [True] * 5 + [False], "flags come last, on the file as it is"
    assert seen[-1].onnx == str(tmp_path / "t.onnx")
    assert str(error).startswith("the first message (5 other attempts failed too: FP16 scales, ")


def test_a_refused_graph_is_not_tried_again_with_other_settings(tmp_path: Path) -> None:
    seen, error = try_all(TRT_11, tmp_path, [REFUSED])
    assert len({job.onnx for job in seen}) == len(seen) == 2
    assert str(error) == "bad graph (1 other attempts failed too: FP16 scales)"


def test_the_layer_that_a_builder_names_is_given_back_to_fp16(tmp_path: Path) -> None:
    meta = msgspec.structs.replace(tiny_onnx(tmp_path / "t.onnx", precision="int8").meta, preprocess=PREPROCESS)
    source = OnnxModel.save(tmp_path / "chain.onnx", chain.int8_chain(), meta)
    job = msgspec.structs.replace(job_for(TRT_11, tmp_path), onnx=str(source.path), shape=(1, 64, 96, 3))
    named = BuildResult(error="Could not find any implementation for node {ForeignNode[conv1 + x2]}.", retryable=True)

    def builder(job: BuildJob) -> BuildResult:
        quantized = [n.name for n in onnx.load(job.onnx).graph.node if n.op_type == "Conv" and "dq" in n.input[0]]
        return BuildResult() if "conv1" not in quantized else named

    climbed = climb(TRT_11, None, job, parsed_graphs(source, job, tmp_path), source, builder)
    assert climbed.attempt.dropped == ("conv1",)
    assert climbed.attempt.name == "conv1 in FP16"
    left = [n.name for n in onnx.load(climbed.attempt.job.onnx).graph.node if n.op_type == "QuantizeLinear"]
    assert sorted(left) == ["x0_q", "x2_q"]


SHAPES = "--minShapes=image:1x64x96x3 --optShapes=image:2x64x96x3 --maxShapes=image:4x64x96x3"
LEVEL, DLA = "--builderOptimizationLevel=3", "--useDLACore=0 --allowGPUFallback"
RANGES = "--fp16 --int8 --calib=t.calib.cache"


@pytest.mark.parametrize(
    ("flavour", "version", "batch", "changes", "want"),
    [
        ("tensorrt", (8, 5, 3), 1, {}, "trtexec FILES --buildOnly --fp16 --int8 WORKSPACE"),
        ("tensorrt", (10, 3, 0), 0, {}, f"trtexec FILES --skipInference --stronglyTyped {SHAPES} WORKSPACE {LEVEL}"),
        ("tensorrt", (10, 3, 0), 1, {"dla_core": 0}, f"trtexec FILES --skipInference {RANGES} WORKSPACE {LEVEL} {DLA}"),
        ("tensorrt", (11, 5), 1, {"dla_core": 0}, f"trtexec FILES --skipInference WORKSPACE {LEVEL} {DLA}"),
        ("tensorrt", (11, 4), 0, {}, f"trtexec FILES --skipInference {SHAPES} WORKSPACE {LEVEL}"),
        (
            "tensorrt-rtx",
            (1, 7, 1),
            1,
            {},
            "tensorrt_rtx FILES --skipInference WORKSPACE --builderOptimizationLevel=3 --computeCapabilities=75",
        ),
    ],
)
def test_equivalent_command(
    tmp_path: Path, flavour: str, version: tuple[int, ...], batch: int, changes: dict[str, object], want: str
) -> None:
    trt = Trt(None, flavour, version)
    job = job_for(trt, tmp_path, GPU, batch=batch, backend=flavour, **changes)
    want = want.replace("FILES", "--onnx=t.onnx --saveEngine=t.engine").replace(
        "WORKSPACE", "--memPoolSize=workspace:128"
    )
    assert trtexec_command(trt, job, "t.onnx", "t.engine") == want
