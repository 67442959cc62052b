"""One loaded network on one device, whatever runs it.

A back end takes uint8 pictures in and gives named arrays out; it never resizes and never takes an argmax. Loading is a
function (`tsss_edge.backends.open_backend`), running is one method. `fake.py` implements the same protocol without any
network and is what the tests of everything else use.
"""
# Letters: N batch, H height, W width, K classes.

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Preprocess, TensorSpec

if TYPE_CHECKING:
    from types import TracebackType

Outputs = Mapping[str, NDArray[Any]]


@runtime_checkable
class Backend(Protocol):
    """One network, loaded. Not thread-safe: one thread at a time.

    `infer` takes (N,H,W,3) uint8 RGB at `preprocess.size_hw` and returns arrays by output name:
    `logits` (N,K,H/8,W/8) float32, `labels` (N,H,W) uint8, `objectness` (N,1,H/8,W/8) float32 (a logit).
    The arrays may be overwritten by the next call: copy what must live longer.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> Classes: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def min_batch(self) -> int: ...  # pictures that a call takes at least; all of them for an engine of a fixed batch
    def infer(self, images: NDArray[np.uint8]) -> Outputs: ...
    def close(self) -> None: ...  # safe to call twice
    def __enter__(self) -> Backend: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class AsyncBackend(Backend, Protocol):
    """A back end with `slots` requests in flight. `start(slot, ...)` returns at once; `wait(slot)` gives the outputs.

    The outputs of a slot live until the next `start` of that slot. Slots finish in any order. One thread may call `start`
    while another calls `wait` on other slots.
    """

    @property
    def slots(self) -> int: ...
    def start(self, slot: int, images: NDArray[np.uint8]) -> None: ...
    def wait(self, slot: int) -> Outputs: ...
