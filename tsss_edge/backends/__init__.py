"""From an artifact to a loaded network: which back end runs it follows from its kind."""

from __future__ import annotations

from pathlib import Path

from tsss_edge.artifacts import Artifact, Checkpoint, OnnxModel, load_artifact
from tsss_edge.backends.base import SERVED, AsyncBackend, Backend, Outputs

__all__ = ["AsyncBackend", "Backend", "Outputs", "open_backend"]


def open_backend(
    model: Path | Artifact,
    *,
    device: str | None = None,
    threads: int | None = None,
    slots: int = 1,
    trust: bool = False,
    features: bool = False,
) -> Backend:
    """Open a checkpoint, graph or engine, loaded or by its path (or triton://HOST/MODEL), for inference.

    Args:    device: PyTorch's name ("cpu", "cuda:0") or OpenVINO's; None takes the default.
             threads: CPU threads for the network; None takes all cores.
             slots: requests in flight, for `AsyncBackend`s.
             features: also give the encoder's features, where the back end can (OpenVINO).
             trust: as `load_artifact`, for a path.
    Raises:  ArtifactError: unknown kind of file, damaged, or its hash is wrong.
             UnavailableError: this machine cannot run it.
    """
    if isinstance(model, Path) and str(model).startswith(SERVED):
        from tsss_edge.backends.triton_client import TritonBackend, require_address

        return TritonBackend(require_address(model), slots=slots)
    artifact = load_artifact(model, trust=trust)
    if isinstance(artifact, Checkpoint):
        from tsss_edge.backends.reference import PyTorchBackend

        return PyTorchBackend(artifact, device=device, threads=threads)
    if isinstance(artifact, OnnxModel):
        from tsss_edge.backends.reference import OnnxRuntimeBackend

        return OnnxRuntimeBackend(artifact, threads=threads)
    artifact.require_tensors()
    if artifact.path.suffix == ".xml":
        from tsss_edge.backends.ov import OpenVinoBackend

        return OpenVinoBackend(artifact, device=device, threads=threads, slots=slots, features=features)
    from tsss_edge.backends.trt import TensorRTBackend

    return TensorRTBackend(artifact, slots=slots)
