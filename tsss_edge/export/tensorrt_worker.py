"""ONNX file -> plan, inside a process of its own: `python -m tsss_edge.export.tensorrt_worker < job.json`.

A builder that crashes or is killed for memory takes only this process with it. Runs with TensorRT 8.5 to 11 and
TensorRT-RTX, with or without a GPU (TensorRT-RTX only).
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tsss_edge.artifacts import DlaUse, Precision, Struct, TensorSpec
from tsss_edge.backends.trt_api import CONTEXTS, Flavour, Trt, load, make_logger, type_name
from tsss_edge.errors import ArtifactError, TsssEdgeError
from tsss_edge.files import parse_json, write_bytes, write_json

# Words of the inspector for a type; the first that occurs counts ("BFloat16" before "Float16").
_WORDS = (
    ("bf16", ("bf16", "bfloat16")),
    ("fp16", ("fp16", "half", "float16")),
    ("int8", ("int8",)),
    ("fp8", ("fp8",)),
    ("fp32", ("fp32", "float")),
)
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "INT8": "int8"}


class BuildJob(Struct, frozen=True):
    """What to build. Paths are absolute."""

    flavour: Flavour
    onnx: str
    plan: str
    result: str
    precision: Precision
    batch: tuple[int, int, int]
    shape: tuple[int, ...]  # of the graph's input; -1 for a free batch
    workspace_bytes: int
    optimization_level: int
    strong: bool
    dla_core: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatible: str = ""
    version_compatible: bool = False
    timing_cache: str = ""
    float_nodes: tuple[str, ...] = ()  # meant to stay FP32
    ranges: dict[str, float] = msgspec.field(default_factory=dict)  # tensor -> largest magnitude, for INT8 without Q/DQ
    examine: bool = False  # load the plan and ask the engine inspector; needs the GPU


class BuildResult(Struct, frozen=True):
    """What was built, or `error`. `typed` counts convolutions by the type the network gives them."""

    error: str = ""
    retryable: bool = False  # the builder failed or died, so other settings may do; a refused graph stays refused
    version: str = ""
    strong: bool = True
    typed: dict[str, int] = msgspec.field(default_factory=dict)
    float_convolutions: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    dla: DlaUse | None = None
    # what the engine inspector says after the build; empty without a GPU, or where it tells nothing
    realised: dict[str, int] = msgspec.field(default_factory=dict)
    realised_float: tuple[str, ...] = ()


def build(job: BuildJob) -> BuildResult:
    """Parse, configure, build, write the plan. Raises: ArtifactError: TensorRT refuses, in its own words."""
    trt = load(job.flavour)
    logger = make_logger(trt)
    builder = trt.module.Builder(logger)
    network = builder.create_network(_network_flags(trt, job.strong))
    _parse(trt, network, logger, job)
    config = _config(trt, builder, network, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return BuildResult(error=f"{trt} could not build the engine: {logger.last or 'no message'}", retryable=True)
    write_bytes(Path(job.plan), bytes(plan))
    if job.timing_cache and (cache := config.get_timing_cache()) is not None:
        write_bytes(Path(job.timing_cache), bytes(cache.serialize()))
    typed, left = typed_precisions(network)
    realised, realised_float = realised_precisions(_inspect(trt, logger, bytes(plan), job)) if job.examine else ({}, ())
    return BuildResult(
        version=trt.module.__version__,
        strong=job.strong,
        typed=typed,
        float_convolutions=left,
        inputs=tuple(_spec(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_spec(network.get_output(i)) for i in range(network.num_outputs)),
        dla=_dla_report(network, config, job) if job.dla_core is not None else None,
        realised=realised,
        realised_float=realised_float,
    )


def _inspect(trt: Trt, logger: Any, plan: bytes, job: BuildJob) -> str:
    """The inspector's JSON of a plan; empty where this GPU cannot load it (TensorRT-RTX built for others)."""
    runtime = trt.module.Runtime(logger)
    if job.dla_core is not None:
        runtime.DLA_core = job.dla_core
    if job.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return str(engine.create_engine_inspector().get_engine_information(trt.get("LayerInformationFormat.JSON")))


def _network_flags(trt: Trt, strong: bool) -> int:
    flags = 0
    if trt.has("NetworkDefinitionCreationFlag.EXPLICIT_BATCH"):
        flags |= 1 << int(trt.get("NetworkDefinitionCreationFlag.EXPLICIT_BATCH"))
    if strong:
        flags |= 1 << int(trt.get("NetworkDefinitionCreationFlag.STRONGLY_TYPED"))
    return flags


def _parse(trt: Trt, network: Any, logger: Any, job: BuildJob) -> None:
    parser = trt.module.OnnxParser(network, logger)
    if not parser.parse_from_file(job.onnx):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise ArtifactError(f"{job.onnx}: {trt} refuses the graph: {'; '.join(errors) or logger.last}")


def _config(trt: Trt, builder: Any, network: Any, job: BuildJob) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.get("MemoryPoolType.WORKSPACE"), job.workspace_bytes)
    config.profiling_verbosity = trt.get("ProfilingVerbosity.DETAILED")
    if trt.has("IBuilderConfig.builder_optimization_level"):
        config.builder_optimization_level = job.optimization_level
    if not job.strong:
        _weak_typing(trt, network, config, job)
    _profile(trt, builder, network, config, job)
    _devices(trt, config, job)
    _compatibility(trt, config, job)
    if job.timing_cache:
        _take_timings(config, Path(job.timing_cache))
    return config


def _take_timings(config: Any, path: Path) -> None:
    """Tactics as measured before; anew where TensorRT refuses them: the GPU's properties or the CUDA version have changed."""
    kept = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _weak_typing(trt: Trt, network: Any, config: Any, job: BuildJob) -> None:
    """TensorRT 8 to 10.11: flags allow what the casts and Q/DQ in the graph already say; kept nodes stay FP32."""
    if job.precision in ("fp16", "int8"):
        config.set_flag(trt.get("BuilderFlag.FP16"))
    if job.precision == "int8":
        config.set_flag(trt.get("BuilderFlag.INT8"))
    _set_ranges(network, job.ranges)
    kept = [layer for layer in _layers(network) if layer.name in job.float_nodes]
    for layer in kept:
        layer.precision = trt.get("DataType.FLOAT")
    if kept:
        config.set_flag(trt.get("BuilderFlag.OBEY_PRECISION_CONSTRAINTS"))


def _set_ranges(network: Any, ranges: dict[str, float]) -> None:
    layers = _layers(network)
    for tensor in (layer.get_output(i) for layer in layers for i in range(layer.num_outputs)):
        if tensor.name in ranges:
            tensor.set_dynamic_range(-ranges[tensor.name], ranges[tensor.name])


def _profile(trt: Trt, builder: Any, network: Any, config: Any, job: BuildJob) -> None:
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)
    if shape[0] >= 0:
        if set(job.batch) != {shape[0]}:
            raise ArtifactError(
                f"{job.onnx}: made for batches of {shape[0]}, the target wants {job.batch[0]} to {job.batch[2]}; "
                "export with --batch 0 (free)"
            )
        return
    for _ in range(1 if trt.shares_profiles else CONTEXTS):
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, *((n, *shape[1:]) for n in job.batch))
        if config.add_optimization_profile(profile) < 0:
            raise ArtifactError(f"TensorRT refuses the batch profile {job.batch}")


def _devices(trt: Trt, config: Any, job: BuildJob) -> None:
    if job.dla_core is not None:
        config.default_device_type = trt.get("DeviceType.DLA")
        config.DLA_core = job.dla_core
        config.set_flag(trt.get("BuilderFlag.GPU_FALLBACK"))
    if job.compute_capabilities and trt.has("ComputeCapability"):
        known = trt.get("ComputeCapability")
        config.num_compute_capabilities = len(job.compute_capabilities)
        for index, text in enumerate(job.compute_capabilities):
            kind = getattr(known, f"SM{text.replace('.', '')}", None)
            if kind is None:
                raise ArtifactError(f"{trt} does not build for compute capability {text}")
            config.set_compute_capability(kind, index)


def _compatibility(trt: Trt, config: Any, job: BuildJob) -> None:
    """Plans for other GPUs and later versions, where this TensorRT makes them."""
    wanted = {f"HardwareCompatibilityLevel.{job.hardware_compatible.upper()}": bool(job.hardware_compatible)}
    wanted["BuilderFlag.VERSION_COMPATIBLE"] = job.version_compatible
    for name, asked in wanted.items():
        if asked and (trt.flavour == "tensorrt-rtx" or not trt.has(name)):
            raise ArtifactError(f"{trt} makes no plan with {name.rpartition('.')[2]}; leave that out of the target")
    if job.hardware_compatible:
        level = trt.get(f"HardwareCompatibilityLevel.{job.hardware_compatible.upper()}")
        config.hardware_compatibility_level = level
    if job.version_compatible:
        config.set_flag(trt.get("BuilderFlag.VERSION_COMPATIBLE"))


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(i) for i in range(network.num_layers)]


def typed_precisions(network: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Convolutions by type (INT8 where the input comes from a DequantizeLinear), and the names of those in FP32."""
    layers = _layers(network)
    made_by = {layer.get_output(i).name: layer.type.name for layer in layers for i in range(layer.num_outputs)}
    names = {"HALF": "fp16", "FLOAT": "fp32", "BF16": "bf16"}
    counts: Counter[str] = Counter()
    left = []
    for layer in layers:
        if layer.type.name != "CONVOLUTION":
            continue
        quantized = made_by.get(layer.get_input(0).name) == "DEQUANTIZE"
        kind = "int8" if quantized else names.get(type_name(layer.get_output(0).dtype), "other")
        counts[kind] += 1
        if kind == "fp32":
            left.append(layer.name)
    return dict(sorted(counts.items())), tuple(left)


def realised_precisions(information: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """JSON of TensorRT's engine inspector -> ({precision: convolutions}, names of the layers in FP32); empty where it tells nothing.

    It differs by version: "Row major linear FP16 format" (8.x) against "Half" (10 and later), "N/A due to dynamic shapes"
    for tensors of free size. The type of a convolution's weights is told in all of them, so it is asked first.
    """
    layers = parse_json(information, dict[str, Any]).get("Layers", []) if information else []
    counts: Counter[str] = Counter()
    left = []
    for layer in layers:
        if not isinstance(layer, dict):  # names only: built without detail
            continue
        if "conv" not in f"{layer.get('ParameterType', '')} {layer.get('LayerType', '')}".lower():
            continue
        kind = _precision(layer)
        counts[kind] += 1
        if kind == "fp32":
            left.append(str(layer.get("Name", "")))
    return dict(sorted(counts.items())), tuple(left)


def _precision(layer: dict[str, Any]) -> str:
    weights = layer.get("Weights")
    told = [weights.get("Type", "")] if isinstance(weights, dict) else []
    told += [tensor.get("Format/Datatype", "") for tensor in layer.get("Inputs", []) if isinstance(tensor, dict)]
    for text in told:
        for kind, words in _WORDS:
            if any(word in str(text).lower() for word in words):
                return kind
    return "unknown"


def _dla_report(network: Any, config: Any, job: BuildJob) -> DlaUse:
    """As TensorRT itself decides, layer by layer, in the network's order; INT8 where all tensors around a layer have ranges."""
    layers = [layer for layer in _layers(network) if layer.type.name != "CONSTANT"]
    refused = {layer.name: "TensorRT says so" for layer in layers if not config.can_run_on_DLA(layer)}
    use = DlaUse.of([layer.name for layer in layers], refused)
    if not job.ranges:
        return use
    counted = [n for n in layers if n.type.name in ("CONVOLUTION", "DECONVOLUTION", "ELEMENTWISE")]
    held = [n for n in counted if n.name not in refused and all(t.name in job.ranges for t in _around(n))]
    return msgspec.structs.replace(use, int8=(len(held), len(counted)))


def _around(layer: Any) -> list[Any]:
    """Tensors that a layer computes from and makes."""
    inputs = (layer.get_input(i) for i in range(layer.num_inputs))
    return [t for t in (*inputs, *(layer.get_output(i) for i in range(layer.num_outputs))) if t is not None]


def _spec(tensor: Any) -> TensorSpec:
    kind = type_name(tensor.dtype)
    return TensorSpec(name=tensor.name, dtype=_DTYPES.get(kind, kind.lower()), shape=tuple(tensor.shape))


def main() -> None:
    job = parse_json(sys.stdin.buffer.read(), BuildJob)
    try:
        result = build(job)
    except TsssEdgeError as error:
        result = BuildResult(error=str(error))
    write_json(Path(job.result), result)


if __name__ == "__main__":
    main()
