"""A graph in memory -> a function that runs it, on what this machine would serve it with; and how long it takes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Precision
from tsss_edge.backends.base import Outputs, import_extra, openvino_core
from tsss_edge.backends.ov import compile_ir, compile_options, read_ir
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.files import reason
from tsss_edge.onnxgraph.openvino_pairs import fast_pairs

if TYPE_CHECKING:
    from onnx import ModelProto

NO_PEAKS: Mapping[str, float] = {}
ROUNDS = 30  # of timing; graphs take turns, so that other work on the machine slows all of them alike

RunPicture = Callable[[NDArray[np.uint8]], Outputs]  # (1,H,W,3) uint8 RGB -> outputs by name, valid until the next call


class Compiler(Protocol):
    """Makes functions of graphs. peaks: largest magnitudes of float tensors, where calibration saw them (`fast_pairs`)."""

    @property
    def name(self) -> str: ...
    @property
    def floats(self) -> tuple[Precision, ...]: ...  # precisions in which it runs a float graph here
    def __call__(self, graph: Any, precision: Precision, peaks: Mapping[str, float] = ...) -> RunPicture: ...


def pick_compiler() -> Compiler:
    """OpenVINO where it is installed, because its INT8 engines are what a CPU serves; else ONNX Runtime."""
    try:
        import_extra("openvino", "cpu")
    except UnavailableError:
        return OnnxRuntimeCompiler()
    return OpenVinoCompiler()


class OpenVinoCompiler:
    """As `build-engine --target cpu` compiles."""

    name = "OpenVINO"

    @property
    def floats(self) -> tuple[Precision, ...]:
        abilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("fp32", "bf16") if "BF16" in abilities else ("fp32",)

    def __call__(self, graph: Any, precision: Precision, peaks: Mapping[str, float] = NO_PEAKS) -> RunPicture:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.onnx"
            path.write_bytes(with_batch(graph, 1).SerializeToString())
            model = read_ir(path)
            fast_pairs(model, graph, peaks)
            compiled = compile_ir(model, "CPU", compile_options(precision, slots=1, threads=None))
        request = compiled.create_infer_request()
        names = [o.name for o in graph.graph.output]

        def run(picture: NDArray[np.uint8]) -> Outputs:
            request.infer([picture], share_inputs=True)
            return {name: request.get_tensor(name).data for name in names}

        return run


class OnnxRuntimeCompiler:
    """The graph as it is written: slower than an engine, the same answers but for rounding."""

    name = "ONNX Runtime"
    floats: tuple[Precision, ...] = ("fp32",)

    def __call__(self, graph: Any, precision: Precision, peaks: Mapping[str, float] = NO_PEAKS) -> RunPicture:
        return run_tensors(graph, [o.name for o in graph.graph.output], fused=True)


def run_tensors(model: ModelProto, tensors: Sequence[str], *, fused: bool = False) -> RunPicture:
    """A function of one picture that gives `tensors`, inner ones too; without `fused` computed exactly as written."""
    session = open_session(with_batch(model, 1, tensors), fused=fused)
    feed = session.get_inputs()[0].name
    return lambda picture: dict(zip(tensors, session.run(list(tensors), {feed: picture}), strict=True))


def with_batch(model: ModelProto, batch: int | str, outputs: Sequence[str] = ()) -> ModelProto:
    """A copy of a graph that takes batches of `batch` ("N" leaves it free) and gives `outputs`, where named, not its own."""
    import onnx

    copy = deepcopy(model)
    if outputs and list(outputs) != [o.name for o in copy.graph.output]:
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in outputs)
    for value in (*copy.graph.input, *copy.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            continue  # an inner tensor: ONNX Runtime finds out itself
        setattr(value.type.tensor_type.shape.dim[0], "dim_value" if isinstance(batch, int) else "dim_param", batch)
    return copy


def open_session(model: ModelProto, *, threads: int | None = None, shared: bool = False, fused: bool = True) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:    shared: several threads run it at once. fused: False computes node by node, as the graph is written.
    Raises:  ArtifactError: it refuses the graph. UnavailableError: it is not installed.
    """
    runtime = import_extra("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads:
        options.intra_op_num_threads = threads
    if not fused:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = not shared  # planned memory would be that of the largest picture for every thread
    try:
        return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(f"ONNX Runtime refuses the graph: {reason(error)}") from error


def time_in_turn(runs: Sequence[RunPicture], picture: NDArray[np.uint8], *, rounds: int = ROUNDS) -> list[float]:
    """Median milliseconds of each function on one picture, after one call to warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, mine in zip(runs, times, strict=True):
            start = perf_counter()
            run(picture)
            mine.append(1000 * (perf_counter() - start))
    return [float(np.median(mine[1:])) for mine in times]
