"""Logits of neighbouring frames mixed, so that labels flicker less. A switch, off by default; ours.

Where the picture stayed as it was, a cell's logits become `(1 - w) * new + w * mixed of the frame before`; where it changed, they are
the new ones alone, so that nothing drags a shadow behind it. A cut changes nearly every cell and starts anew by itself.
"""
# Letters: K class, h, w cells of the network's output.

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import AsyncBackend
from tsss_edge.errors import UnavailableError
from tsss_edge.stream.cpu_stages import CpuSlot, CpuStages
from tsss_edge.stream.frames import Picture
from tsss_edge.stream.reuse import CHANGED


class Mixer:
    """Mixes frame by frame. Not thread-safe.

    Args: weight: w, 0 (nothing) to below 1; the mean age of what is seen is then w / (1 - w) frames.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise ValueError(f"weight must be 0 or more and below 1, got {weight}")
        self._weight = np.float32(weight)
        self._mixed = np.empty((0, 0, 0), np.float32)
        self._before = np.empty((0, 0), np.uint8)

    def mix(self, logits: NDArray[np.float32], seen: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(K,h,w) logits and what the network saw of each cell, (h,w) uint8 -> (K,h,w), good until the next call."""
        if self._mixed.shape != logits.shape:
            self._mixed = logits.copy()
        else:
            still = cv2.absdiff(seen, self._before) <= CHANGED
            self._mixed -= logits
            self._mixed *= self._weight * still
            self._mixed += logits
        self._before = seen
        return self._mixed


class SmoothStages(CpuStages):
    """`CpuStages` whose labels come of mixed logits; the logits of a result stay the network's own. Frames in their order.

    Raises: UnavailableError: the engine gives labels and no logits.
    """

    def __init__(self, backend: AsyncBackend, *, blend: bool, weight: float) -> None:
        if all(spec.name != "logits" for spec in backend.outputs):
            raise UnavailableError(
                "--smooth needs logits and this engine gives labels alone; export it with --head logits"
            )
        super().__init__(backend, blend=blend)
        self.name = f"{self.name}, smooth {weight:g}"
        self._mixer = Mixer(weight)
        self._frame_hw = (0, 0)
        self._weight = weight
        self._seen: dict[int, NDArray[np.uint8]] = {}  # by slot: the network's input, one value a cell
        self._cells = next(spec.shape[2:] for spec in backend.outputs if spec.name == "logits")

    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None:
        """As `CpuStages`; keeps a small green channel of the network's input, which stays untouched while the network runs."""
        super().start(slot, picture, stages_ms)
        green = cv2.extractChannel(self._inputs[self._slots[slot].request, 0], 1)
        height, width = (int(side) for side in self._cells)
        self._seen[slot] = np.asarray(cv2.resize(green, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def segment(self, slot: CpuSlot, frame_hw: tuple[int, int]) -> None:
        """As `CpuStages`; a new size of frames starts anew."""
        if frame_hw != self._frame_hw:
            self._frame_hw, self._mixer = frame_hw, Mixer(self._weight)
        super().segment(slot, frame_hw)

    def logits_of(self, slot: CpuSlot) -> NDArray[Any]:
        """Mixed with those before."""
        return self._mixer.mix(slot.outputs["logits"][0], self._seen[self._slots.index(slot)])
