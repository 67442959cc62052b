"""The live loop on an NVIDIA GPU: whether this engine and machine can have it, and how many slots it takes."""

from __future__ import annotations

from collections.abc import Sequence

from tsss_edge.artifacts import TensorSpec
from tsss_edge.errors import UnavailableError
from tsss_edge.stream.cuda.slot import DeviceEngine
from tsss_edge.stream.cuda.stages import IN_FLIGHT, CudaStages

__all__ = ["CudaStages", "DeviceEngine", "open_stages", "slots_needed"]


def open_stages(engine: DeviceEngine, *, blend: bool) -> CudaStages:
    """All stages on the GPU around `engine`.

    Raises: UnavailableError: the engine gives no logits, takes no batch of 1, or PyCUDA or the kernels are not there.
    """
    from tsss_edge.backends.cuda.device import CudaDevice

    require_logits(engine.outputs)
    return CudaStages(engine, CudaDevice(), blend=blend)


def require_logits(outputs: Sequence[TensorSpec]) -> None:
    """Raise UnavailableError unless an engine gives logits for one picture at a time."""
    logits = next((spec for spec in outputs if spec.name == "logits"), None)
    if logits is None:
        raise UnavailableError("the GPU kernels take logits; export with --head logits")
    if logits.shape[0] > 1:
        raise UnavailableError(f"the GPU kernels take one frame at a time; build with batch 1, not {logits.shape[0]}")


def slots_needed(*, live: bool, ready: int) -> int:
    """Slots for a stream: on the GPU, ready for the sinks, with the sinks, and one that waits for room among the ready."""
    return (1 if live else IN_FLIGHT) + ready + 2
