"""The GPU's side of the CUDA loop, with the real kernels, on a stand-in for the GPU (`hostcuda`)."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
from cudakit import CLASSES, SPEC, Frames, Kept, assert_same, painted, planes
from hostcuda import HostCuda, HostKernels, build_kernels

from tsss_edge.artifacts import TensorSpec
from tsss_edge.backends.cuda.device import CudaDevice
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.kernels.yuv import Yuv
from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.cuda_stages import IN_FLIGHT, CudaStages
from tsss_edge.stream.frames import Frame, FrameResult, Picture, picture_hw
from tsss_edge.stream.live_loop import run
from tsss_edge.stream.opening import open_stages
from tsss_edge.stream.pipeline import slots_needed
from tsss_edge.stream.recorder import Recorder

STAGES = ["copy_in", "preprocess", "network", "upsample_argmax", "overlay", "copy_out"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def cuda(request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostCuda:
    return HostCuda(library, integrated=request.param).install(monkeypatch, tmp_path)


class FakeEngine:
    """A `DeviceEngine` that answers as `FakeBackend` does, from and to the device memory of its slots."""

    name = "fake"
    classes, preprocess = CLASSES, SPEC

    def __init__(
        self, cuda: HostCuda, device: CudaDevice, *, slots: int = 2, contexts: int = 0, objectness: bool = True
    ) -> None:
        self.slots, self.contexts = slots, contexts or slots
        self.ran: list[int] = []  # slots, in the order in which the GPU came to them
        self.fake = FakeBackend(CLASSES, SPEC, objectness=objectness)
        self.outputs: tuple[TensorSpec, ...] = self.fake.outputs
        self.overflows = False
        self.cannot_be_captured = False
        self._cuda = cuda
        with device.current():
            sizes = {"image": 64 * 96 * 3, **{s.name: 4 * s.shape[1] * 8 * 12 for s in self.outputs}}
            self._memory = [{name: device.allocate(size) for name, size in sizes.items()} for _ in range(slots)]

    def addresses(self, slot: int) -> dict[str, int]:
        return self._memory[slot]

    def enqueue(self, slot: int, batch: int, stream: int) -> None:
        assert batch == 1
        if self.cannot_be_captured and self._cuda.streams[stream].recording is not None:
            raise UnavailableError("TensorRT could not run the engine")
        self._cuda.streams[stream].put(lambda: self._run(slot))

    def _run(self, slot: int) -> None:
        self.ran.append(slot)
        memory = self._memory[slot]
        image = np.frombuffer(ctypes.string_at(memory["image"], 64 * 96 * 3), np.uint8).reshape(1, 64, 96, 3)
        for name, array in self.fake.infer(image).items():
            values = np.full_like(array, np.inf) if self.overflows else np.ascontiguousarray(array)
            ctypes.memmove(memory[name], values.ctypes.data, values.nbytes)


def picture(seed: int, frame_hw: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Noise on a ramp from left to right, so that every class occurs."""
    noise = np.random.default_rng(seed).integers(0, 64, (*frame_hw, 3))
    return (noise + np.linspace(0, 191, frame_hw[1])[:, None]).astype(np.uint8)


def expected(library: Path, image: Picture) -> tuple[np.ndarray, Picture]:
    """Labels and overlay by the same kernels, called one after the other."""
    kernels, frame_hw = HostKernels(library), picture_hw(image)
    yuv = isinstance(image, Yuv)
    x = kernels.preprocess_yuv(image, SPEC) if yuv else kernels.preprocess(image, SPEC, bgr=True)  # type: ignore[arg-type]
    logits = FakeBackend(CLASSES, SPEC).infer(x[None])["logits"][0]
    labels = kernels.upsample_argmax(np.ascontiguousarray(logits), frame_hw, SPEC.place(frame_hw))
    return labels, painted(image, labels)


def answer(stages: CudaStages, slot: int, image: Picture | None = None) -> FrameResult:
    """One frame through a slot; without `image` the one that was started there."""
    times: dict[str, float] = {}
    if image is not None:
        stages.start(slot, image, times)
        del times["to_pinned"]  # the CPU's copy, in wall time
    stages.wait(slot, times)
    return stages.result(slot, Frame(np.zeros((1, 1, 3), np.uint8), 0, 0.0), times)


def test_answers_are_those_of_the_kernels_alone(cuda: HostCuda, library: Path) -> None:
    """Two slots in flight, used again, waited for in another order, two frame sizes."""
    device = CudaDevice()
    stages = CudaStages(FakeEngine(cuda, device), device, blend=True)
    with stages.thread():
        for frame_hw in ((40, 60), (60, 80), (40, 60)):
            for turn in range(2):
                images = [picture(turn + slot, frame_hw) for slot in (0, 1)]
                for slot in (0, 1):
                    stages.start(slot, images[slot].copy(), {})
                for slot in (1, 0):
                    result = answer(stages, slot)
                    labels, blended = expected(library, images[slot])
                    np.testing.assert_array_equal(result.labels, labels)
                    np.testing.assert_array_equal(result.overlay, blended)
                    assert result.objectness is not None
                    assert result.objectness.shape == (8, 12)
                    assert set(np.unique(result.objectness)) <= {-8, 8}
    assert cuda.captures == 6, "one graph a slot and size"
    if not cuda.integrated:
        tensors, tints, buffers = 2 * 3, 1, 2 * 3  # of two slots, the last size only
        assert len(cuda.device_memory) == tensors + tints + buffers
    assert cuda.launches == 12
    assert stages.name == "fake, all stages on the GPU, CUDA graphs"
    stages.close()
    stages.close()
    assert cuda.depth == 0
    assert not cuda.graphs
    assert not cuda.events
    assert not cuda.device_memory.keys() - cuda.pinned.keys()


def test_planes_stay_planes(cuda: HostCuda, library: Path) -> None:
    """I420, NV12 and BGR in one slot after another: as the kernels alone, and the result is of the frame's kind."""
    device = CudaDevice()
    stages = CudaStages(FakeEngine(cuda, device), device, blend=True)
    with stages.thread():
        for pairs in (False, True):
            image = planes(3, (47, 61), pairs=pairs)
            result = answer(stages, 0, image)
            labels, blended = expected(library, image)
            np.testing.assert_array_equal(result.labels, labels)
            assert isinstance(result.painted, Yuv) and result.painted.pairs == pairs
            assert_same(result.painted, blended)
        assert_same(answer(stages, 0, picture(1)).painted, expected(library, picture(1))[1])  # type: ignore[arg-type]
    stages.close()
    assert not cuda.device_memory.keys() - cuda.pinned.keys()


@pytest.mark.parametrize(("contexts", "order"), [(1, [0, 1]), (2, [1])])
def test_slots_of_one_context_wait_for_each_other(
    cuda: HostCuda, library: Path, contexts: int, order: list[int]
) -> None:
    """Two slots must not run one execution context at once; where each has its own, none waits."""
    device = CudaDevice()
    engine = FakeEngine(cuda, device, contexts=contexts)
    stages = CudaStages(engine, device, blend=False)
    with stages.thread():
        for slot in (0, 1):
            answer(stages, slot, picture(slot))  # makes slot and graph
        engine.ran.clear()
        for slot in (0, 1):
            stages.start(slot, picture(2 + slot), {})
        np.testing.assert_array_equal(answer(stages, 1).labels, expected(library, picture(3))[0])
        assert engine.ran == order
        np.testing.assert_array_equal(answer(stages, 0).labels, expected(library, picture(2))[0])
    stages.close()


def test_times_are_the_gpus_own(cuda: HostCuda) -> None:
    """A discrete GPU copies the frame in, and labels, overlay and objectness out; an integrated one only objectness."""
    device = CudaDevice()
    stages = CudaStages(FakeEngine(cuda, device), device, blend=True)
    with stages.thread():
        times = answer(stages, 0, picture(0)).stages_ms
    assert list(times) == [name for name in STAGES if not cuda.integrated or name != "copy_in"]
    # The stand-in's clock: every operation takes 1 ms, the record of an event too.
    assert times["network"] == 2
    assert times["upsample_argmax"] == 3
    assert times["copy_out"] == (2 if cuda.integrated else 4)
    stages.close()


def test_nothing_is_done_that_nobody_wants(cuda: HostCuda) -> None:
    device = CudaDevice()
    stages = CudaStages(FakeEngine(cuda, device, objectness=False), device, blend=False)
    with stages.thread():
        result = answer(stages, 0, picture(1))
    assert result.overlay is None
    assert result.objectness is None
    assert "overlay" not in result.stages_ms
    assert ("copy_out" in result.stages_ms) == (not cuda.integrated)
    stages.close()


@pytest.mark.parametrize("by", ["engine", "driver", "pycuda"])
def test_without_graphs_it_runs_and_says_why(
    cuda: HostCuda, by: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = CudaDevice()
    engine = FakeEngine(cuda, device)
    engine.cannot_be_captured, cuda.refuses_capture = by == "engine", by == "driver"
    if by == "pycuda":
        launch, refused = device.launch, cuda.driver.Error("operation not permitted when stream is capturing")

        def fail_in_capture(kernel: str, grid: object, block: object, stream: object, arguments: object) -> None:
            if stream.recording is not None:  # type: ignore[attr-defined]
                raise refused
            launch(kernel, grid, block, stream, arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(device, "launch", fail_in_capture)
    stages = CudaStages(engine, device, blend=True)
    with stages.thread():
        for seed in (0, 1):
            labels = answer(stages, 0, picture(seed)).labels
            np.testing.assert_array_equal(labels, expected(library, picture(seed))[0])
    assert "no CUDA graph: " in stages.name
    assert ("TensorRT could not run" if by == "engine" else "not permitted") in stages.name
    assert cuda.launches == 0
    stages.close()


def test_an_engine_that_overflows_is_an_error(cuda: HostCuda) -> None:
    device = CudaDevice()
    engine = FakeEngine(cuda, device)
    engine.overflows = True
    stages = CudaStages(engine, device, blend=False)
    with stages.thread(), pytest.raises(ArtifactError, match="logits hold NaN or infinity"):
        answer(stages, 0, picture(0))
    stages.close()


# ---------------------------------------------------------------------------------------------------------------------
# In the live loop


def ramp(n: int) -> Picture:
    """The size changes on the way."""
    return picture(n, (40, 60) if n <= 12 else (60, 80))


def test_a_file_runs_on_the_gpu(cuda: HostCuda, library: Path) -> None:
    slots = slots_needed(IN_FLIGHT)
    sink, recorder = Kept(), Recorder()
    assert run(Frames(24, ramp), FakeEngine(cuda, CudaDevice(), slots=slots), [sink], recorder) == "source"
    assert recorder.frames == 24
    assert recorder.runs_on == "fake, all stages on the GPU, CUDA graphs"
    for image, labels, blended in sink.shown:
        want, want_blended = expected(library, image)
        np.testing.assert_array_equal(labels, want)
        assert_same(blended, want_blended)
    assert cuda.depth == 0


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([TensorSpec(name="labels", dtype="uint8", shape=(1, 64, 96))], "export with --head logits"),
        ([TensorSpec(name="logits", dtype="float32", shape=(4, 4, 8, 12))], "build with batch 1, not 4"),
    ],
)
def test_engines_that_the_kernels_cannot_serve_run_with_the_cpu(
    cuda: HostCuda, outputs: list[TensorSpec], words: str
) -> None:
    engine = FakeEngine(cuda, CudaDevice())
    engine.outputs = tuple(outputs)
    stages = open_stages(engine, blend=False)  # type: ignore[arg-type]
    assert isinstance(stages, CpuStages)
    assert stages.name.startswith("fake, other stages on the CPU: ")
    assert words in stages.name


def test_without_pycuda_the_cpu_takes_the_other_stages(cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(cuda, CudaDevice())
    monkeypatch.setitem(sys.modules, "pycuda", None)
    assert "PyCUDA cannot be imported" in open_stages(engine, blend=False).name  # type: ignore[arg-type]


def test_a_cpu_engine_stays_on_the_cpu() -> None:
    assert open_stages(FakeBackend(CLASSES, SPEC), blend=False).name == "fake"
