"""A TensorRT or TensorRT-RTX plan with its record -> a back end with several requests in flight on one GPU.

Tensor-address API (`execute_async_v3`) from 8.5 to 11. Each slot has its own stream, device and pinned memory, made once.
Slots share at most `CONTEXTS` execution contexts, because each takes the network's scratch memory and no more run at once.
`addresses` and `enqueue` let a loop that keeps everything on the GPU skip the copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Engine, EngineRecord, TensorSpec
from tsss_edge.backends.base import Closing, Outputs, require_images
from tsss_edge.backends.cuda.driver import PrimaryContext
from tsss_edge.backends.cuda.gpus import first_gpu
from tsss_edge.backends.plan import PlanHeader, read_header, require_record, require_runnable
from tsss_edge.backends.trt_api import CONTEXTS, Trt, load, make_logger
from tsss_edge.errors import ArtifactError, UnavailableError


class TensorRTBackend(Closing):
    """An `AsyncBackend` on device 0. Pictures are copied before `start` returns. Any thread may call it, one at a time a slot."""

    def __init__(self, engine: Engine, *, slots: int = 1) -> None:
        """Load the plan of an engine. Record and header are checked before TensorRT or CUDA are touched.

        Raises: ArtifactError: of another back end, damaged. UnavailableError: no driver, no TensorRT, another GPU.
        """
        path, record = engine.path, engine.record
        header = read_header(path)
        require_record(path, header, record)
        self.name = f"{header.flavour} {record.precision}"
        self.classes = record.meta.classes
        self.preprocess = record.meta.preprocess
        self.outputs: tuple[TensorSpec, ...] = record.outputs
        self.slots, self.contexts = slots, min(slots, CONTEXTS)
        fixed = record.inputs[0].shape[0]
        least, _, most = (fixed, fixed, fixed) if fixed > 0 else record.build.target.batch
        self.min_batch = least
        self._slots: list[_Slot] = []
        self._engine: Any = None
        self._runtime: Any = None
        self._cuda = PrimaryContext()
        try:
            self._load(path, header, record, most)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path, header: PlanHeader, record: EngineRecord, most: int) -> None:
        trt, gpu = load(header.flavour), first_gpu()
        assert gpu is not None, "PrimaryContext() found one"
        require_runnable(path, header, record, trt, gpu)
        self._trt, self._logger = trt, make_logger(trt)
        self._runtime = trt.module.Runtime(self._logger)
        if (core := record.build.target.dla_core) is not None:
            self._runtime.DLA_core = core  # else a plan for core 1 runs on core 0
        if record.build.target.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such a plan carries a runtime; its hash was checked
        self._engine = _deserialize(self._runtime, path, trt, self._logger)
        _require_tensors(path, self._engine, (*record.inputs, *record.outputs))
        own_profiles = record.inputs[0].shape[0] < 0 and not trt.shares_profiles
        if own_profiles:
            self.contexts = min(self.contexts, self._engine.num_optimization_profiles)
        made = [_Context(self._cuda, self._engine, i if own_profiles else None) for i in range(self.contexts)]
        for slot in range(self.slots):
            context = made[slot % self.contexts]
            self._slots.append(_Slot(self._cuda, context, record.inputs[0], record.outputs, most))

    def start(self, slot: int, images: NDArray[np.uint8]) -> None:
        """Begin (N,H,W,3) uint8 RGB in `slot` and return; `images` may change afterwards."""
        require_images(images, self.preprocess.size_hw)
        least, most = self.min_batch, self._slots[slot].most
        if not least <= images.shape[0] <= most:
            raise ValueError(
                f"this engine takes batches of {least if least == most else f'{least} to {most}'}, got {images.shape[0]}"
            )
        self._cuda.use()
        self._slots[slot].start(images)

    def wait(self, slot: int) -> Outputs:
        """Outputs of `slot`, valid until its next `start`."""
        self._cuda.use()
        return self._slots[slot].wait()

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> arrays by output name, overwritten by the next call."""
        self.start(0, images)
        return self.wait(0)

    def addresses(self, slot: int) -> dict[str, int]:
        """Device address of every tensor of a slot by name (`image` is the input), at the largest batch."""
        return dict(self._slots[slot].address)

    def enqueue(self, slot: int, batch: int, stream: int) -> None:
        """Put the network alone, no copies, into a CUDA stream (an integer handle). The caller keeps slots of one context
        apart (`slot % contexts`): they must not run at once."""
        self._slots[slot].enqueue(batch, stream)

    def close(self) -> None:
        """Wait for what is in flight and free everything; contexts go before the engine, the engine before the memory."""
        self._cuda.use()
        for slot in self._slots:  # all of them first: slots share contexts
            slot.wait()
        for slot in self._slots:
            slot.close()
        self._slots = []
        self._engine = self._runtime = None
        self._cuda.close()


class _Context:
    """An execution context, for one slot at a time."""

    def __init__(self, cuda: PrimaryContext, engine: Any, profile: int | None) -> None:
        """Args: profile: its own optimization profile; None: the engine's only one."""
        self._context = engine.create_execution_context()
        if self._context is None:
            raise UnavailableError("TensorRT gives no execution context (out of GPU memory?); use fewer slots")
        if profile is not None:
            stream = cuda.stream()
            if not self._context.set_optimization_profile_async(profile, stream):
                raise UnavailableError(f"TensorRT refuses optimization profile {profile}; build the engine again")
            cuda.synchronize(stream)
        self.done = cuda.event()  # of its last use by `start`
        self._shape: tuple[int, ...] = ()

    def run(self, addresses: dict[str, int], image: str, shape: tuple[int, ...], stream: int) -> None:
        """Put the network on these tensors into `stream`."""
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
        if shape != self._shape:
            self._context.set_input_shape(image, shape)
            self._shape = shape
        if not self._context.execute_async_v3(stream):
            raise UnavailableError("TensorRT could not run the engine; see its message above")

    def close(self) -> None:
        """Give it back, before the engine goes."""
        self._context = None


class _Slot:
    """The stream and the memory of one request."""

    def __init__(
        self, cuda: PrimaryContext, context: _Context, image: TensorSpec, outputs: tuple[TensorSpec, ...], most: int
    ) -> None:
        self.most = most
        self._cuda, self._context = cuda, context
        self._stream = cuda.stream()
        self._image_name = image.name
        self._row = image.shape[1:]
        self._host = {spec.name: cuda.pinned((most, *spec.shape[1:]), spec.dtype) for spec in (image, *outputs)}
        self.address = {name: cuda.allocate(array.nbytes) for name, array in self._host.items()}
        self._views: dict[str, NDArray[Any]] = {}
        self._batch = 0

    def start(self, images: NDArray[np.uint8]) -> None:
        batch = images.shape[0]
        pinned = self._host[self._image_name][:batch]
        np.copyto(pinned, images)
        self._cuda.copy_in(self.address[self._image_name], pinned, self._stream)
        self._context.done.hold(self._stream)  # until the slot that had the context before is through
        self.enqueue(batch, self._stream)
        self._context.done.record(self._stream, capturing=False)
        for name, view in self._views.items():
            self._cuda.copy_out(view, self.address[name], self._stream)

    def enqueue(self, batch: int, stream: int) -> None:
        if batch != self._batch:
            self._views = {name: array[:batch] for name, array in self._host.items() if name != self._image_name}
            self._batch = batch
        self._context.run(self.address, self._image_name, (batch, *self._row), stream)

    def wait(self) -> Outputs:
        self._cuda.synchronize(self._stream)
        return self._views

    def close(self) -> None:
        """Give its context back, when no slot runs any more."""
        self._context.close()


def _deserialize(runtime: Any, path: Path, trt: Trt, logger: Any) -> Any:
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ArtifactError(
            f"{path}: {trt} cannot load it: {logger.last or 'no message'}; build it again on this machine"
        )
    return engine


def _require_tensors(path: Path, engine: Any, specs: tuple[TensorSpec, ...]) -> None:
    have = {
        name: tuple(engine.get_tensor_shape(name)) for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    for spec in specs:
        if have.get(spec.name) != spec.shape:
            raise ArtifactError(
                f"{path}: tensor {spec.name} is {have.get(spec.name, 'missing')}, its record says {spec.shape}; build it again"
            )
