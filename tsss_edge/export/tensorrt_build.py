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
    result = run_worker(job)
    if result.error and not trt.always_strong and job.strong:  # TensorRT 10.0 to 10.11: some typed graphs do not build
        result = run_worker(msgspec.structs.replace(job, strong=False))
    if result.error:
        raise ArtifactError(result.error)
    _require_typed(source, precision, result)
    return _built(source, target, job, result, gpu, name)


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
        workspace_bytes=workspace_bytes(target, gpu),
        optimization_level=target.optimization_level,
        strong=not trt.never_strong,
        dla_core=target.dla_core,
        compute_capabilities=_compute_capabilities(target, gpu),
        timing_cache=str(timing_cache_path(trt, gpu)) if gpu and target.timing_cache else "",
        float_nodes=source.meta.float_nodes,
    )


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
    """Run the builder in a child process. Raises: ArtifactError: the child crashed or was killed."""
    command = [sys.executable, "-m", "tsss_edge.export.tensorrt_worker"]
    done = subprocess.run(command, input=msgspec.json.encode(job), capture_output=True, check=False)
    result = Path(job.result)
    if done.returncode or not result.is_file():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ArtifactError(f"TensorRT's builder {_died(done.returncode)}: {lines[-1] if lines else 'no message'}")
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
