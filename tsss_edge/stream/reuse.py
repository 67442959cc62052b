"""Frames that need no network: what did not change keeps its labels, what moved takes them along.

A switch, off by default. The luma plane is looked at in blocks of 32 pixels, the stride of the network's deepest features:

- "still": a frame without a changed block since the last frame that the network saw keeps that frame's labels.
- "part": besides, where the changed blocks and what is around them are a part of the picture, the network sees that part alone, and
  what it says goes into the outputs that were there. For a camera that stands still (CPU engines of OpenVINO).
- "motion": besides, only every `KEYFRAME`-th frame that changed goes through the network. Between, the part around the changed blocks
  takes its labels from where optical flow (OpenCV's DIS, ultrafast) says that it came from; the rest keeps them.
"""
# Letters: H, W frame, h, w part of the network input.

from __future__ import annotations

import math
from enum import Enum
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Placement, Preprocess
from tsss_edge.backends import AsyncBackend, Outputs
from tsss_edge.backends.base import PART_MULTIPLE, Sizable
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.stream.cpu_stages import CpuSlot, CpuStages
from tsss_edge.stream.frames import Picture
from tsss_edge.stream.pipeline import timed

Reuse = Literal["off", "still", "part", "motion"]
Rectangle = tuple[int, int, int, int]  # y, x, height, width

BLOCK = 32  # pixels
SMALL = 4  # the luma is looked at in a picture so much smaller: noise of a sensor is averaged out, and flow is cheap
CHANGED = 6.0  # levels of 255 that some SMALL x SMALL square of a block must differ by; ours, set by eye and not tuned
KEYFRAME = 4
AROUND = 32  # pixels of the network input that it sees around what changed, for context; of PART_MULTIPLE
LARGEST_PART = 0.6  # of the picture; the whole picture costs little more then
WHOLE_EVERY = 64  # frames: what changed far away changes an answer here a little, and that must not stay for ever


class Step(Enum):
    """What happens to a frame."""

    NETWORK = "network"
    KEEP = "keep"
    PART = "part"
    MOVE = "move"


SEEN = (Step.NETWORK, Step.PART)


class Decision(NamedTuple):
    """A step; for MOVE the frame's small luma, that of the frame the network saw, and the changed part of the frame; for PART
    where that is in the network input, and the rectangle around it that the network sees."""

    step: Step
    small: NDArray[np.uint8]
    key: NDArray[np.uint8] | None = None
    part: Rectangle = (0, 0, 0, 0)
    core: Rectangle = (0, 0, 0, 0)
    window: Rectangle = (0, 0, 0, 0)


class Changes:
    """Decides frame by frame. Not thread-safe. Args: preprocess: of the network, for "part"."""

    def __init__(self, reuse: Reuse, preprocess: Preprocess | None = None) -> None:
        self._reuse = reuse
        self._preprocess = preprocess
        self._key: NDArray[np.uint8] | None = None
        self._frame_hw = (0, 0)  # of the key's frame: two sizes may have one small luma
        self._since = 0  # frames since the network saw one

    def look(self, picture: Picture) -> Decision:
        """What to do with the next frame."""
        luma = (
            picture.y if isinstance(picture, Yuv) else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.uint8)
        )
        height, width = luma.shape
        size = (max(1, width // SMALL), max(1, height // SMALL))
        small = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.uint8)
        key, self._since = self._key, self._since + 1
        if key is None or self._frame_hw != (height, width):
            self._frame_hw = height, width
            return self._network(small)
        part = changed_part(key, small, (height, width))
        if part is None:
            return Decision(Step.KEEP, small)
        if self._reuse == "motion" and self._since < KEYFRAME:
            return Decision(Step.MOVE, small, key, part)
        if self._reuse == "part" and self._since < WHOLE_EVERY:
            return self._part(key, small, part)
        return self._network(small)

    def _part(self, key: NDArray[np.uint8], small: NDArray[np.uint8], part: Rectangle) -> Decision:
        assert self._preprocess is not None
        found = seen_part(part, self._preprocess.place(self._frame_hw), self._preprocess.size_hw)
        if found is None:
            return self._network(small)
        y, x, height, width = (math.ceil(side / SMALL) for side in part)
        rows, columns = slice(y, y + height), slice(x, x + width)
        self._key = key.copy()  # what the labels come of is now of two frames
        self._key[rows, columns] = small[rows, columns]
        return Decision(Step.PART, small, None, part, *found)

    def _network(self, small: NDArray[np.uint8]) -> Decision:
        self._key, self._since = small, 0
        return Decision(Step.NETWORK, small)


def changed_part(key: NDArray[np.uint8], small: NDArray[np.uint8], frame_hw: tuple[int, int]) -> Rectangle | None:
    """Around all changed blocks, and one block more on each side: (y, x, height, width) in pixels of the frame; None without one.

    key, small: the luma of two frames, SMALL times smaller than `frame_hw`.
    """
    ys, xs = np.nonzero(cv2.absdiff(key, small) > CHANGED)
    if not ys.size:
        return None
    per_block = BLOCK // SMALL
    top, left = (max(0, int(i.min()) // per_block - 1) * BLOCK for i in (ys, xs))
    bottom, right = (
        min(side, (int(i.max()) // per_block + 2) * BLOCK) for side, i in zip(frame_hw, (ys, xs), strict=True)
    )
    return top, left, bottom - top, right - left


def seen_part(part: Rectangle, placement: Placement, input_hw: tuple[int, int]) -> tuple[Rectangle, Rectangle] | None:
    """(core, window) in the network input, sides multiples of 32: the part of the frame, and with AROUND on each side of it.

    None where the network had better see the whole picture: a part that is large, or outside of what is cut out of the frame.
    """
    (source_x, source_y, *source_wh), (target_x, target_y, *target_wh) = placement.source, placement.target
    spans = []
    for start, length, source, target, scale, side in (
        (part[0], part[2], source_y, target_y, target_wh[1] / source_wh[1], input_hw[0]),
        (part[1], part[3], source_x, target_x, target_wh[0] / source_wh[0], input_hw[1]),
    ):
        low, high = (target + (edge - source) * scale for edge in (start, start + length))
        first = max(0, math.floor(low / PART_MULTIPLE) * PART_MULTIPLE)
        last = min(side, math.ceil(high / PART_MULTIPLE) * PART_MULTIPLE)
        if side % PART_MULTIPLE or first >= last:
            return None
        spans.append((first, last - first, max(0, first - AROUND), min(side, last + AROUND)))
    (y, height, top, bottom), (x, width, left, right) = spans
    if (bottom - top) * (right - left) > LARGEST_PART * input_hw[0] * input_hw[1]:
        return None
    return (y, x, height, width), (top, left, bottom - top, right - left)


def put_part(outputs: Outputs, found: Outputs, decision: Decision, input_hw: tuple[int, int]) -> None:
    """Write the core of what the network said of a window into the outputs of the whole picture. On any stride up to 32."""
    (y, x, height, width), (top, left, *_) = decision.core, decision.window
    for name, array in found.items():
        whole = outputs[name]
        down, across = (side // n for side, n in zip(input_hw, whole.shape[-2:], strict=True))
        rows, columns = height // down, width // across
        into = np.s_[..., y // down : y // down + rows, x // across : x // across + columns]
        i, j = (y - top) // down, (x - left) // across
        whole[into] = array[..., i : i + rows, j : j + columns]


def move_labels(labels: NDArray[np.uint8], decision: Decision, out: NDArray[np.uint8], flow: Any) -> None:
    """Write `labels`, (H,W) of the frame that the network saw, into `out` as that frame's things have moved. flow: a DIS object."""
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
    """`CpuStages` that leave the network out where `Changes` says so. Frames of one size; a new size goes through the network.

    Raises: UnavailableError: "part" of an engine whose network takes one size of pictures alone.
    """

    def __init__(self, backend: AsyncBackend, *, blend: bool, reuse: Reuse) -> None:
        super().__init__(backend, blend=blend)
        self.name = f"{self.name}, reuse {reuse}"
        self._parts = network_of_parts(backend) if reuse == "part" else None
        self._crops = [np.empty(0, np.uint8)] * backend.slots  # by request, alive while the network reads them
        self._changes = Changes(reuse, backend.preprocess)
        self._decisions: dict[int, Decision] = {}  # by slot
        self._labels = np.empty((0, 0), np.uint8)  # of the last frame that the network saw
        self._outputs: dict[str, NDArray[Any]] = {}
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def start(self, slot: int, picture: Picture, stages_ms: dict[str, float]) -> None:
        """As `CpuStages`, where the network is needed."""
        with timed(stages_ms, "change"):
            decision = self._decisions[slot] = self._changes.look(picture)
        if decision.step in SEEN:
            super().start(slot, picture, stages_ms)

    def begin(self, slot: int, request: int) -> None:
        """As `CpuStages`, or with a part of the input."""
        decision = self._decisions[slot]
        if decision.step is Step.NETWORK:
            super().begin(slot, request)
            return
        assert self._parts is not None
        top, left, height, width = decision.window
        cut = self._inputs[request][:, top : top + height, left : left + width]
        self._crops[request] = np.ascontiguousarray(cut)
        self._parts.start(request, self._crops[request])

    def wait(self, slot: int, stages_ms: dict[str, float]) -> None:
        """As `CpuStages`; without the network the last outputs are taken."""
        done = self._slots[slot]
        if self._decisions[slot].step in SEEN:
            super().wait(slot, stages_ms)
            self._outputs = done.outputs
        else:
            done.keep(self._outputs)

    def take(self, slot: CpuSlot, request: int) -> None:
        """As `CpuStages`; of a part, into the outputs of the frame before."""
        decision = self._decisions[self._slots.index(slot)]
        if decision.step is Step.NETWORK:
            super().take(slot, request)
            return
        assert self._parts is not None
        slot.keep(self._outputs)
        put_part(slot.outputs, self._parts.wait(request), decision, self._backend.preprocess.size_hw)

    def segment(self, slot: CpuSlot, frame_hw: tuple[int, int]) -> None:
        """Labels by the network, or those of the frame before, where they are now."""
        decision = self._decisions[self._slots.index(slot)]
        if decision.step in SEEN:
            super().segment(slot, frame_hw)
            if self._labels.shape != frame_hw:
                self._labels = np.empty(frame_hw, np.uint8)
            np.copyto(self._labels, slot.labels)
        elif decision.step is Step.KEEP:
            np.copyto(slot.labels, self._labels)
        else:
            move_labels(self._labels, decision, slot.labels, self._flow)

    def close(self) -> None:
        """As `CpuStages`; the network of parts is ours and goes too."""
        super().close()
        if self._parts is not None:
            self._parts.close()


def network_of_parts(backend: AsyncBackend) -> AsyncBackend:
    """Raises: UnavailableError: this engine has none."""
    if not isinstance(backend, Sizable):
        raise UnavailableError(f"--reuse part works with OpenVINO engines, this is {backend.name}; take --reuse still")
    return backend.for_parts()
