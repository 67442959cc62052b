"""How the CUDA kernels are called: their parameters, blocks and grids. Each `.cu` file lies beside its CPU twin."""
# Letters: K class, h, w grid (network input / 8), H, W frame. Addresses are integers.

from __future__ import annotations

from typing import Any, NamedTuple

from tsss_edge.artifacts import Placement
from tsss_edge.kernels.yuv import Matrix, chroma_hw

FLAT, TILE = (256, 1, 1), (32, 8, 1)  # threads of a block

# Parameters of every kernel as PyCUDA packs them: P pointer, i 32-bit integer. A struct by value is its integers:
# a Placement eight, Pitches three, a Matrix six.
PARAMETERS = {
    "preprocess": "PP" + 8 * "i" + "iiii",
    "largest_float32": "PPii",
    "largest_float16": "PPii",
    "labels_float32": "PPP" + 8 * "i" + "iiiii",
    "labels_float16": "PPP" + 8 * "i" + "iiiii",
    "overlay": "PPPii",
    "preprocess_yuv": "PPPP" + "iii" + 8 * "i" + 6 * "i" + "ii",
    "overlay_yuv": "PPP" + "iii" + "PP" + "iii",
}


class DevicePlanes(NamedTuple):
    """Where the planes of a frame lie: addresses, bytes from row to row, and from a chroma value to the next."""

    y: int
    u: int
    v: int
    luma_pitch: int
    chroma_pitch: int
    step: int

    @classmethod
    def dense(cls, address: int, frame_hw: tuple[int, int], *, pairs: bool) -> DevicePlanes:
        """One plane behind the other, as `Yuv.over` lays them out."""
        h, w = chroma_hw(frame_hw)
        u = address + frame_hw[0] * frame_hw[1]
        return cls(address, u, u + (1 if pairs else h * w), frame_hw[1], 2 * w if pairs else w, 2 if pairs else 1)

    @property
    def pitches(self) -> tuple[int, int, int]:
        """As the kernels take them."""
        return self.luma_pitch, self.chroma_pitch, self.step


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
        """(K,h,w) float32 or float16 at `logits` -> (H,W) uint8 at `labels`. `best`: h * w bytes of room.

        Raises: ValueError: a letterbox whose edges lie between the eighths of a grid cell.
        """
        classes, h, w = grid_shape
        placement = at_stride_8(placement, (h, w))
        self.launch(f"largest_{dtype}", _blocks(h * w), FLAT, stream, (logits, best, classes, h * w))
        arguments = (logits, best, labels, *_flat(placement), *grid_shape, *frame_hw)
        self.launch(f"labels_{dtype}", _tiles(frame_hw), TILE, stream, arguments)

    def overlay(self, frame: int, labels: int, tints: int, keep: int, frame_hw: tuple[int, int], stream: Any) -> None:
        """Blend into the (H,W,3) uint8 BGR at `frame`. `tints` and `keep`: of `overlay.tint_table`, copied to the GPU."""
        size = 3 * frame_hw[0] * frame_hw[1]
        self.launch("overlay", _blocks(size), FLAT, stream, (frame, labels, tints, keep, size))

    def preprocess_yuv(
        self,
        planes: DevicePlanes,
        out: int,
        placement: Placement,
        matrix: Matrix,
        size_hw: tuple[int, int],
        stream: Any,
    ) -> None:
        """Planes -> network input, `size_hw` x 3 uint8 RGB, at `out`."""
        arguments = (planes.y, planes.u, planes.v, out, *planes.pitches, *_flat(placement), *matrix, *size_hw)
        self.launch("preprocess_yuv", _tiles(size_hw), TILE, stream, arguments)

    def overlay_yuv(
        self, planes: DevicePlanes, labels: int, tints: int, keep: int, frame_hw: tuple[int, int], stream: Any
    ) -> None:
        """Blend into the planes. `tints` and `keep`: of `overlay_yuv.yuv_tint_table`, copied to the GPU."""
        arguments = (planes.y, planes.u, planes.v, *planes.pitches, labels, tints, keep, *frame_hw)
        self.launch("overlay_yuv", _tiles(chroma_hw(frame_hw)), TILE, stream, arguments)


def at_stride_8(placement: Placement, grid_hw: tuple[int, int]) -> Placement:
    """The same placement on a network input that is 8 pixels a grid point, as the kernel counts: `target` is scaled.

    Raises: ValueError: the scaled target does not lie on whole pixels.
    """
    if placement.input_hw is None or placement.input_hw == (8 * grid_hw[0], 8 * grid_hw[1]):
        return placement
    left, top, width, height = placement.target
    (rows, columns), (h, w) = placement.input_hw, grid_hw
    scaled = [(left * 8 * w, columns), (top * 8 * h, rows), (width * 8 * w, columns), (height * 8 * h, rows)]
    if any(pixels % side for pixels, side in scaled):
        raise ValueError(f"{placement} cannot be told in eighths of a {h}x{w} grid; use fit stretch or crop")
    x, y, w8, h8 = (pixels // side for pixels, side in scaled)
    return Placement(source=placement.source, target=(x, y, w8, h8))


def _flat(placement: Placement) -> tuple[int, ...]:
    return (*placement.source, *placement.target)


def _blocks(size: int) -> tuple[int, int]:
    return -(-size // FLAT[0]), 1


def _tiles(size_hw: tuple[int, int]) -> tuple[int, int]:
    return -(-size_hw[1] // TILE[0]), -(-size_hw[0] // TILE[1])
