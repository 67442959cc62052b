"""The GPU's side of the CUDA loop, with the real kernels, on a stand-in for the GPU (`hostcuda`)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hostcuda import HostCuda, HostKernels, build_kernels

from tsss_edge.artifacts import Classes, Preprocess, TensorSpec
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.kernels.launch import CudaDevice
from tsss_edge.kernels.overlay import overlay
from tsss_edge.stream.cuda.frames import CudaFrames

CLASSES = Classes(names=("background", "cat", "dog", "cow"))
SPEC = Preprocess(size_hw=(64, 96), fit="letterbox")
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

    def __init__(self, cuda: HostCuda, device: CudaDevice, *, slots: int = 2, objectness: bool = True) -> None:
        self.slots = slots
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
        memory = self._memory[slot]
        image = np.frombuffer(ctypes.string_at(memory["image"], 64 * 96 * 3), np.uint8).reshape(1, 64, 96, 3)
        for name, array in self.fake.infer(image).items():
            values = np.full_like(array, np.inf) if self.overflows else np.ascontiguousarray(array)
            ctypes.memmove(memory[name], values.ctypes.data, values.nbytes)


def picture(seed: int, frame_hw: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Noise on a ramp from left to right, so that every class occurs."""
    noise = np.random.default_rng(seed).integers(0, 64, (*frame_hw, 3))
    return (noise + np.linspace(0, 191, frame_hw[1])[:, None]).astype(np.uint8)


def expected(library: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and overlay by the same kernels, called one after the other."""
    kernels, frame_hw = HostKernels(library), (image.shape[0], image.shape[1])
    logits = FakeBackend(CLASSES, SPEC).infer(kernels.preprocess(image, SPEC, bgr=True)[None])["logits"][0]
    labels = kernels.upsample_argmax(np.ascontiguousarray(logits), frame_hw, SPEC.place(frame_hw))
    return labels, overlay(image, labels, CLASSES.palette, shown=CLASSES.objects)


def test_answers_are_those_of_the_kernels_alone(cuda: HostCuda, library: Path) -> None:
    """Two slots in flight, used again, waited for in another order, two frame sizes."""
    device = CudaDevice()
    frames = CudaFrames(FakeEngine(cuda, device), blend=True, device=device)
    with frames.current():
        for frame_hw in ((40, 60), (60, 80), (40, 60)):
            for turn in range(2):
                images = [picture(turn + slot, frame_hw) for slot in (0, 1)]
                for slot in (0, 1):
                    frames.start(slot, images[slot].copy())
                for slot in (1, 0):
                    answer = frames.wait(slot)
                    labels, blended = expected(library, images[slot])
                    np.testing.assert_array_equal(answer.labels, labels)
                    np.testing.assert_array_equal(answer.overlay, blended)
                    assert answer.objectness is not None
                    assert answer.objectness.shape == (8, 12)
                    assert set(np.unique(answer.objectness)) <= {-8, 8}
    assert cuda.captures == 6, "one graph a slot and size"
    assert cuda.launches == 12
    assert frames.eager_because == ""
    frames.close()
    frames.close()
    assert cuda.depth == 0
    assert not cuda.graphs
    assert not cuda.events


def test_times_are_the_gpus_own(cuda: HostCuda) -> None:
    """A discrete GPU copies the frame in, and labels, overlay and objectness out; an integrated one only objectness."""
    device = CudaDevice()
    frames = CudaFrames(FakeEngine(cuda, device), blend=True, device=device)
    with frames.current():
        frames.start(0, picture(0))
        stages = frames.wait(0).stages_ms
    assert list(stages) == [name for name in STAGES if not cuda.integrated or name != "copy_in"]
    # The stand-in's clock: every operation takes 1 ms, the record of an event too.
    assert stages["network"] == 2
    assert stages["upsample_argmax"] == 3
    assert stages["copy_out"] == (2 if cuda.integrated else 4)
    frames.close()


def test_nothing_is_done_that_nobody_wants(cuda: HostCuda) -> None:
    device = CudaDevice()
    frames = CudaFrames(FakeEngine(cuda, device, objectness=False), blend=False, device=device)
    with frames.current():
        frames.start(0, picture(1))
        answer = frames.wait(0)
    assert answer.overlay is None
    assert answer.objectness is None
    assert "overlay" not in answer.stages_ms
    assert ("copy_out" in answer.stages_ms) == (not cuda.integrated)
    frames.close()


@pytest.mark.parametrize("by", ["engine", "driver", "pycuda"])
def test_without_graphs_it_runs_and_says_why(
    cuda: HostCuda, by: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = CudaDevice()
    engine = FakeEngine(cuda, device)
    engine.cannot_be_captured, cuda.refuses_capture = by == "engine", by == "driver"
    if by == "pycuda":
        launch, refused = device._launch, cuda.driver.Error("operation not permitted when stream is capturing")

        def fail_in_capture(name: str, grid: object, block: object, stream: object, arguments: object) -> None:
            if stream.recording is not None:  # type: ignore[attr-defined]
                raise refused
            launch(name, grid, block, stream, arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(device, "_launch", fail_in_capture)
    frames = CudaFrames(engine, blend=True, device=device)
    with frames.current():
        for seed in (0, 1):
            frames.start(0, picture(seed))
            np.testing.assert_array_equal(frames.wait(0).labels, expected(library, picture(seed))[0])
    assert ("TensorRT could not run" if by == "engine" else "not permitted") in frames.eager_because
    assert cuda.launches == 0
    frames.close()


def test_an_engine_that_overflows_is_an_error(cuda: HostCuda) -> None:
    device = CudaDevice()
    engine = FakeEngine(cuda, device)
    engine.overflows = True
    frames = CudaFrames(engine, blend=False, device=device)
    with frames.current():
        frames.start(0, picture(0))
        with pytest.raises(ArtifactError, match="logits hold NaN or infinity"):
            frames.wait(0)
    frames.close()


def test_engines_that_it_cannot_run(cuda: HostCuda) -> None:
    device = CudaDevice()
    engine = FakeEngine(cuda, device)
    for specs, words in (
        ((TensorSpec(name="labels", dtype="uint8", shape=(1, 64, 96)),), "--head logits"),
        ((TensorSpec(name="logits", dtype="float32", shape=(4, 4, 8, 12)),), "build with batch 1, not 4"),
    ):
        engine.outputs = specs
        with pytest.raises(ArtifactError, match=words):
            CudaFrames(engine, blend=False, device=device)
