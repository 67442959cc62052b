"""Every TensorRT name we use, by version, in one place; and the loaded module with its version and flavour.

Two flavours share one API: TensorRT 8.5 to 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`, the API of TensorRT 11).
The table is tested against the surfaces recorded from the bindings of 8.5.3, 8.6.1, 10.3.0, 10.16.0, 11.4.0 and RTX 1.7.1
(tests/backends/trt_api, made by scripts/record_trt_api.py).
"""

from __future__ import annotations

import functools
import operator
import sys
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tsss_edge.backends.base import import_extra
from tsss_edge.errors import UnavailableError

Flavour = Literal["tensorrt", "tensorrt-rtx"]

OLDEST = (8, 5)
CONTEXTS = 3  # networks that run at once at most: one frame is copied in, one in the network, one copied out
STRONG_TYPING_FULL = (10, 12)  # from here on a strongly typed build is the only one we try (NVIDIA's migration guide)


class Span(NamedTuple):
    """First TensorRT version with a name, first version without it again (None: still there), and whether RTX has it."""

    since: tuple[int, int] = OLDEST
    until: tuple[int, int] | None = None
    rtx: bool = True


ALWAYS = Span()
FROM_8_6 = Span(since=(8, 6))
FROM_10 = Span(since=(10, 0))
SAME_CAPABILITY = Span(since=(10, 16))  # the first recorded API that has it
UNTIL_11 = Span(until=(11, 0), rtx=False)
RTX_ONLY = Span(since=(99, 0))

USED: dict[str, Span] = {
    # building
    "Logger": ALWAYS,
    "ILogger": ALWAYS,
    "Builder.create_network": ALWAYS,
    "Builder.create_builder_config": ALWAYS,
    "Builder.create_optimization_profile": ALWAYS,
    "Builder.build_serialized_network": ALWAYS,
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": UNTIL_11,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": FROM_10,
    "OnnxParser.parse_from_file": ALWAYS,
    "OnnxParser.num_errors": ALWAYS,
    "OnnxParser.get_error": ALWAYS,
    "ParserError.desc": ALWAYS,
    "IBuilderConfig.set_memory_pool_limit": ALWAYS,
    "MemoryPoolType.WORKSPACE": ALWAYS,
    "IBuilderConfig.builder_optimization_level": FROM_8_6,
    "IBuilderConfig.profiling_verbosity": ALWAYS,
    "ProfilingVerbosity.DETAILED": ALWAYS,
    "IBuilderConfig.set_flag": ALWAYS,
    "BuilderFlag.FP16": UNTIL_11,
    "BuilderFlag.INT8": UNTIL_11,
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": UNTIL_11,
    "BuilderFlag.GPU_FALLBACK": ALWAYS,
    "ILayer.precision": UNTIL_11,
    "ITensor.set_dynamic_range": UNTIL_11,
    "IBuilderConfig.add_optimization_profile": ALWAYS,
    "IOptimizationProfile.set_shape": ALWAYS,
    "IBuilderConfig.create_timing_cache": ALWAYS,
    "IBuilderConfig.set_timing_cache": ALWAYS,
    "IBuilderConfig.get_timing_cache": ALWAYS,
    "ITimingCache.serialize": ALWAYS,
    "IBuilderConfig.default_device_type": ALWAYS,
    "IBuilderConfig.DLA_core": ALWAYS,
    "IBuilderConfig.can_run_on_DLA": ALWAYS,
    "Builder.num_DLA_cores": ALWAYS,
    "DeviceType.DLA": ALWAYS,
    "IBuilderConfig.hardware_compatibility_level": FROM_8_6,
    "HardwareCompatibilityLevel.AMPERE_PLUS": FROM_8_6,
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": SAME_CAPABILITY,
    "BuilderFlag.VERSION_COMPATIBLE": FROM_8_6,
    "IBuilderConfig.num_compute_capabilities": RTX_ONLY,
    "IBuilderConfig.set_compute_capability": RTX_ONLY,
    "ComputeCapability": RTX_ONLY,
    # the parsed network
    "INetworkDefinition.num_layers": ALWAYS,
    "INetworkDefinition.get_layer": ALWAYS,
    "INetworkDefinition.num_inputs": ALWAYS,
    "INetworkDefinition.get_input": ALWAYS,
    "INetworkDefinition.num_outputs": ALWAYS,
    "INetworkDefinition.get_output": ALWAYS,
    "ILayer.type": ALWAYS,
    "ILayer.name": ALWAYS,
    "ILayer.get_input": ALWAYS,
    "ILayer.get_output": ALWAYS,
    "ILayer.num_inputs": ALWAYS,
    "ILayer.num_outputs": ALWAYS,
    "ITensor.name": ALWAYS,
    "ITensor.dtype": ALWAYS,
    "ITensor.shape": ALWAYS,
    "LayerType.CONVOLUTION": ALWAYS,
    "LayerType.DEQUANTIZE": ALWAYS,
    "DataType.FLOAT": ALWAYS,
    "DataType.HALF": ALWAYS,
    "DataType.UINT8": ALWAYS,
    "IHostMemory.nbytes": ALWAYS,
    # running
    "Runtime.DLA_core": ALWAYS,
    "Runtime.engine_host_code_allowed": FROM_8_6,
    "Runtime.deserialize_cuda_engine": ALWAYS,
    "ICudaEngine.num_io_tensors": ALWAYS,
    "ICudaEngine.get_tensor_name": ALWAYS,
    "ICudaEngine.get_tensor_shape": ALWAYS,
    "ICudaEngine.create_execution_context": ALWAYS,
    "ICudaEngine.create_engine_inspector": ALWAYS,
    "EngineInspector.get_engine_information": ALWAYS,
    "LayerInformationFormat.JSON": ALWAYS,
    "ICudaEngine.num_optimization_profiles": ALWAYS,
    "IExecutionContext.set_optimization_profile_async": ALWAYS,
    "IExecutionContext.set_input_shape": ALWAYS,
    "IExecutionContext.set_tensor_address": ALWAYS,
    "IExecutionContext.execute_async_v3": ALWAYS,
}


def expected(name: str, flavour: Flavour, version: tuple[int, int]) -> bool:
    """Whether the table says that `name` exists there. Raises: KeyError: not a name we use."""
    span = USED[name]
    if flavour == "tensorrt-rtx":
        return span.rtx
    return span.since <= version and (span.until is None or version < span.until)


@dataclass(frozen=True)
class Trt:
    """A TensorRT module. Everything that depends on its version asks this object."""

    module: Any
    flavour: Flavour
    version: tuple[int, ...]

    def has(self, name: str) -> bool:
        """Whether `name` of the table exists here (by the table, not by trying)."""
        return expected(name, self.flavour, (self.version[0], self.version[1]))

    def get(self, name: str) -> Any:
        """The object behind a name of the table, such as "BuilderFlag.FP16". Raises: KeyError: not in the table."""
        assert self.has(name), f"{name} does not exist in {self}"
        return functools.reduce(getattr, name.split("."), self.module)

    @property
    def always_strong(self) -> bool:
        """Strong typing is all there is, or works without exceptions."""
        return self.flavour == "tensorrt-rtx" or self.version[:2] >= STRONG_TYPING_FULL

    @property
    def never_strong(self) -> bool:
        """TensorRT 8: builder flags instead."""
        return not self.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED")

    @property
    def shares_profiles(self) -> bool:
        """Several contexts may use one optimization profile (before 10.0 each needs its own: NvInferRuntime.h 8.5)."""
        return self.flavour == "tensorrt-rtx" or self.version[0] >= 10

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.flavour == 'tensorrt-rtx' else 'TensorRT'} {'.'.join(map(str, self.version))}"


def load(flavour: Flavour) -> Trt:
    """Import `tensorrt` or `tensorrt_rtx`. Raises: UnavailableError: not installed, or older than 8.5."""
    module, extra = ("tensorrt_rtx", "rtx") if flavour == "tensorrt-rtx" else ("tensorrt", "tensorrt")
    loaded = import_extra(module, extra)
    trt = Trt(loaded, flavour, parse_version(loaded.__version__))
    if flavour == "tensorrt" and trt.version[:2] < OLDEST:
        raise UnavailableError(f"{trt} is too old; TensorRT 8.5 (JetPack 5) is the oldest that works")
    return trt


def parse_version(text: str) -> tuple[int, ...]:
    """ "10.16.0.72" or "8.6.1.post1" -> its leading numbers."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def type_name(dtype: Any) -> str:
    """trt.DataType.HALF -> "HALF", the same in every version."""
    return str(operator.attrgetter("name")(dtype))


def make_logger(trt: Trt) -> Any:
    """A TensorRT logger that passes warnings on to stderr and remembers the last error in `.last`."""
    base = trt.get("ILogger")

    class Logger(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                self.last = message
            if severity in (base.ERROR, base.INTERNAL_ERROR, base.WARNING):
                sys.stderr.write(f"{message}\n")

    return Logger()
