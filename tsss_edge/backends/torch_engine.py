"""A checkpoint in PyTorch -> a device engine: the whole CUDA loop with a real network on any CUDA host, TensorRT or not.

The network runs on the slot's own stream and may be captured into its graph. Every slot has static tensors for input and
outputs, and a memory pool of its own: what a graph computes in is never handed to anybody else. FP32, as the reference.
"""
# Letters: K class, H, W network input, h = H/8, w = W/8.

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tsss_edge.artifacts import Checkpoint, TensorSpec
from tsss_edge.backends.base import Closing, Outputs, require_images
from tsss_edge.backends.reference import PyTorchBackend
from tsss_edge.models import network_input


class TorchEngine(Closing):
    """An `AsyncBackend` and a `DeviceEngine`, for one picture at a time. `start` and `wait` copy through the host."""

    min_batch = 1

    def __init__(self, checkpoint: Checkpoint, *, slots: int = 1, device: str | None = None) -> None:
        """Args:   device: PyTorch's name; default: the GPU where there is one (on a CPU the tests run it).
        Raises: ArtifactError: no network of ours, or one without a pixel output. UnavailableError: no such device.
        """
        self._reference = PyTorchBackend(checkpoint, device=device)
        self.device = self._reference.device
        self.name = f"pytorch fp32 {self.device.type}, {slots} slots"
        self.classes, self.preprocess = self._reference.classes, self._reference.preprocess
        self.outputs = tuple(
            TensorSpec(name=s.name, dtype=s.dtype, shape=(1, *s.shape[1:])) for s in self._reference.outputs
        )
        self.slots = self.contexts = slots
        self._slots = [_Slot(self.device, self.preprocess.size_hw, self.outputs) for _ in range(slots)]

    def addresses(self, slot: int) -> dict[str, int]:
        """Address of every tensor of a slot by name: `image` (1,H,W,3) uint8 RGB, and the outputs in float32."""
        return {name: tensor.data_ptr() for name, tensor in self._slots[slot].tensors.items()}

    def enqueue(self, slot: int, batch: int, stream: int) -> None:
        """Put the network on the slot's tensors into a CUDA stream (an integer handle), captured or not."""
        assert batch == 1, "one picture at a time"
        self._slots[slot].run(self._reference.net, self.preprocess.scale, stream)

    def start(self, slot: int, images: NDArray[np.uint8]) -> None:
        """Begin (1,H,W,3) uint8 RGB in `slot` and return; `images` may change afterwards."""
        require_images(images, self.preprocess.size_hw)
        if images.shape[0] != 1:
            raise ValueError(f"this engine takes one picture at a time, got {images.shape[0]}")
        made = self._slots[slot]
        made.tensors["image"].copy_(torch.from_numpy(np.ascontiguousarray(images)))
        made.run(self._reference.net, self.preprocess.scale, 0)

    def wait(self, slot: int) -> Outputs:
        """Outputs of `slot`, valid until its next `start`."""
        return {spec.name: self._slots[slot].tensors[spec.name].cpu().numpy() for spec in self.outputs}

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(1,H,W,3) uint8 RGB -> float32 arrays by output name."""
        self.start(0, images)
        return self.wait(0)

    def close(self) -> None:
        """Wait for what runs and free everything. Safe to call twice."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._slots = []
        self._reference.close()


class _Slot:
    """Static tensors, and the pool that a graph's intermediate values stay in."""

    def __init__(self, device: torch.device, size_hw: tuple[int, int], outputs: tuple[TensorSpec, ...]) -> None:
        kinds: dict[str, tuple[tuple[int, ...], Any]] = {"image": ((1, *size_hw, 3), torch.uint8)}
        kinds |= {spec.name: (spec.shape, torch.float32) for spec in outputs}
        self.tensors = {name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in kinds.items()}
        self._pool = torch.cuda.MemPool() if device.type == "cuda" else None

    @torch.inference_mode()
    def run(self, net: Any, scale: float, stream: int) -> None:
        with ExitStack() as within:
            if self._pool is not None:
                within.enter_context(torch.cuda.use_mem_pool(self._pool))
                if stream:
                    within.enter_context(torch.cuda.stream(_external(stream)))
            heads = net(network_input(self.tensors["image"], scale))
            for name, tensor in self.tensors.items():
                if name != "image":
                    tensor.copy_(getattr(heads, name))


def _external(stream: int) -> torch.cuda.Stream:
    made: torch.cuda.Stream = torch.cuda.ExternalStream(stream)  # type: ignore[no-untyped-call]
    return made
