"""How the CUDA kernels are called: their parameters, blocks and grids. Each `.cu` file lies beside its CPU twin."""
# Letters: K class, h, w grid (network input / 8), H, W frame. Addresses are integers.

from __future__ import annotations

from typing import NamedTuple

from tsss_edge.artifacts import Placement

FLAT, TILE = (256, 1, 1), (32, 8, 1)  # threads of a block

# Parameters of every kernel as PyCUDA packs them: P pointer, i 32-bit integer. A Placement by value is eight integers.
PARAMETERS = {
    "preprocess": "PP" + 8 * "i" + "iiii",
    "largest_float32": "PPii",
    "largest_float16": "PPii",
    "labels_float32": "PPP" + 8 * "i" + "iiiii",
    "labels_float16": "PPP" + 8 * "i" + "iiiii",
    "overlay": "PPPii",
}


class KernelCall(NamedTuple):
    """One launch. `arguments` are in the order of `PARAMETERS[kernel]`."""

    kernel: str
    grid: tuple[int, int]
    block: tuple[int, int, int]
    arguments: tuple[int, ...]


def preprocess_call(
    frame: int, out: int, placement: Placement, frame_hw: tuple[int, int], size_hw: tuple[int, int], *, bgr: bool = True
) -> KernelCall:
    """(H,W,3) uint8 at `frame` -> network input, `size_hw` x 3 uint8 RGB, at `out`."""
    return _tiled("preprocess", size_hw, (frame, out, *_flat(placement), frame_hw[1], *size_hw, int(bgr)))


def upsample_argmax_calls(
    logits: int,
    best: int,
    labels: int,
    placement: Placement,
    grid_shape: tuple[int, int, int],
    frame_hw: tuple[int, int],
    *,
    dtype: str = "float32",
) -> tuple[KernelCall, KernelCall]:
    """(K,h,w) float32 or float16 at `logits` -> (H,W) uint8 at `labels`. `best`: h * w bytes of room."""
    classes, h, w = grid_shape
    return (
        _in_line(f"largest_{dtype}", h * w, (logits, best, classes, h * w)),
        _tiled(f"labels_{dtype}", frame_hw, (logits, best, labels, *_flat(placement), *grid_shape, *frame_hw)),
    )


def overlay_call(frame: int, labels: int, tints: int, keep: int, frame_hw: tuple[int, int]) -> KernelCall:
    """Blend into the (H,W,3) uint8 BGR at `frame`. `tints` and `keep`: of `overlay.tint_table`, copied to the GPU."""
    size = 3 * frame_hw[0] * frame_hw[1]
    return _in_line("overlay", size, (frame, labels, tints, keep, size))


def _in_line(kernel: str, size: int, arguments: tuple[int, ...]) -> KernelCall:
    return KernelCall(kernel, (-(-size // FLAT[0]), 1), FLAT, arguments)


def _tiled(kernel: str, size_hw: tuple[int, int], arguments: tuple[int, ...]) -> KernelCall:
    return KernelCall(kernel, (-(-size_hw[1] // TILE[0]), -(-size_hw[0] // TILE[1])), TILE, arguments)


def _flat(placement: Placement) -> tuple[int, ...]:
    return (*placement.source, *placement.target)
