"""From a file to a loaded network: which back end runs it follows from the kind of file."""

from __future__ import annotations

from pathlib import Path

from tsss_edge.backends.base import AsyncBackend, Backend, Outputs
from tsss_edge.errors import ArtifactError

__all__ = ["AsyncBackend", "Backend", "Outputs", "open_backend"]


def open_backend(
    path: Path, *, device: str | None = None, threads: int | None = None, slots: int = 1, trust: bool = False
) -> Backend:
    """Open a checkpoint (`.pt` or run folder), ONNX file (`.onnx`) or engine (`.xml`, `.engine`) for inference.

    Args:    device: PyTorch's name ("cpu", "cuda:0") or OpenVINO's; None takes the default.
             threads: CPU threads for the network; None takes all cores.
             slots: requests in flight, for `AsyncBackend`s.
             trust: load an engine whose hash is not the one in its record.
    Raises:  ArtifactError: unknown kind of file, damaged, or its hash is wrong.
             UnavailableError: this machine cannot run it.
    """
    if path.is_dir() or path.suffix == ".pt":
        from tsss_edge.backends.pt import PyTorchBackend

        return PyTorchBackend(path, device=device, threads=threads)
    if path.suffix == ".onnx":
        from tsss_edge.backends.ort import OnnxRuntimeBackend

        return OnnxRuntimeBackend(path, threads=threads)
    if path.suffix == ".xml":
        from tsss_edge.backends.ov import OpenVinoBackend

        return OpenVinoBackend(path, device=device, threads=threads, slots=slots, trust=trust)
    if path.suffix == ".engine":
        from tsss_edge.backends.trt import TensorRTBackend

        return TensorRTBackend(path, slots=slots, trust=trust)
    raise ArtifactError(f"{path}: expected a checkpoint (.pt), ONNX file (.onnx) or engine (.xml, .engine)")
