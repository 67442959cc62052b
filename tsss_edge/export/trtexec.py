"""A build job -> the line of NVIDIA's own tool that builds the same plan, to compare with or to report a bug with."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from tsss_edge.backends.trt_api import Trt
from tsss_edge.export.tensorrt_worker import Job
from tsss_edge.onnxgraph.view import LEVELS

MIB = 1 << 20


def trtexec_command(trt: Trt, job: Job, onnx: str, plan: str) -> str:
    """`trtexec ...` or `tensorrt_rtx ...` for the installed version; `onnx` and `plan` as the user names the files."""
    parts = [
        "tensorrt_rtx" if trt.flavour == "tensorrt-rtx" else "trtexec",
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        *_build_only(trt),
        *_typing(trt, job),
        *([f"--calib={cache_name(plan)}"] if job.ranges else []),
        *_shapes(job),
        f"--memPoolSize=workspace:{job.workspace_bytes // MIB}",
        *_search(trt, job),
        *_device(trt, job),
    ]
    return " ".join(parts)


def cache_name(plan: str) -> str:
    """fused.int8.engine -> fused.int8.calib.cache."""
    return f"{Path(plan).stem}.calib.cache"


def cache_text(trt: Trt, ranges: Mapping[str, float]) -> str:
    """Ranges in the form of TensorRT's own calibration cache: a scale a tensor, as the hex digits of a big-endian float32."""
    major, minor, patch = (*trt.version, 0, 0)[:3]
    rows = [f"{name}: {struct.pack('>f', peak / LEVELS).hex()}" for name, peak in ranges.items()]
    return "\n".join([f"TRT-{major}{minor:02}{patch:02}-EntropyCalibration2", *rows]) + "\n"


def _build_only(trt: Trt) -> list[str]:
    """8.6 gave the flag its new name."""
    return ["--skipInference" if trt.has("IBuilderConfig.builder_optimization_level") else "--buildOnly"]


def _typing(trt: Trt, job: Job) -> list[str]:
    if job.strong:
        return ["--stronglyTyped"] if trt.flavour == "tensorrt" and trt.version[0] == 10 else []
    half = ["--fp16"] if job.precision in ("fp16", "int8") else []
    return [*half, *(["--int8"] if job.precision == "int8" else [])]


def _shapes(job: Job) -> list[str]:
    if job.shape[0] >= 0:
        return []
    shapes = ("x".join(map(str, (n, *job.shape[1:]))) for n in job.batch)
    return [f"--{kind}Shapes=image:{shape}" for kind, shape in zip(("min", "opt", "max"), shapes, strict=True)]


def _search(trt: Trt, job: Job) -> list[str]:
    known = trt.has("IBuilderConfig.builder_optimization_level")
    return [f"--builderOptimizationLevel={job.optimization_level}"] if known else []


def _device(trt: Trt, job: Job) -> list[str]:
    dla = [] if job.dla_core is None else [f"--useDLACore={job.dla_core}", "--allowGPUFallback"]
    if trt.flavour != "tensorrt-rtx" or not job.compute_capabilities:
        return dla
    return [*dla, f"--computeCapabilities={','.join(c.replace('.', '') for c in job.compute_capabilities)}"]
