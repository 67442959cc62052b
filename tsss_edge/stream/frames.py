"""What flows through the live loop: a frame from a source, a result to the sinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes
from tsss_edge.field.collector import CollectStatus
from tsss_edge.field.drift import Drift
from tsss_edge.kernels.preprocess_yuv import yuv_to_bgr
from tsss_edge.kernels.yuv import Yuv

Picture = NDArray[np.uint8] | Yuv  # (H,W,3) BGR, or planes as the decoder gave them


def picture_hw(picture: Picture) -> tuple[int, int]:
    """Height and width."""
    return picture.frame_hw if isinstance(picture, Yuv) else (picture.shape[0], picture.shape[1])


def bgr_of(picture: Picture) -> NDArray[np.uint8]:
    """(H,W,3) uint8 BGR; of planes it is made."""
    return yuv_to_bgr(picture) if isinstance(picture, Yuv) else picture


@dataclass(slots=True)
class Frame:
    """One picture of a source. `captured` is `time.monotonic()` when it left the camera or the decoder."""

    picture: Picture
    index: int  # counts frames of the source, also those dropped later
    captured: float
    truth: NDArray[np.uint8] | None = None  # (H,W) true labels, only from synthetic://
    decode_ms: float | None = None  # time to read it; None for live sources, which decode on a thread of their own
    time_s: float | None = (
        None  # when it is shown, by its source's clock: a video's own, a camera's `captured`; None: has none
    )
    place: int | None = (
        None  # in the list that it is from, where pictures before it were passed over; `index` counts frames
    )
    missed: int = 0  # frames before it that the source gave and nobody took, in total; `index` does not count them
    thinned: int = 0  # frames before it that were left out because fewer were asked for, in total; `index` counts them
    _bgr: NDArray[np.uint8] | None = field(default=None, init=False, repr=False)

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H,W,3) uint8 BGR; of planes it is made when somebody first asks."""
        if self._bgr is None:
            self._bgr = bgr_of(self.picture)
        return self._bgr

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return picture_hw(self.picture)

    @property
    def number(self) -> int:
        """What masks of it are called: its place in the list of pictures, else in the source: frames that nobody took count too."""
        return self.index + self.missed if self.place is None else self.place


@dataclass(slots=True)
class FrameResult:
    """One frame with its masks, as sinks see it. The arrays belong to the loop: a sink that keeps them copies them."""

    frame: Frame
    labels: NDArray[np.uint8]  # (H,W) class ids at frame resolution
    objectness: NDArray[np.float32] | None  # (H/8,W/8) logits of the network input, None without that head
    painted: Picture | None  # the blended frame, in the frame's own kind; None until `paint`, or where no sink wants it
    stages_ms: dict[str, float] = field(default_factory=dict)
    age_ms: float = 0.0  # from capture to mask
    parity: dict[str, Any] | None = None  # last verdict of the parity watch
    dropped: int = 0  # frames of the source without a mask, up to this one
    logits: NDArray[np.floating] | None = None  # (K,h,w) of the network input; None where they never reach the CPU
    features: NDArray[np.floating] | None = None  # (C,h,w) of the encoder's last stage, where they were asked for
    drift: Drift | None = None  # what the drift watch thinks
    collected: CollectStatus | None = None  # how full the folder of collected frames is
    engine: str = ""  # that made it
    classes: Classes | None = None  # of that engine
    painter: Callable[[], Picture] | None = None  # what `painted` still waits for
    _bgr: NDArray[np.uint8] | None = field(default=None, init=False, repr=False)

    def paint(self) -> None:
        """Make `painted` where a sink wants it. The thread of the sinks calls it, so that labels of the next frame are found meanwhile."""
        if self.painter is not None:
            self.painted, self.painter = self.painter(), None

    @property
    def overlay(self) -> NDArray[np.uint8] | None:
        """`painted` as (H,W,3) uint8 BGR; of planes it is made when somebody first asks."""
        if self._bgr is None and self.painted is not None:
            self._bgr = bgr_of(self.painted)
        return self._bgr


class Source(Protocol):
    """Where frames come from. `live` sources want the newest frame, others every frame in order."""

    @property
    def live(self) -> bool: ...
    @property
    def fps(self) -> float: ...  # nominal; 0 when unknown
    @property
    def size_hw(self) -> tuple[int, int]: ...
    @property
    def length(self) -> int | None: ...  # frames, where known
    @property
    def state(self) -> str: ...  # OPEN, STREAMING, STALLED, RECONNECTING, FAILED, ENDED
    def read(self, out: NDArray[np.uint8] | None = None) -> Frame | None:
        """Give the next frame, or None at the end. Blocks until there is one.

        `out` is an array (H,W,3) that nobody needs any more. A source that makes BGR may write the frame there.
        """
        ...

    def close(self) -> None: ...  # safe to call twice, from any thread


class Sink(Protocol):
    """Where results go. `wants_overlay` tells the loop whether anybody needs the blended picture."""

    @property
    def wants_overlay(self) -> bool: ...
    def write(self, result: FrameResult) -> None: ...
    def close(self) -> None: ...  # finishes files; safe to call twice
