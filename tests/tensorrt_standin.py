"""TensorRT 10.3 as far as we call it: a "plan" is the ONNX graph behind a plan's header, and ONNX Runtime runs it.

A context reads and writes the addresses it is given, behind what waits in its stream, so on the fake driver a wrong pointer,
size or order is a wrong answer. Nothing here says how a real builder decides or how fast anything is.
`test_kit_rehearsal.py` holds every name against the recorded API (tests/backends/trt_api/10.3.0.json).
"""

from __future__ import annotations

import ctypes
import enum
import struct
from types import SimpleNamespace
from typing import Any

__version__ = "10.3.0"
_HEADER = struct.pack("<II16s4B", 0x74727466, 239, b"", 10, 3, 0, 26)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger(ILogger):
    pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    FP16 = 0
    INT8 = 2
    GPU_FALLBACK = 4
    OBEY_PRECISION_CONSTRAINTS = 10


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class LayerInformationFormat(enum.Enum):
    JSON = 1


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, UINT8, INT64 = range(6)


_TYPES = {
    1: DataType.FLOAT,
    2: DataType.UINT8,
    3: DataType.INT8,
    6: DataType.INT32,
    7: DataType.INT64,
    10: DataType.HALF,
}
_NUMPY = {1: "float32", 2: "uint8"}


class INetworkDefinition:
    """An ONNX graph in the words of TensorRT."""

    def __init__(self) -> None:
        self._graph: Any = None

    def _parse(self, data: bytes) -> None:
        import onnx

        self._data = data
        self._graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data)).graph
        values = (*self._graph.value_info, *self._graph.input, *self._graph.output)
        self._values = {value.name: value for value in values}

    num_layers = property(lambda self: len(self._graph.node))
    num_inputs = property(lambda self: len(self._graph.input))
    num_outputs = property(lambda self: len(self._graph.output))

    def get_input(self, index: int) -> Any:
        return self._tensor(self._graph.input[index].name)

    def get_output(self, index: int) -> Any:
        return self._tensor(self._graph.output[index].name)

    def get_layer(self, index: int) -> Any:
        node = self._graph.node[index]
        kinds = {"Conv": "CONVOLUTION", "DequantizeLinear": "DEQUANTIZE"}
        return SimpleNamespace(
            name=node.name,
            type=SimpleNamespace(name=kinds.get(node.op_type, node.op_type.upper())),
            num_outputs=len(node.output),
            get_input=lambda i: self._tensor(node.input[i]),
            get_output=lambda i: self._tensor(node.output[i]),
        )

    def _tensor(self, name: str) -> Any:
        value = self._values.get(name)
        kind = value.type.tensor_type if value is not None else None
        shape = tuple(d.dim_value or -1 for d in kind.shape.dim) if kind else ()
        return SimpleNamespace(name=name, dtype=_TYPES.get(kind.elem_type if kind else 1), shape=shape)


class IBuilderConfig:
    builder_optimization_level = 3
    profiling_verbosity: Any = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert size > 0

    def set_flag(self, flag: BuilderFlag) -> None:
        pass

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    def add_optimization_profile(self, profile: Any) -> int:
        return 0


class Builder:
    def __init__(self, logger: ILogger) -> None:
        pass

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda name, *shapes: None)

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
        return _HEADER + network._data


class OnnxParser:
    num_errors = 0

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        with open(path, "rb") as file:  # noqa: PTH123
            self._network._parse(file.read())
        return True

    def get_error(self, index: int) -> Any:
        raise IndexError(index)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        return ICudaEngine(plan[len(_HEADER) :]) if plan.startswith(_HEADER) else None


class ICudaEngine:
    def __init__(self, data: bytes) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self._network = INetworkDefinition()
        self._network._parse(data)
        graph = self._network._graph
        self._names = [value.name for value in (*graph.input, *graph.output)]

    num_io_tensors = property(lambda self: len(self._names))

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._network._tensor(name).shape

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: '{"Layers": []}')


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = engine.get_tensor_shape(engine._names[0])
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._run)  # kept: the stream calls it later

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine._names

    def execute_async_v3(self, stream: int) -> bool:
        return self._driver.cuLaunchHostFunc(ctypes.c_void_p(stream), self._work, None) == 0

    def _run(self, data: int | None) -> None:
        import numpy as np

        image, *outputs = self._engine._names
        size = int(np.prod(self._shape))
        picture = np.frombuffer(ctypes.string_at(self._addresses[image], size), np.uint8).reshape(self._shape)
        for name, array in zip(outputs, self._engine._session.run(outputs, {image: picture}), strict=True):
            values = np.ascontiguousarray(array)
            ctypes.memmove(self._addresses[name], values.ctypes.data, values.nbytes)
