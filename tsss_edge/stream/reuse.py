"""Frames that need no network: what did not change keeps its labels, what moved takes them along.

A switch, off by default. The luma plane is looked at in blocks of 32 pixels, the stride of the network's deepest features:

- "still": a frame without a changed block since the last frame that the network saw keeps that frame's labels.
- "motion": besides, only every `KEYFRAME`-th frame that changed goes through the network. Between, the part around the changed blocks
  takes its labels from where optical flow (OpenCV's DIS, ultrafast) says that it came from in the frame before; the rest keeps them.
"""
# Letters: H, W frame.

from __future__ import annotations

from enum import Enum
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.backends import AsyncBackend
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.stream.cpu_stages import CpuSlot, CpuStages
from tsss_edge.stream.frames import Picture
from tsss_edge.stream.pipeline import timed

Reuse = Literal["off", "still", "motion"]

BLOCK = 32  # pixels
SMALL = 4  # the luma is looked at in a picture so much smaller: noise of a sensor is averaged out, and flow is cheap
CHANGED = 6.0  # levels of 255 that some SMALL x SMALL square of a block must differ by; ours, set by eye and not tuned
KEYFRAME = 4
LEAST = 12  # rows and columns of the small luma that OpenCV's flow needs


class Step(Enum):
    """What happens to a frame."""

    NETWORK = "network"
    KEEP = "keep"
    MOVE = "move"


class Decision(NamedTuple):
    """A step; for MOVE the frame's small luma, that of the frame before, and the changed part (y, x, height, width)."""

    step: Step
    small: NDArray[np.uint8]
    key: NDArray[np.uint8] | None = None
    part: tuple[int, int, int, int] = (0, 0, 0, 0)


class Changes:
    """Decides frame by frame. Not thread-safe."""

    def __init__(self, reuse: Reuse) -> None:
        self._motion = reuse == "motion"
        self._key: NDArray[np.uint8] | None = None
        self._frame_hw = (0, 0)  # of the key's frame: two sizes may have one small luma
        self._since = 0  # frames since the network saw one

    def look(self, picture: Picture) -> Decision:
        """What to do with the next frame."""
        luma = (
            picture.y if isinstance(picture, Yuv) else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.uint8)
        )
        height, width = luma.shape
        small = shrunk(luma)
        key, self._since = self._key, self._since + 1
        if key is None or self._frame_hw != (height, width):
            self._frame_hw = height, width
            return self._network(small)
        part = changed_part(key, small, (height, width))
        if part is None:
            return Decision(Step.KEEP, small)
        if not self._motion or self._since >= KEYFRAME or min(small.shape) < LEAST:
            return self._network(small)
        self._key = small  # from frame to frame things move little; flow finds that better than the way from the network's frame
        return Decision(Step.MOVE, small, key, part)

    def _network(self, small: NDArray[np.uint8]) -> Decision:
        self._key, self._since = small, 0
        return Decision(Step.NETWORK, small)


def shrunk(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of squares of SMALL pixels. A last row or column that fills no square is left out: OpenCV is then 4 times as fast."""
    height, width = (max(1, side // SMALL) for side in luma.shape)
    whole = luma[: height * SMALL, : width * SMALL]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def changed_part(
    key: NDArray[np.uint8], small: NDArray[np.uint8], frame_hw: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Around all changed blocks, and one block more on each side: (y, x, height, width) in pixels of the frame; None without one.

    key, small: the luma of two frames, SMALL times smaller than `frame_hw`.
    """
    ys, xs = np.nonzero(cv2.absdiff(key, small) > CHANGED)
    if not ys.size:
        return None
    per_block = BLOCK // SMALL
    top, left = (
        max(0, min((int(i.min()) // per_block - 1) * BLOCK, side // SMALL * SMALL - 2 * BLOCK))  # flow wants two blocks
        for side, i in zip(frame_hw, (ys, xs), strict=True)
    )
    bottom, right = (
        min(side, (int(i.max()) // per_block + 2) * BLOCK) for side, i in zip(frame_hw, (ys, xs), strict=True)
    )
    return top, left, bottom - top, right - left


def move_labels(labels: NDArray[np.uint8], decision: Decision, out: NDArray[np.uint8], flow: Any) -> None:
    """Write `labels`, (H,W) of the frame before, into `out` as that frame's things have moved. flow: a DIS object."""
    np.copyto(out, labels)
    y, x, height, width = decision.part
    top, left = y // SMALL, x // SMALL
    cut = np.s_[top : top + max(16, height // SMALL), left : left + max(16, width // SMALL)]
    came_from = flow.calc(np.ascontiguousarray(decision.small[cut]), np.ascontiguousarray(decision.key[cut]), None)  # type: ignore[index]
    came_from = cv2.resize(came_from, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(SMALL)
    came_from[..., 0] += np.arange(x, x + width, dtype=np.float32)
    came_from[..., 1] += np.arange(y, y + height, dtype=np.float32)[:, None]
    moved = cv2.remap(labels, came_from, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    np.copyto(out[y : y + height, x : x + width], moved)


class ReuseStages(CpuStages):
    """`CpuStages` that leave the network out where `Changes` says so. Frames of one size; a new size goes through the network."""

    def __init__(self, backend: AsyncBackend, *, blend: bool, reuse: Reuse) -> None:
        super().__init__(backend, blend=blend)
        self.name = f"{self.name}, reuse {reuse}"
        self._changes = Changes(reuse)
        self._decisions: dict[int, Decision] = {}  # by slot
        self._labels = np.empty((0, 0), np.uint8)  # of the frame before
        self._outputs: dict[str, NDArray[Any]] = {}
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None:
        """As `CpuStages`, where the network is needed."""
        with timed(stages_ms, "change"):
            decision = self._decisions[slot] = self._changes.look(picture)
        if decision.step is Step.NETWORK:
            super().start(slot, picture, stages_ms)

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """As `CpuStages`; without the network the last outputs are taken."""
        done = self._slots[slot]
        if self._decisions[slot].step is Step.NETWORK:
            super().wait(slot, stages_ms)
            self._outputs = done.outputs
        else:
            done.keep(self._outputs)

    def segment(self, slot: CpuSlot, frame_hw: tuple[int, int]) -> None:
        """Labels by the network, or those of the frame before, where they are now."""
        decision = self._decisions[self._slots.index(slot)]
        if decision.step is Step.NETWORK:
            super().segment(slot, frame_hw)
            if self._labels.shape != frame_hw:
                self._labels = np.empty(frame_hw, np.uint8)
            np.copyto(self._labels, slot.labels)
        elif decision.step is Step.KEEP:
            np.copyto(slot.labels, self._labels)
        else:
            move_labels(self._labels, decision, slot.labels, self._flow)
            np.copyto(self._labels, slot.labels)
