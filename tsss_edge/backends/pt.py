"""A checkpoint -> the PyTorch reference that every engine is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tsss_edge.artifacts import Checkpoint, TensorSpec
from tsss_edge.backends.base import Outputs
from tsss_edge.backends.common import Closing, output_specs, require_images
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.models import load_model


class PyTorchBackend(Closing):
    """FP32 eager mode unless `bf16`. L-Net checkpoints give `objectness` only, the others `logits` too."""

    def __init__(
        self, path: Path, *, device: str | None = None, threads: int | None = None, bf16: bool = False
    ) -> None:
        """Load the checkpoint at `path` (a `.pt`, or a run folder with `best.pt`).

        Args:    device: "cpu" (default), "cuda", "cuda:1".
                 threads: CPU threads; sets PyTorch's number for the whole process.
        Raises:  ArtifactError: damaged, of another architecture, or without a pixel output.
                 UnavailableError: no such device here.
        """
        checkpoint = Checkpoint.load(path)
        meta = checkpoint.meta
        if meta.stage == "classifier":
            raise ArtifactError(
                f"{checkpoint.path}: a classifier gives no masks; use an L-Net, P-Net or supervised run"
            )
        self._device = _device(device)
        if threads:
            torch.set_num_threads(threads)
        net = load_model(checkpoint).to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._net = net
        self._bf16 = bf16
        self.name = f"pytorch {'bf16' if bf16 else 'fp32'} {self._device.type}"
        self.classes = meta.classes
        self.preprocess = meta.preprocess
        self.min_batch = 1
        specs = output_specs(meta.classes, meta.preprocess, head="logits", objectness=net.object_head is not None)
        self.outputs: tuple[TensorSpec, ...] = tuple(
            s for s in specs if s.name != "logits" or net.class_head is not None
        )

    @torch.inference_mode()
    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> float32 arrays by output name, new at each call."""
        require_images(images, self.preprocess.size_hw)
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        x = x.permute(0, 3, 1, 2).float().mul_(self.preprocess.scale / 255)  # permuted NHWC is channels_last already
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            heads = self._net(x)
        named = {"logits": heads.logits, "objectness": heads.objectness}
        return {name: t.float().cpu().numpy() for name, t in named.items() if t is not None}

    def close(self) -> None:
        """Free the network's memory."""
        self._net.to("meta")


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or "cpu")
    except RuntimeError as error:
        raise UnavailableError(f"PyTorch knows no device {name!r}; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("PyTorch finds no CUDA GPU on this machine; use --device cpu")
    return device
