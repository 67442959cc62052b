"""OnnxModel + Target -> TensorRT or TensorRT-RTX plan, built by a child process (`tensorrt_worker`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from tsss_edge.artifacts import OnnxModel, Precision, read_json
from tsss_edge.backends.cuda_info import Gpu, driver_problem, first_gpu
from tsss_edge.backends.trt_api import Flavour, Trt, load
from tsss_edge.config import Target
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export.built import Built, expected_outputs
from tsss_edge.export.tensorrt_worker import Job, Result

MIB = 1 << 20
DEFAULT_WORKSPACE = 256 * MIB  # without a GPU to ask; the networks here need some 10 MiB (measured, edge-s 512x512)


def build_plan(source: OnnxModel, target: Target, precision: Precision, folder: Path, name: str) -> Built:
    """Write the plan `name` into `folder`.

    Raises: ArtifactError: TensorRT refuses the graph, or an FP16/INT8 engine would keep FP32 convolutions.
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
    job, result, failed = run_ladder(trt, gpu, job)
    _require_typed(source, precision, result)
    built = _built(source, target, job, result, gpu, name)
    command = trtexec_command(trt, job, source.path.name, name)
    return msgspec.structs.replace(
        built, flags=built.flags | {"command": command} | ({"failed_attempts": failed} if failed else {})
    )


def ladder(trt: Trt, gpu: Gpu | None, job: Job) -> list[tuple[str, Job]]:
    """What to try, in order, when the builder finds no implementation for a Q/DQ graph on one GPU (ours).

    More workspace, the widest search, the narrowest (fewer fusions), and, before 10.12, flags instead of strong typing.
    """
    change = msgspec.structs.replace
    wide = job.workspace_bytes * 4
    steps = [("as asked", job)]
    if gpu is None or not gpu.free_bytes or wide <= gpu.free_bytes // 2:
        steps.append(("four times the workspace", change(job, workspace_bytes=wide)))
    if trt.has("IBuilderConfig.builder_optimization_level"):
        levels = [level for level in (5, 1) if level != job.optimization_level]
        steps += [(f"optimization level {level}", change(job, optimization_level=level)) for level in levels]
    if job.strong and not trt.always_strong:
        steps.append(("flags instead of strong typing", change(job, strong=False)))
    return steps


def run_ladder(trt: Trt, gpu: Gpu | None, job: Job) -> tuple[Job, Result, dict[str, str]]:
    """Climb the ladder -> the job that worked, its result, and what failed before it (step -> message).

    Raises: ArtifactError: TensorRT refuses the graph, or no step works; the message is the first step's.
    """
    failed: dict[str, str] = {}
    for name, step in ladder(trt, gpu, job):
        result = run_worker(step)
        if not result.error:
            return step, result, failed
        failed[name] = result.error
        if not result.retryable and not (step.strong and not trt.always_strong):
            break
    first, *others = failed.values()
    more = f" ({len(others)} other settings failed too: {', '.join(list(failed)[1:])})" if others else ""
    raise ArtifactError(f"{first}{more}")


def trtexec_command(trt: Trt, job: Job, onnx: str, plan: str) -> str:
    """The line of NVIDIA's own tool that builds the same engine, to compare with or to report a bug with."""
    rtx = trt.flavour == "tensorrt-rtx"
    old = not trt.has("IBuilderConfig.builder_optimization_level")  # before 8.6 the flag below had its older name
    parts = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={onnx}", f"--saveEngine={plan}"]
    parts.append("--buildOnly" if old else "--skipInference")
    if not rtx and job.strong and trt.version[0] == 10:
        parts.append("--stronglyTyped")
    if not job.strong and job.precision in ("fp16", "int8"):
        parts += ["--fp16", *(["--int8"] if job.precision == "int8" else [])]
    if job.shape[0] < 0:
        shapes = ("x".join(map(str, (n, *job.shape[1:]))) for n in job.batch)
        parts += [f"--{kind}Shapes=image:{shape}" for kind, shape in zip(("min", "opt", "max"), shapes, strict=True)]
    parts.append(f"--memPoolSize=workspace:{job.workspace_bytes // MIB}")
    if not old:
        parts.append(f"--builderOptimizationLevel={job.optimization_level}")
    if job.dla_core is not None:
        parts += [f"--useDLACore={job.dla_core}", "--allowGPUFallback"]
    if rtx and job.compute_capabilities:
        parts.append(f"--computeCapabilities={','.join(c.replace('.', '') for c in job.compute_capabilities)}")
    return " ".join(parts)


def plan_job(
    trt: Trt, gpu: Gpu | None, source: OnnxModel, target: Target, precision: Precision, folder: Path, name: str
) -> Job:
    """Everything the worker needs, decided here: typing, workspace, timing cache, compute capabilities."""
    return Job(
        flavour=trt.flavour,
        onnx=str(source.path.resolve()),
        plan=str((folder / name).resolve()),
        result=str((folder / "result.json").resolve()),
        precision=precision,
        batch=target.batch,
        shape=input_shape(source),
        workspace_bytes=workspace_bytes(target, gpu),
        optimization_level=target.optimization_level,
        strong=not trt.never_strong,
        dla_core=target.dla_core,
        compute_capabilities=_compute_capabilities(target, gpu),
        timing_cache=str(timing_cache_path(trt, gpu)) if gpu and target.timing_cache else "",
        float_nodes=source.meta.float_nodes,
    )


def dry_command(target: Target, precision: Precision, onnx: str, plan: str, size_hw: tuple[int, int]) -> str:
    """`trtexec_command` for a graph that does not exist yet. Raises: UnavailableError: TensorRT is not installed."""
    assert target.backend != "openvino"
    trt, gpu = load(target.backend), first_gpu()
    least, _, most = target.batch
    job = Job(
        flavour=trt.flavour,
        onnx=onnx,
        plan=plan,
        result="",
        precision=precision,
        batch=target.batch,
        shape=(least if least == most else -1, *size_hw, 3),
        workspace_bytes=workspace_bytes(target, gpu),
        optimization_level=target.optimization_level,
        strong=not trt.never_strong,
        dla_core=target.dla_core,
        compute_capabilities=_compute_capabilities(target, gpu),
    )
    return trtexec_command(trt, job, onnx, plan)


def input_shape(source: OnnxModel) -> tuple[int, ...]:
    """(N,H,W,3) of the graph; N is -1 when it is free."""
    import onnx

    image = onnx.load(source.path, load_external_data=False).graph.input[0]
    return tuple(d.dim_value or -1 for d in image.type.tensor_type.shape.dim)


def workspace_bytes(target: Target, gpu: Gpu | None) -> int:
    """The target's workspace, or the default, but never more than half of what the GPU has free."""
    wanted = target.workspace_mib * MIB or DEFAULT_WORKSPACE
    return min(wanted, gpu.free_bytes // 2) if gpu and gpu.free_bytes else wanted


def timing_cache_path(trt: Trt, gpu: Gpu) -> Path:
    """One cache per TensorRT version and GPU: TensorRT merges no other, and another GPU's timings mislead."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tsss-edge" / "timing"
    key = f"{trt.flavour}-{'.'.join(map(str, trt.version))}-{gpu.name}-{gpu.compute_capability}"
    return folder / f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in key)}.cache"


def _compute_capabilities(target: Target, gpu: Gpu | None) -> tuple[str, ...]:
    """As the target says. TensorRT-RTX's own default leaves Turing out, so a Turing GPU here is named."""
    if target.backend == "tensorrt-rtx" and not target.compute_capabilities and gpu and gpu.compute_capability == "7.5":
        return ("7.5",)
    return target.compute_capabilities


def run_worker(job: Job) -> Result:
    """Run the builder in a child process; its crash or death comes back as a result with an error."""
    command = [sys.executable, "-m", "tsss_edge.export.tensorrt_worker"]
    done = subprocess.run(command, input=msgspec.json.encode(job), capture_output=True, check=False)
    result = Path(job.result)
    if done.returncode or not result.is_file():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        died = f"TensorRT's builder {_died(done.returncode)}: {lines[-1] if lines else 'no message'}"
        return Result(error=died, retryable=done.returncode < 0)
    try:
        return read_json(result, Result)
    finally:
        result.unlink()


def _died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (out of memory? lower workspace_mib in the target)"
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"stopped with exit code {code}"


def _require_typed(source: OnnxModel, precision: Precision, result: Result) -> None:
    """An FP16 or INT8 engine with FP32 convolutions nobody asked for is refused (weak typing decides by itself)."""
    unasked = [name for name in result.float_convolutions if name not in source.meta.float_nodes]
    if precision in ("fp16", "int8") and result.strong and unasked:
        raise ArtifactError(
            f"{source.path}: {len(unasked)} convolutions would stay FP32 in an {precision} engine ({unasked[0]}, ...); "
            "export again with --precision fp16, or calibrate the FP16 graph"
        )


def _built(source: OnnxModel, target: Target, job: Job, result: Result, gpu: Gpu | None, name: str) -> Built:
    names = {spec.name for spec in result.outputs}
    if missing := [spec.name for spec in expected_outputs(source) if spec.name not in names]:
        raise ArtifactError(f"{source.path}: has no output {', '.join(missing)}; export it again")
    flags = {
        "strongly_typed": result.strong,
        "typed": result.typed,
        "workspace_bytes": job.workspace_bytes,
        "optimization_level": job.optimization_level,
        "compute_capabilities": job.compute_capabilities,
    }
    return Built(
        files=(name,),
        device=f"{gpu.name} (compute capability {gpu.compute_capability})" if gpu else "built without a GPU",
        inputs=result.inputs,
        outputs=result.outputs,
        versions={target.backend: result.version} | ({"driver_cuda": gpu.driver_cuda} if gpu else {}),
        flags=flags | ({"dla": msgspec.to_builtins(result.dla)} if result.dla else {}),
    )
