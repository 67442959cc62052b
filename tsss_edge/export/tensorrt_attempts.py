"""A build job and the graphs it may parse -> the first attempt that the builder accepts, and what failed before it.

A Q/DQ graph can build on one GPU and find no implementation on another. The rungs go from what was asked to what costs
more: FP16 scales, more workspace, another search level, layers given back to FP16, builder flags (the order is ours).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from tsss_edge.artifacts import OnnxModel, Struct
from tsss_edge.backends.cuda.gpus import Gpu
from tsss_edge.backends.trt_api import Trt
from tsss_edge.errors import ArtifactError
from tsss_edge.export.tensorrt_worker import BuildJob, BuildResult
from tsss_edge.files import read_json
from tsss_edge.machine import spinner
from tsss_edge.onnxgraph.casts import AS_ASKED, TypedGraph, named_layers, write_typed
from tsss_edge.onnxgraph.qdq import without_qdq

MOST_DROPPED = 3  # attempts that give layers back to FP16: a network that needs more is not an INT8 network


class Attempt(Struct, frozen=True):
    """One rung. `dropped` are quantized layers that it gives back to FP16."""

    name: str
    job: BuildJob
    dropped: tuple[str, ...] = ()


class Climbed(Struct, frozen=True):
    """The attempt that worked, its result, and the message of each that did not."""

    attempt: Attempt
    result: BuildResult
    failed: dict[str, str]


def climb(
    trt: Trt,
    gpu: Gpu | None,
    job: BuildJob,
    graphs: Sequence[TypedGraph],
    source: OnnxModel,
    run: Callable[[BuildJob], BuildResult],
) -> Climbed:
    """Try one attempt after the other. A graph that the parser refuses is not tried again with other settings.

    Raises: ArtifactError: none works; the message is the first one's.
    """
    failed: dict[str, str] = {}
    refused: set[tuple[str, bool]] = set()
    for attempt in _attempts(trt, gpu, job, graphs, source, failed):
        key = (attempt.job.onnx, attempt.job.strong)
        if key in refused:
            continue
        result = run(attempt.job)
        if not result.error:
            return Climbed(attempt=attempt, result=result, failed=failed)
        failed[attempt.name] = result.error
        if not result.retryable:
            refused.add(key)
    first, *others = failed.values()
    more = f" ({len(others)} other attempts failed too: {', '.join(list(failed)[1:])})" if others else ""
    raise ArtifactError(f"{first}{more}")


def _attempts(
    trt: Trt, gpu: Gpu | None, job: BuildJob, graphs: Sequence[TypedGraph], source: OnnxModel, failed: dict[str, str]
) -> Iterator[Attempt]:
    """All rungs in order; those that drop layers follow the names in the messages of `failed`."""
    yield from fixed_attempts(trt, gpu, job, graphs)
    if job.precision == "int8" and job.strong:
        yield from _dropping(job, source, failed)
    if job.strong and not trt.always_strong:
        plain = msgspec.structs.replace(job, strong=False, onnx=str(source.path.resolve()))
        yield Attempt(name="flags instead of strong typing", job=plain)


def fixed_attempts(trt: Trt, gpu: Gpu | None, job: BuildJob, graphs: Sequence[TypedGraph]) -> list[Attempt]:
    """The rungs that do not depend on how the others failed."""
    change = msgspec.structs.replace
    steps = [Attempt(name=g.what, job=change(job, onnx=str(g.path), float_nodes=g.float_nodes)) for g in graphs]
    wide = job.workspace_bytes * 4
    if gpu is None or not gpu.free_bytes or wide <= gpu.free_bytes // 2:
        steps.append(Attempt(name="four times the workspace", job=change(steps[0].job, workspace_bytes=wide)))
    if trt.has("IBuilderConfig.builder_optimization_level"):
        for level in (5, 1):  # the widest search, and the narrowest: fewer fusions
            other = change(steps[0].job, optimization_level=level)
            steps += [Attempt(name=f"optimization level {level}", job=other)] if level != job.optimization_level else []
    return steps


def _dropping(job: BuildJob, source: OnnxModel, failed: dict[str, str]) -> Iterator[Attempt]:
    graph = source.graph
    folder = Path(job.plan).parent
    dropped: list[str] = []
    for _ in range(MOST_DROPPED):
        named = [n for n in named_layers(graph, " ".join(failed.values())) if n not in dropped]
        if not named:
            return
        dropped += named
        typed = write_typed(without_qdq(graph, dropped), source, folder, AS_ASKED)
        changed = msgspec.structs.replace(job, onnx=str(typed.path), float_nodes=typed.float_nodes)
        yield Attempt(name=f"{', '.join(named)} in FP16", job=changed, dropped=tuple(dropped))


def run_worker(job: BuildJob) -> BuildResult:
    """Run the builder in a child process; its crash or death comes back as a result with an error."""
    command = [sys.executable, "-m", "tsss_edge.export.tensorrt_worker"]
    with spinner(f"TensorRT builds {Path(job.plan).name}"):
        done = subprocess.run(command, input=msgspec.json.encode(job), capture_output=True, check=False)
    result = Path(job.result)
    if done.returncode or not result.is_file():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        died = f"TensorRT's builder {_died(done.returncode)}: {lines[-1] if lines else 'no message'}"
        return BuildResult(error=died, retryable=done.returncode < 0)
    try:
        return read_json(result, BuildResult)
    finally:
        result.unlink()


def _died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (out of memory? lower workspace_mib in the target)"
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"stopped with exit code {code}"
