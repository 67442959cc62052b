"""The CUDA loop through real PyCUDA: on a GPU, or on the fake driver (`tests/fakecuda`)."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest
from cudakit import CLASSES, SPEC, Count, Frames, Kept, assert_same, painted, planes
from hostcuda import HostKernels, build_kernels

from tsss_edge.artifacts import TensorSpec
from tsss_edge.backends.cuda.device import CudaDevice
from tsss_edge.stream.cuda_stages import IN_FLIGHT
from tsss_edge.stream.frames import Picture, picture_hw
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.pipeline import slots_needed
from tsss_edge.stream.recorder import Recorder

pytestmark = pytest.mark.gpu

SIZES = ((40, 60), (60, 80), (33, 47))
COUNTED = ("device_memory", "pinned_memory", "streams", "events", "graphs", "modules")  # by the fake


def noise(n: int) -> Picture:
    """BGR, I420 and NV12 in turn; every twentieth of another size."""
    frame_hw = SIZES[n // 20 % len(SIZES)]
    if n // 10 % 2:
        return planes(n, frame_hw, pairs=n % 2 == 1)
    return np.random.default_rng(n).integers(0, 256, (*frame_hw, 3), np.uint8)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    pytest.importorskip("pycuda.driver")
    return HostKernels(build_kernels(tmp_path_factory.mktemp("kernels")))


class FixedEngine:
    """A `DeviceEngine` that needs no network: the logits lie in the memory of its slots from the start."""

    name, classes, preprocess = "fixed", CLASSES, SPEC
    outputs = (TensorSpec(name="logits", dtype="float32", shape=(1, 4, 8, 12)),)

    def __init__(self, device: CudaDevice) -> None:
        self.slots = slots_needed(IN_FLIGHT)
        self.contexts = IN_FLIGHT  # as TensorRT's: slots share them
        self.logits = np.random.default_rng(9).normal(size=(4, 8, 12)).astype(np.float32)
        with device.current():
            pinned, stream = device.pinned((4, 8, 12), np.float32), device.stream()
            np.copyto(pinned, self.logits)
            sizes = {"image": 64 * 96 * 3, "logits": pinned.nbytes}
            self._memory = [{name: device.allocate(size) for name, size in sizes.items()} for _ in range(self.slots)]
            for memory in self._memory:
                device.copy_in(memory["logits"], pinned, stream)
            stream.synchronize()

    def addresses(self, slot: int) -> dict[str, int]:
        return self._memory[slot]

    def enqueue(self, slot: int, batch: int, stream: int) -> None:
        """Nothing to compute."""


def test_every_frame_bit_for_bit(kernels: HostKernels) -> None:
    """As the kernels that g++ built, through graphs, slots and changes of the frame size."""
    device, sink, recorder = CudaDevice(), Kept(), Recorder()
    engine = FixedEngine(device)
    assert run(Frames(60, noise), engine, [sink], recorder) == "source"  # type: ignore[arg-type]
    assert recorder.runs_on == "fixed, all stages on the GPU, CUDA graphs"
    for picture, labels, blended in sink.shown:
        frame_hw = picture_hw(picture)
        want = kernels.upsample_argmax(engine.logits, frame_hw, SPEC.place(frame_hw))
        np.testing.assert_array_equal(labels, want)
        assert_same(blended, painted(picture, want))
    assert len(sink.shown) == 60
    device.close()


def test_a_thousand_frames_leave_nothing(kernels: HostKernels) -> None:
    """Memory, streams, events and graphs after 1,000 frames of three sizes are those after 60."""
    counts = []
    for frames in (60, 1000):
        recorder, device = Recorder(), CudaDevice()
        assert run(Frames(frames, noise), FixedEngine(device), [Count()], recorder) == "source"  # type: ignore[arg-type]
        device.close()
        assert recorder.frames == frames
        counts.append(left())
    assert counts[1] == counts[0]
    assert [name for name in COUNTED if counts[1].get(name)] == []


def left() -> dict[str, int]:
    """Free bytes of the GPU; on the fake also how many things there are."""
    import pycuda.driver

    gc.collect()
    with CudaDevice().current():
        free = pycuda.driver.mem_get_info()[0]
    gc.collect()  # the module of that device
    library = ctypes.CDLL("libcuda.so.1")
    fake = getattr(library, "fakecuda_count", None)
    return {"free": free, **({name: fake(name.encode()) for name in COUNTED} if fake else {})}
