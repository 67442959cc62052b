"""What NVIDIA's own API says of a plan of ours: this file imports `tensorrt_rtx` and nothing of this project.

    python scripts/plain_tensorrt_rtx.py fused.int8.engine [fused.int8.trt.onnx [MIN OPT MAX]]

Prints one JSON object. `loads`: the runtime gives an engine (needs a GPU that the plan serves). `refusal`: its last error
where it does not. `differs`: bytes in which the plan differs from what the stock builder makes of the ONNX file, null when
the lengths differ; `stock_differs`: the same between two stock builds (plans with free shapes are never quite the same).
Building needs no GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

WORKSPACE = 256 << 20


class Logger(trt.ILogger):  # type: ignore[misc]
    """Keeps the last error."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def log(self, severity: Any, message: str) -> None:
        if severity in (self.ERROR, self.INTERNAL_ERROR):
            self.last = message


def load(plan: bytes) -> dict[str, Any]:
    """Deserialise a plan and list its tensors."""
    logger = Logger()
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return {"loads": False, "refusal": logger.last}
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return {"loads": True, "tensors": {name: list(engine.get_tensor_shape(name)) for name in names}}


def build(onnx: Path, batch: tuple[int, int, int] | None) -> bytes:
    """The plan of an ONNX file, with nothing set but the workspace, detail and the batch profile."""
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    if not trt.OnnxParser(network, logger).parse_from_file(str(onnx)):
        sys.exit(logger.last)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if batch is not None:
        profile, image = builder.create_optimization_profile(), network.get_input(0)
        profile.set_shape(image.name, *((n, *tuple(image.shape)[1:]) for n in batch))
        config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def difference(a: bytes, b: bytes) -> int | None:
    """Bytes that differ; None for different lengths."""
    return sum(x != y for x, y in zip(a, b, strict=True)) if len(a) == len(b) else None


def main() -> None:
    plan = Path(sys.argv[1]).read_bytes()
    told = load(plan)
    if len(sys.argv) > 2:
        batch = tuple(map(int, sys.argv[3:6])) if len(sys.argv) > 3 else None
        first, second = (build(Path(sys.argv[2]), batch) for _ in range(2))  # type: ignore[arg-type]
        told |= {"differs": difference(plan, first), "stock_differs": difference(first, second)}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
