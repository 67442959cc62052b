"""How the CUDA kernels are called: their parameters, blocks and grids. Each `.cu` file lies beside its CPU twin."""
# Letters: K class, h, w grid (network input / 8), H, W frame. Addresses are integers.

from __future__ import annotations

from typing import Any

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


class KernelCalls:
    """The kernels as methods, for whoever can `launch` one: `backends.cuda.device` does. They run behind what is in `stream`."""

    def launch(
        self, kernel: str, grid: tuple[int, int], block: tuple[int, int, int], stream: Any, arguments: tuple[int, ...]
    ) -> None:
        """Run one kernel. `arguments` are in the order of `PARAMETERS[kernel]`."""
        raise NotImplementedError

    def preprocess(
        self,
        frame: int,
        out: int,
        placement: Placement,
        frame_hw: tuple[int, int],
        size_hw: tuple[int, int],
        stream: Any,
        *,
        bgr: bool = True,
    ) -> None:
        """(H,W,3) uint8 at `frame` -> network input, `size_hw` x 3 uint8 RGB, at `out`."""
        arguments = (frame, out, *_flat(placement), frame_hw[1], *size_hw, int(bgr))
        self.launch("preprocess", _tiles(size_hw), TILE, stream, arguments)

    def upsample_argmax(
        self,
        logits: int,
        best: int,
        labels: int,
        placement: Placement,
        grid_shape: tuple[int, int, int],
        frame_hw: tuple[int, int],
        stream: Any,
        *,
        dtype: str = "float32",
    ) -> None:
        """(K,h,w) float32 or float16 at `logits` -> (H,W) uint8 at `labels`. `best`: h * w bytes of room."""
        classes, h, w = grid_shape
        self.launch(f"largest_{dtype}", _blocks(h * w), FLAT, stream, (logits, best, classes, h * w))
        arguments = (logits, best, labels, *_flat(placement), *grid_shape, *frame_hw)
        self.launch(f"labels_{dtype}", _tiles(frame_hw), TILE, stream, arguments)

    def overlay(self, frame: int, labels: int, tints: int, keep: int, frame_hw: tuple[int, int], stream: Any) -> None:
        """Blend into the (H,W,3) uint8 BGR at `frame`. `tints` and `keep`: of `overlay.tint_table`, copied to the GPU."""
        size = 3 * frame_hw[0] * frame_hw[1]
        self.launch("overlay", _blocks(size), FLAT, stream, (frame, labels, tints, keep, size))


def _flat(placement: Placement) -> tuple[int, ...]:
    return (*placement.source, *placement.target)


def _blocks(size: int) -> tuple[int, int]:
    return -(-size // FLAT[0]), 1


def _tiles(size_hw: tuple[int, int]) -> tuple[int, int]:
    return -(-size_hw[1] // TILE[0]), -(-size_hw[0] // TILE[1])
