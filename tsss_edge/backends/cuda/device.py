"""Device 0 through PyCUDA (imported nowhere else): its context, memory and streams, and our kernels on them.

The primary context is used, the one that PyTorch and TensorRT share; `pycuda.autoinit` would make another. A thread that
calls anything here does so within `with device.current():`, and leaves the block before it ends: PyCUDA aborts the process
when a thread ends with a context still pushed.
"""
# Letters: K class, h, w grid (network input / 8), H, W frame. Addresses are integers.

from __future__ import annotations

import atexit
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Placement
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels.fatbin import find_or_build

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a stream that does not wait for the default stream
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


class CudaDevice:
    """Everything the CUDA loop asks of the GPU. `close` frees what is left."""

    def __init__(self) -> None:
        """Take device 0 and load the kernels.

        Raises: UnavailableError: no PyCUDA, no driver, no GPU, or no kernels for it (see `fatbin`).
        """
        self._driver = _pycuda_driver()
        try:
            gpu, self._context = _primary_context(self._driver)
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA does not start: {error}; check the driver with nvidia-smi") from error
        self.name = gpu.name()
        attribute = self._driver.device_attribute
        self.integrated = bool(gpu.get_attribute(attribute.INTEGRATED))  # GPU and CPU share the memory: no copies
        self.capability = ".".join(map(str, gpu.compute_capability()))
        self._memory: dict[int, Any] = {}
        with self.current():
            self._module = self._load(self.capability)
            self._kernels = {name: self._module.get_function(name) for name in PARAMETERS}
            for name, parameters in PARAMETERS.items():
                self._kernels[name].prepare(parameters)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context is current in the calling thread, within the block. Raises: UnavailableError: CUDA failed in it."""
        self._context.push()
        try:
            yield
        except self._driver.MemoryError as error:
            raise UnavailableError(
                f"out of GPU memory ({error}); use fewer slots, or close what else uses the GPU"
            ) from error
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA: {error}") from error
        finally:
            self._context.pop()

    def close(self) -> None:
        """Free all memory and the kernels. Safe to call twice."""
        with self.current():
            for address in list(self._memory):
                self.free(address)
            self._kernels, self._module = {}, None

    # -----------------------------------------------------------------------------------------------------------------
    # Memory and streams

    def stream(self) -> Any:
        """A new stream; `.handle` is its integer handle."""
        return self._driver.Stream(NON_BLOCKING)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of GPU memory."""
        memory = self._driver.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """Free what `allocate` gave."""
        self._memory.pop(address).free()

    def pinned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """A host array that copies run beside the CPU with; on an integrated GPU it has an `address` too."""
        flags = self._driver.host_alloc_flags.DEVICEMAP if self.integrated else 0
        array: NDArray[Any] = self._driver.pagelocked_empty(shape, dtype, mem_flags=flags)
        return array

    def address(self, array: NDArray[Any]) -> int:
        """Where the GPU sees a `pinned` array of an integrated GPU."""
        assert array.base is not None
        return int(array.base.get_device_pointer())  # type: ignore[attr-defined]

    def copy_in(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Host to GPU, behind what is in `stream`. `array` must be pinned and stay as it is until then."""
        self._driver.memcpy_htod_async(address, array, stream)

    def copy_out(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """GPU to host, behind what is in `stream`. `array` must be pinned."""
        self._driver.memcpy_dtoh_async(array, address, stream)

    # -----------------------------------------------------------------------------------------------------------------
    # Kernels, behind what is in `stream`

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
        self._launch("preprocess", _tiles(size_hw), TILE, stream, arguments)

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
        self._launch(f"largest_{dtype}", _blocks(h * w), FLAT, stream, (logits, best, classes, h * w))
        arguments = (logits, best, labels, *_flat(placement), *grid_shape, *frame_hw)
        self._launch(f"labels_{dtype}", _tiles(frame_hw), TILE, stream, arguments)

    def overlay(self, frame: int, labels: int, tints: int, keep: int, frame_hw: tuple[int, int], stream: Any) -> None:
        """Blend into the (H,W,3) uint8 BGR at `frame`. `tints` and keep: of `overlay.tint_table`, copied to the GPU."""
        size = 3 * frame_hw[0] * frame_hw[1]
        self._launch("overlay", _blocks(size), FLAT, stream, (frame, labels, tints, keep, size))

    def _launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int, int], stream: Any, arguments: tuple[int, ...]
    ) -> None:
        self._kernels[name].prepared_async_call(grid, block, stream, *arguments)

    def _load(self, capability: str) -> Any:
        path = find_or_build(capability)
        try:
            return self._driver.module_from_buffer(path.read_bytes())
        except self._driver.Error as error:
            raise UnavailableError(
                f"{path} does not run on {self.name} (compute capability {capability}): {error}; delete it and let this "
                "machine's nvcc build another"
            ) from error


def _pycuda_driver() -> Any:
    try:
        import pycuda.driver as driver
    except ImportError as error:  # without libcuda.so.1 too
        raise UnavailableError(
            f"PyCUDA cannot be imported ({error}); install it: pip install 'tsss-edge[cuda]'"
        ) from error
    return driver


@functools.cache
def _primary_context(driver: Any) -> tuple[Any, Any]:
    """Device 0 and its primary context, kept until the process ends: a second retain of PyCUDA's costs nothing, but a
    dropped reference would detach the context under everybody (its destructor takes it for an ordinary one)."""
    driver.init()
    gpu = driver.Device(0)
    context = gpu.retain_primary_context()
    atexit.register(context.detach)
    return gpu, context


def _flat(placement: Placement) -> tuple[int, ...]:
    return (*placement.source, *placement.target)


def _blocks(size: int) -> tuple[int, int]:
    return -(-size // FLAT[0]), 1


def _tiles(size_hw: tuple[int, int]) -> tuple[int, int]:
    return -(-size_hw[1] // TILE[0]), -(-size_hw[0] // TILE[1])
