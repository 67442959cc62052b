"""OnnxModel + Target -> TensorRT or TensorRT-RTX plan, built by a child process (`tensorrt_worker`)."""

from __future__ import annotations

import shlex
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tsss_edge.artifacts import BuildInfo, EngineRecord, OnnxModel, Precision, Target
from tsss_edge.backends.base import expected_outputs
from tsss_edge.backends.cuda.gpus import Gpu, driver_problem, driver_version, first_gpu
from tsss_edge.backends.trt_api import Flavour, Trt, load
from tsss_edge.config import cache_folder
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.tensorrt_attempts import Climbed, climb, run_worker
from tsss_edge.export.tensorrt_worker import BuildJob
from tsss_edge.files import sha256_file
from tsss_edge.onnxgraph.casts import AS_ASKED, TypedGraph, float_graph, typed_graphs
from tsss_edge.onnxgraph.dla_ranges import every_range
from tsss_edge.onnxgraph.view import LEVELS

MIB = 1 << 20
DEFAULT_WORKSPACE = 256 * MIB  # without a GPU to ask; the networks here need some 10 MiB (measured, edge-s 512x512)


def build_plan(source: OnnxModel, target: Target, precision: Precision, folder: Path, name: str) -> EngineRecord:
    """Write the plan `name` into `folder`, and beside it the graph that TensorRT parsed where that is not `source`.

    Raises: ArtifactError: TensorRT refuses the graph, or an FP16/INT8 engine keeps FP32 convolutions.
            UnavailableError: TensorRT or the GPU it needs is missing.
    """
    assert target.backend != "openvino"
    flavour: Flavour = target.backend
    trt, gpu = load(flavour), first_gpu()
    if flavour == "tensorrt" and gpu is None:
        raise UnavailableError(
            f"{driver_problem()}; TensorRT builds only where the GPU is (TensorRT-RTX: --target rtx builds anywhere)"
        )
    job = plan_job(trt, gpu, source, target, precision, folder, name)
    climbed = climb(trt, gpu, job, parsed_graphs(source, job, folder), source, run_worker)
    _require_precision(source, precision, climbed)
    job, result = climbed.attempt.job, climbed.result
    given = {spec.name for spec in result.outputs}
    if missing := [spec.name for spec in expected_outputs(source.meta) if spec.name not in given]:
        raise ArtifactError(f"{source.path}: has no output {', '.join(missing)}; export it again")
    parsed = ""
    if Path(job.onnx) != source.path.resolve():  # named after the plan, so that the equivalent command has its file
        parsed = parsed_name(name)
        Path(job.onnx).replace(folder / parsed)
    if job.ranges:  # as a calibration cache, which the equivalent command reads
        (folder / cache_name(name)).write_text(cache_text(trt, job.ranges))
    return EngineRecord(
        backend=flavour,
        files={name: sha256_file(folder / name)},
        precision=precision,
        onnx_sha256=source.sha256,
        meta=source.meta,
        build=BuildInfo(
            target=target,
            onnx=source.path.name,
            command=trtexec_command(trt, job, parsed or source.path.name, name),
            kept=((parsed,) if parsed else ()) + ((cache_name(name),) if job.ranges else ()),
            parsed_onnx=parsed,
            strongly_typed=result.strong,
            typed=result.typed,
            workspace_bytes=job.workspace_bytes,
            optimization_level=job.optimization_level,
            compute_capabilities=job.compute_capabilities,
            kept_fp32=job.float_nodes,
            given_back_to_fp16=climbed.attempt.dropped,
            timing_cache=_timing_cache(job),
            failed_attempts=climbed.failed,
            dla=result.dla,
        ),
        device=f"{gpu.name} (compute capability {gpu.compute_capability})" if gpu else "built without a GPU",
        inputs=result.inputs,
        outputs=result.outputs,
        versions={flavour: result.version} | (_driver(gpu) if gpu else {}),
        realised=result.realised,
    )


def parsed_graphs(source: OnnxModel, job: BuildJob, folder: Path) -> list[TypedGraph]:
    """Strong typing wants the casts in the graph, ranges want it without pairs, builder flags take the file as it is."""
    if job.ranges:
        return [float_graph(source, folder.resolve())]
    if not job.strong:
        return [TypedGraph(what=AS_ASKED, path=source.path.resolve(), float_nodes=job.float_nodes)]
    return typed_graphs(source, job.precision, folder.resolve(), dla=job.dla_core is not None)


def parsed_name(plan: str) -> str:
    """fused.int8.engine -> fused.int8.trt.onnx: the graph with casts that TensorRT parses."""
    return f"{Path(plan).stem}.trt.onnx"


def dry_command(target: Target, precision: Precision, onnx: str, plan: str, size_hw: tuple[int, int]) -> str:
    """The equivalent command for a graph that does not exist yet. Raises: UnavailableError: TensorRT is not installed."""
    assert target.backend != "openvino"
    trt, gpu = load(target.backend), first_gpu()
    least, _, most = target.batch
    shape = (least if least == most else -1, *size_hw, 3)
    parsed = parsed_name(plan) if precision == "int8" and not trt.never_strong else onnx
    job = _job(trt, gpu, target, precision, onnx=parsed, plan=plan, shape=shape)
    if precision == "int8" and _dla_by_ranges(trt, target):
        job = msgspec.structs.replace(
            job, strong=False, ranges={"as calibrated": 0.0}
        )  # the command only names their file
    return trtexec_command(trt, job, parsed, plan)


def plan_job(
    trt: Trt, gpu: Gpu | None, source: OnnxModel, target: Target, precision: Precision, folder: Path, name: str
) -> BuildJob:
    """Everything the worker needs, decided here: typing, workspace, timing cache, compute capabilities."""
    job = _job(
        trt,
        gpu,
        target,
        precision,
        onnx=str(source.path.resolve()),
        plan=str((folder / name).resolve()),
        # N is -1 when it is free
        shape=tuple(d.dim_value or -1 for d in source.graph.graph.input[0].type.tensor_type.shape.dim),
    )
    others = source.meta.calibration.others if source.meta.calibration else {}
    ranges = every_range(source.graph, others) if precision == "int8" and _dla_by_ranges(trt, target) else {}
    return msgspec.structs.replace(
        job,
        result=str((folder / "result.json").resolve()),
        # The `float_nodes` of an INT8 file are only not quantized: they run in FP16 on a GPU.
        float_nodes=() if precision == "int8" else source.meta.float_nodes,
        strong=job.strong and not ranges,
        ranges=ranges,
    )


def _dla_by_ranges(trt: Trt, target: Target) -> bool:
    """Before TensorRT 11 the DLA runs INT8 from ranges of tensors, not from Q/DQ (NVIDIA's guide, "Working with DLA")."""
    return target.dla_core is not None and trt.has("ITensor.set_dynamic_range")


def _job(
    trt: Trt, gpu: Gpu | None, target: Target, precision: Precision, *, onnx: str, plan: str, shape: tuple[int, ...]
) -> BuildJob:
    return BuildJob(
        flavour=trt.flavour,
        onnx=onnx,
        plan=plan,
        result="",
        precision=precision,
        batch=target.batch,
        shape=shape,
        workspace_bytes=workspace_bytes(target, gpu),
        optimization_level=target.optimization_level,
        strong=not trt.never_strong,
        dla_core=target.dla_core,
        compute_capabilities=_compute_capabilities(target, gpu),
        hardware_compatible=target.hardware_compatible,
        version_compatible=target.version_compatible,
        timing_cache=str(timing_cache_path(trt, gpu)) if gpu and target.timing_cache else "",
        examine=gpu is not None,
    )


def workspace_bytes(target: Target, gpu: Gpu | None) -> int:
    """The target's workspace, or the default, but never more than half of what the GPU has free."""
    wanted = target.workspace_mib * MIB or DEFAULT_WORKSPACE
    return min(wanted, gpu.free_bytes // 2) if gpu and gpu.free_bytes else wanted


def timing_cache_path(trt: Trt, gpu: Gpu) -> Path:
    """One cache per TensorRT version and GPU: TensorRT merges no other, and another GPU's timings mislead."""
    key = f"{trt.flavour}-{'.'.join(map(str, trt.version))}-{gpu.name}-{gpu.compute_capability}"
    return cache_folder("timing") / f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in key)}.cache"


def _compute_capabilities(target: Target, gpu: Gpu | None) -> tuple[str, ...]:
    """As the target says. TensorRT-RTX's own default leaves Turing out, so a Turing GPU here is named."""
    if target.backend == "tensorrt-rtx" and not target.compute_capabilities and gpu and gpu.compute_capability == "7.5":
        return ("7.5",)
    return target.compute_capabilities


def _require_precision(source: OnnxModel, precision: Precision, climbed: Climbed) -> None:
    """An FP16 or INT8 engine with FP32 convolutions that nobody asked for is refused.

    With strong typing the parsed network tells; what the builder made of it tells the engine inspector, on a GPU.
    """
    job, result = climbed.attempt.job, climbed.result
    typed = result.float_convolutions if result.strong else ()
    unasked = [
        layer
        for layer in (*typed, *result.realised_float)
        if not any(node in layer.split(" + ") for node in job.float_nodes)
    ]
    if precision in ("fp16", "int8") and unasked:
        raise ArtifactError(
            f"{source.path}: {len(unasked)} convolutions would run in FP32 in an {precision} engine ({unasked[0]}, ...); "
            "export again with --precision fp16, or build with another --precision"
        )


def _driver(gpu: Gpu) -> dict[str, str]:
    number = driver_version()
    return {"driver_cuda": gpu.driver_cuda} | ({"driver": number} if number else {})


def _timing_cache(job: BuildJob) -> dict[str, str]:
    """Name and hash of the cache after the build: the same cache picks the same tactics again."""
    path = Path(job.timing_cache)
    return {path.name: sha256_file(path)} if job.timing_cache and path.is_file() else {}


# ---------------------------------------------------------------------------------------------------------------------
# The line of NVIDIA's own tool that builds the same plan, to compare with or to report a bug with


def trtexec_command(trt: Trt, job: BuildJob, onnx: str, plan: str) -> str:
    """`trtexec ...` or `tensorrt_rtx ...` for the installed version; `onnx` and `plan` as the user names the files."""
    levels = trt.has("IBuilderConfig.builder_optimization_level")  # 8.6 brought them, and the flag's new name
    parts = [
        "tensorrt_rtx" if trt.flavour == "tensorrt-rtx" else "trtexec",
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        "--skipInference" if levels else "--buildOnly",
        *_typing(trt, job),
        *([f"--calib={cache_name(plan)}"] if job.ranges else []),
        *_shapes(job),
        f"--memPoolSize=workspace:{job.workspace_bytes // MIB}",
        *([f"--builderOptimizationLevel={job.optimization_level}"] if levels else []),
        *_device(trt, job),
    ]
    return shlex.join(parts)


def cache_name(plan: str) -> str:
    """fused.int8.engine -> fused.int8.calib.cache."""
    return f"{Path(plan).stem}.calib.cache"


def cache_text(trt: Trt, ranges: Mapping[str, float]) -> str:
    """Ranges in the form of TensorRT's own calibration cache: a scale a tensor, as the hex digits of a big-endian float32."""
    major, minor, patch = (*trt.version, 0, 0)[:3]
    number = major * (10_000 if major >= 10 else 1_000) + minor * 100 + patch  # NV_TENSORRT_VERSION (NvInferVersion.h)
    rows = [f"{name}: {struct.pack('>f', peak / LEVELS).hex()}" for name, peak in ranges.items()]
    return "\n".join([f"TRT-{number}-EntropyCalibration2", *rows]) + "\n"


def _typing(trt: Trt, job: BuildJob) -> list[str]:
    if job.strong:
        return ["--stronglyTyped"] if trt.flavour == "tensorrt" and trt.version[0] == 10 else []
    half = ["--fp16"] if job.precision in ("fp16", "int8") else []
    floats = ",".join(f"{name}:fp32" for name in job.float_nodes)
    kept = ["--precisionConstraints=obey", f"--layerPrecisions={floats}"] if floats else []
    return [*half, *(["--int8"] if job.precision == "int8" else []), *kept]


def _shapes(job: BuildJob) -> list[str]:
    if job.shape[0] >= 0:
        return []
    shapes = ("x".join(map(str, (n, *job.shape[1:]))) for n in job.batch)
    return [f"--{kind}Shapes=image:{shape}" for kind, shape in zip(("min", "opt", "max"), shapes, strict=True)]


def _device(trt: Trt, job: BuildJob) -> list[str]:
    dla = [] if job.dla_core is None else [f"--useDLACore={job.dla_core}", "--allowGPUFallback"]
    levels = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
    dla += [f"--hardwareCompatibilityLevel={levels[job.hardware_compatible]}"] if job.hardware_compatible else []
    dla += ["--versionCompatible"] if job.version_compatible else []
    if trt.flavour != "tensorrt-rtx" or not job.compute_capabilities:
        return dla
    return [*dla, f"--computeCapabilities={','.join(c.replace('.', '') for c in job.compute_capabilities)}"]
