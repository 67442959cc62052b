"""An OpenVINO IR (`.xml` + `.bin`) with its record -> a back end with several requests in flight.

Input is read from the caller's array and outputs are written into arrays made once, so that a frame costs no
allocation and no copy here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsss_edge.artifacts import Engine, Precision, TensorSpec
from tsss_edge.backends.base import Closing, Outputs, allocate, import_extra, openvino_core, require_images
from tsss_edge.errors import ArtifactError, UnavailableError

FEATURE_STRIDE = 32  # of the encoder's last stage, in every architecture of ours
MAX_STREAMS = 4  # pictures that a CPU works on side by side; more cores share them
_INFERENCE_PRECISION: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def compile_options(
    precision: Precision, *, slots: int, threads: int | None, device: str = "CPU", pinned: bool = True
) -> dict[str, str | int | bool]:
    """OpenVINO properties for one network.

    One slot: the LATENCY hint (all threads on one picture). More slots: one stream a slot, up to one a thread and
    MAX_STREAMS, so that a slot which only waits for its turn takes no threads from the others; on two
    cores that is 2 to 5% more frames a second than queueing on one stream, at the same latency (measured, edge-s 512x512).
    The float type is always stated, because a CPU with bf16 runs an FP32 file in bf16 by itself; INT8 files keep
    OpenVINO's choice for what stays float (bf16 where the CPU has it).
    """
    options: dict[str, str | int | bool] = {"PERFORMANCE_HINT": "LATENCY"}
    if slots > 1 and device == "CPU":
        options = {"NUM_STREAMS": min(slots, threads or slots, MAX_STREAMS)}
    if threads and device == "CPU":
        options["INFERENCE_NUM_THREADS"] = threads
    if not pinned and device == "CPU":
        options["ENABLE_CPU_PINNING"] = False
    if precision in _INFERENCE_PRECISION:
        options["INFERENCE_PRECISION_HINT"] = _INFERENCE_PRECISION[precision]
    return options


def read_ir(path: Path) -> Any:
    """Read an IR (or ONNX file) as an `openvino.Model`. Raises: ArtifactError: OpenVINO cannot read it."""
    core = openvino_core()
    try:
        return core.read_model(path)
    except RuntimeError as error:  # everything OpenVINO throws arrives as RuntimeError
        raise ArtifactError(
            f"{path}: OpenVINO cannot read it (truncated or damaged?): {last_line(error)}; build the engine again"
        ) from error


def expose_features(model: Any, size_hw: tuple[int, int]) -> TensorSpec | None:
    """Make the last layer at stride 32 an output called `features`; None where the network has no such layer."""
    grid = [side // FEATURE_STRIDE for side in size_hw]
    found = None
    for op in model.get_ordered_ops():
        if op.get_type_name() in ("Constant", "Result", "FakeQuantize", "Convert") or op.get_output_size() != 1:
            continue
        shape = op.get_output_partial_shape(0)
        if (
            shape.rank.is_static
            and len(shape) == 4
            and [d.to_string() for d in list(shape)[2:]] == [str(g) for g in grid]
        ):
            found = op.output(0)
    if found is None or not found.get_partial_shape()[1].is_static:
        return None
    port = model.add_outputs([found])[0]
    port.get_tensor().add_names({"features"})
    batch = found.get_partial_shape()[0]
    count = batch.get_length() if batch.is_static else -1
    return TensorSpec(name="features", dtype="float32", shape=(count, found.get_partial_shape()[1].get_length(), *grid))


def compile_ir(model: Any, device: str, options: dict[str, str | int | bool]) -> Any:
    """Compile for `device`. Raises: UnavailableError: there is no such device, or it cannot run the network."""
    core = openvino_core()
    known = core.available_devices
    if device.split(".")[0].split(":")[0] not in {*(name.split(".")[0] for name in known), "AUTO", "HETERO"}:
        raise UnavailableError(f"no OpenVINO device {device!r} on this machine; it has {', '.join(known) or 'none'}")
    try:
        return core.compile_model(model, device, options)
    except RuntimeError as error:
        raise UnavailableError(f"OpenVINO cannot compile the network for {device}: {last_line(error)}") from error


def last_line(error: BaseException) -> str:
    """The last non-empty line of an exception's text: OpenVINO puts file and line of its own source first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class OpenVinoBackend(Closing):
    """An `AsyncBackend` on OpenVINO. The input array of `start` must stay untouched until `wait`."""

    def __init__(
        self,
        engine: Engine,
        *,
        device: str | None = None,
        threads: int | None = None,
        slots: int = 1,
        pinned: bool = True,
        features: bool = False,
    ) -> None:
        """Compile the network of an engine (`.xml`). pinned: each of its threads stays on a core, as OpenVINO has it.

        Args:   features: give the encoder's features too, as output `features` (N,C,h,w) float32, where it has such a stage.
        Raises: ArtifactError: of another back end, damaged. UnavailableError: no OpenVINO, no such device.
        """
        path, record = engine.path, engine.record
        if record.backend != "openvino":
            raise ArtifactError(f"{path}: its record is of {record.backend}, an .xml is OpenVINO; build it again")
        self.name = f"openvino {record.precision}"
        self.classes = record.meta.classes
        self.preprocess = record.meta.preprocess
        self.outputs: tuple[TensorSpec, ...] = record.outputs
        self.slots = slots
        device = device or "CPU"
        model = read_ir(path)
        given = {name for port in model.outputs for name in port.get_names()}
        if missing := [spec.name for spec in record.outputs if spec.name not in given]:
            raise ArtifactError(f"{path}: has no output {', '.join(missing)} though its record says so; build it again")
        if features and (spec := expose_features(model, self.preprocess.size_hw)) is not None:
            self.outputs = (*self.outputs, spec)
        options = compile_options(record.precision, slots=slots, threads=threads, device=device, pinned=pinned)
        self._compiled = compile_ir(model, device, options)
        self._slots = [_Slot(self._compiled.create_infer_request(), self.outputs) for _ in range(slots)]
        self._size_hw = self.preprocess.size_hw
        batch = model.inputs[0].get_partial_shape()[0]
        self.min_batch, self._most = max(1, batch.get_min_length()), batch.get_max_length()  # -1: as many as one likes

    def start(self, slot: int, images: NDArray[np.uint8]) -> None:
        """Begin (N,H,W,3) uint8 RGB in `slot` and return. `images` is read while the network runs: leave it alone."""
        require_images(images, self._size_hw)
        if images.shape[0] < self.min_batch or images.shape[0] > self._most > 0:
            taken = f"{self.min_batch} to {self._most}" if self._most > self.min_batch else f"{self._most}"
            raise ValueError(f"this engine takes batches of {taken}, got {images.shape[0]}")
        self._slots[slot].start(images)

    def wait(self, slot: int) -> Outputs:
        """Outputs of `slot`, valid until its next `start`."""
        self._slots[slot].request.wait()
        return self._slots[slot].arrays

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """(N,H,W,3) uint8 RGB -> arrays by output name, overwritten by the next call."""
        self.start(0, images)
        return self.wait(0)

    def close(self) -> None:
        """Wait for what is in flight and let the network go."""
        for slot in self._slots:
            slot.request.wait()
        self._slots = []
        self._compiled = None


class _Slot:
    """One infer request with the arrays its tensors point to (they must outlive the request's use of them)."""

    def __init__(self, request: Any, specs: tuple[TensorSpec, ...]) -> None:
        self.request = request
        self._specs = specs
        self.arrays: dict[str, NDArray[Any]] = {}
        self._batch = 0
        self._input: NDArray[np.uint8] | None = None
        self._bound: tuple[int, tuple[int, ...]] | None = None

    def start(self, images: NDArray[np.uint8]) -> None:
        if not images.flags.c_contiguous:
            images = np.ascontiguousarray(images)
        where = (images.ctypes.data, images.shape)
        if where != self._bound:
            self._bind(images)
            self._bound = where
        self.request.start_async()

    def _bind(self, images: NDArray[np.uint8]) -> None:
        ov = import_extra("openvino", "cpu")
        self._input = images  # keeps the memory alive as long as the request points to it
        self.request.set_input_tensor(ov.Tensor(images, shared_memory=True))
        if images.shape[0] != self._batch:
            self._batch = images.shape[0]
            self.arrays = allocate(self._specs, self._batch)
            for name, array in self.arrays.items():
                self.request.set_tensor(name, ov.Tensor(array, shared_memory=True))
