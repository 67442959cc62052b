"""One loaded network on one device, whatever runs it: the protocol, and what every back end shares.

A back end takes uint8 pictures in and gives named arrays out; it never resizes and never takes an argmax. Loading is a
function (`tsss_edge.backends.open_backend`), running is one method. `fake.py` implements the same protocol without any
network and is what the tests of everything else use.
"""
# Letters: N batch, H height, W width, K classes.

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Classes, Head, OnnxMeta, Preprocess, TensorSpec
from tsss_edge.errors import UnavailableError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

STRIDE = 8  # of the logits and objectness grids against the network input (design: decoder at stride 8)
SERVED = "triton:/"  # how the address of a served network begins; a `Path` makes one slash of two
Outputs = Mapping[str, NDArray[Any]]

_CORES: dict[Any, Any] = {}  # by module `openvino`, of which a process has one
_ONE_CORE = threading.Lock()


class Described(Protocol):
    """What a loaded network says of itself."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> Classes: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


@runtime_checkable
class Backend(Described, Protocol):
    """One network, loaded. Not thread-safe: one thread at a time.

    `infer` takes (N,H,W,3) uint8 RGB at `preprocess.size_hw` and returns arrays by output name:
    `logits` (N,K,H/8,W/8) float32, `labels` (N,H,W) uint8, `objectness` (N,1,H/8,W/8) float32 (a logit); an imported
    network's logits or labels may have any stride.
    The arrays may be overwritten by the next call: copy what must live longer.
    """

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


class Closing:
    """Context manager that calls `close`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_images(images: NDArray[Any], size_hw: tuple[int, int]) -> None:
    """Raise ValueError unless `images` is (N,H,W,3) uint8 at `size_hw`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*size_hw, 3) or not images.shape[0]:
        raise ValueError(f"expected (N,{size_hw[0]},{size_hw[1]},3) uint8, got {images.shape} {images.dtype}")


def output_specs(
    classes: Classes,
    preprocess: Preprocess,
    *,
    head: Head,
    objectness: bool,
    batch: int = -1,
    grid_hw: tuple[int, int] | None = None,
) -> tuple[TensorSpec, ...]:
    """Outputs of a fused graph: logits (N,K,H/8,W/8), labels (N,H,W), objectness (N,1,H/8,W/8).

    `grid_hw` is the height and width of an imported network's only output.
    """
    height, width = preprocess.size_hw if grid_hw is None else grid_hw
    grid = (height // STRIDE, width // STRIDE) if grid_hw is None else grid_hw
    specs = []
    if head in ("logits", "both"):
        specs.append(TensorSpec(name="logits", dtype="float32", shape=(batch, len(classes), *grid)))
    if head in ("labels", "both"):
        specs.append(TensorSpec(name="labels", dtype="uint8", shape=(batch, height, width)))
    if objectness:
        specs.append(TensorSpec(name="objectness", dtype="float32", shape=(batch, 1, *grid)))
    return tuple(specs)


def expected_outputs(meta: OnnxMeta) -> tuple[TensorSpec, ...]:
    """What a graph's description promises to give, batch free."""
    return output_specs(meta.classes, meta.preprocess, head=meta.head, objectness=meta.objectness, grid_hw=meta.grid_hw)


def allocate(specs: tuple[TensorSpec, ...], batch: int) -> dict[str, NDArray[Any]]:
    """Zeroed arrays for `specs`, with `batch` for a free batch dimension."""
    return {s.name: np.zeros([batch if d < 0 else d for d in s.shape], np.dtype(s.dtype)) for s in specs}


def import_extra(module: str, extra: str) -> Any:
    """Import a heavy module. Raises: UnavailableError: it is not installed, with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(
            f"Python module {module} cannot be imported ({error}); install it with `pip install 'tsss-edge[{extra}]'`"
        ) from error


def openvino_core() -> Any:
    """The one `openvino.Core` of this process. Raises: UnavailableError: OpenVINO is not installed.

    One, and never let go. The CPU plugin of a Core gives the thread that loads it another stack for signals, and takes
    it back when the Core goes (openvinotoolkit/openvino, pull request 11894). Of two that overlap, the second to go
    leaves the stack of the first, which is unmapped by then: the next signal, a Ctrl-C, kills the process.
    """
    openvino = import_extra("openvino", "cpu")
    with _ONE_CORE:
        if openvino not in _CORES:
            _CORES[openvino] = openvino.Core()
        return _CORES[openvino]
