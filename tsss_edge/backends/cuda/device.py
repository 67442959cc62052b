"""Device 0 through PyCUDA (imported nowhere else): its context and streams, and our kernels. Memory is `driver.py`'s.

It uses the primary context, which PyTorch and TensorRT share; `pycuda.autoinit` would make another. A thread that
calls anything here does so within `with device.current():`, and leaves the block before it ends: PyCUDA aborts the process
when a thread ends with a context still pushed.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from tsss_edge.backends.cuda.driver import NON_BLOCKING, CudaMemory
from tsss_edge.errors import UnavailableError
from tsss_edge.kernels import PARAMETERS, KernelCalls
from tsss_edge.kernels.fatbin import find_or_build


class CudaDevice(CudaMemory, KernelCalls):
    """Everything the CUDA loop asks of the GPU. `close` frees what is left."""

    def __init__(self) -> None:
        """Take device 0 and load the kernels.

        Raises: UnavailableError: no PyCUDA, no driver, no GPU, or no kernels for it (see `fatbin`).
        """
        super().__init__()
        self._driver = _pycuda_driver()
        try:
            gpu, self._context = _primary_context(self._driver)
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA does not start: {error}; check the driver with nvidia-smi") from error
        self.name = gpu.name()
        attribute = self._driver.device_attribute
        self.integrated = bool(gpu.get_attribute(attribute.INTEGRATED))  # GPU and CPU share the memory: no copies
        self.capability = ".".join(map(str, gpu.compute_capability()))
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
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA: {error}") from error
        finally:
            self._context.pop()

    def close(self) -> None:
        """Free all memory and the kernels. Safe to call twice."""
        with self.current():
            self.free_all()
            self._kernels, self._module = {}, None

    def stream(self) -> Any:
        """A new stream, which does not wait for the default stream; `.handle` is its integer handle."""
        return self._driver.Stream(NON_BLOCKING)

    def pinned(self, shape: tuple[int, ...], dtype: Any, *, mapped: bool | None = None) -> NDArray[Any]:
        """As `CudaMemory.pinned`; on an integrated GPU it is mapped unless told."""
        return super().pinned(shape, dtype, mapped=self.integrated if mapped is None else mapped)

    def launch(
        self, kernel: str, grid: tuple[int, int], block: tuple[int, int, int], stream: Any, arguments: tuple[int, ...]
    ) -> None:
        """Run one kernel behind what is in `stream`, one of PyCUDA's."""
        self._kernels[kernel].prepared_async_call(grid, block, stream, *arguments)

    def _load(self, capability: str) -> Any:
        path = find_or_build(capability)
        try:
            return self._driver.module_from_buffer(path.read_bytes() + b"\0")  # PTX is text, and text ends with a zero
        except self._driver.Error as error:
            raise UnavailableError(
                f"{path} does not run on {self.name} (compute capability {capability}): {error}; install a newer driver, or "
                "build machine code with this machine's nvcc: python -m tsss_edge.kernels.fatbin FOLDER"
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
