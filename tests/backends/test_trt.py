"""The TensorRT back end without a GPU: its refusals for real, its data path on a stand-in for TensorRT and CUDA.

The stand-in's "device" is host memory: addresses are real, so a wrong pointer, size or order shows as a wrong answer.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny import CLASSES, PREPROCESS, pictures, tiny_onnx

from tsss_edge.artifacts import Engine
from tsss_edge.backends import AsyncBackend, open_backend, trt
from tsss_edge.backends.cuda.gpus import Gpu, first_gpu
from tsss_edge.backends.fake import FakeBackend
from tsss_edge.backends.trt_api import Trt
from tsss_edge.config import load_target
from tsss_edge.errors import ArtifactError, UnavailableError
from tsss_edge.export import tensorrt_worker
from tsss_edge.export.build import build_engine
from tsss_edge.stream.cpu_stages import CpuStages
from tsss_edge.stream.cuda_slot import DeviceEngine
from tsss_edge.stream.frames import Frame

ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", total_bytes=1 << 34, free_bytes=1 << 34, driver_cuda="13.0")


@pytest.fixture(params=[(1, 1, 1), (1, 2, 4)], ids=["static", "profile"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    pytest.importorskip("tensorrt_rtx")
    target = msgspec.structs.replace(load_target("rtx"), batch=request.param)
    model = tiny_onnx(tmp_path / "t.onnx", head="both", objectness=True, batch=int(request.param == (1, 1, 1)))
    return build_engine(model.path, target, tmp_path / "t", precision="fp32")


class HostCuda:
    """`PrimaryContext` with host memory. Copies wait in the stream until somebody synchronizes, as on a device, and a thread must have
    made the context its own before it calls anything."""

    def __init__(self) -> None:
        self.current = threading.local()
        self.use()
        self.memory: list[Any] = []
        self.queue: dict[int, list[Any]] = {}
        self.closed = self.contexts = 0
        self.profiles: list[int] = []  # that contexts took
        self.runtimes: list[Any] = []
        self.ran: list[int] = []  # input addresses of the networks, in the order in which they ran

    def use(self) -> None:
        self.current.here = True

    def require_current(self) -> None:
        assert getattr(self.current, "here", False), "CUDA error 201: no context is current in this thread"

    def allocate(self, size: int) -> int:
        self.memory.append(ctypes.create_string_buffer(size))
        return ctypes.addressof(self.memory[-1])

    def pinned(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype)

    def stream(self) -> int:
        self.queue[len(self.queue) + 1] = []
        return len(self.queue)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        self.require_current()
        self.queue[stream].append(lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes))

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        self.queue[stream].append(lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes))

    def synchronize(self, stream: int) -> None:
        self.require_current()
        self.run(stream)

    def run(self, stream: int, until: Any = None) -> None:
        while self.queue[stream] and (work := self.queue[stream].pop(0)) is not until:
            work()

    def event(self) -> HostEvent:
        return HostEvent(self)

    def close(self) -> None:
        self.closed += 1


class HostEvent:
    """A mark in a stream. Another stream that waits for it runs the first one up to there."""

    def __init__(self, cuda: HostCuda) -> None:
        self.cuda, self.stream, self.mark = cuda, 0, None

    def record(self, stream: int, *, capturing: bool) -> None:
        assert not capturing
        self.stream, self.mark = stream, lambda: None
        self.cuda.queue[stream].append(self.mark)

    def hold(self, stream: int) -> None:
        first, mark = self.stream, self.mark
        if mark is not None and first != stream:
            self.cuda.queue[stream].append(lambda: mark in self.cuda.queue[first] and self.cuda.run(first, mark))


class HostContext:
    """An execution context that answers as the fake back end does."""

    def __init__(self, cuda: HostCuda, shapes: dict[str, tuple[int, ...]]) -> None:
        self.cuda, self.shapes, self.address = cuda, shapes, {}
        self.batch = 0
        self.fake = FakeBackend(CLASSES, PREPROCESS, head="both", objectness=True)

    def set_tensor_address(self, name: str, address: int) -> None:
        assert name in self.shapes
        self.address[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert name == "image" and shape[1:] == (64, 96, 3)
        self.batch = shape[0]

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.cuda.profiles.append(profile)
        return profile < 3

    def execute_async_v3(self, stream: int) -> bool:
        address, batch = dict(self.address), self.batch
        self.cuda.queue[stream].append(lambda: self.run(address, batch))
        return True

    def run(self, address: dict[str, int], batch: int) -> None:
        self.cuda.ran.append(address["image"])
        raw = ctypes.string_at(address["image"], batch * 64 * 96 * 3)
        out = self.fake.infer(np.frombuffer(raw, np.uint8).reshape(batch, 64, 96, 3))
        for name, array in out.items():
            ctypes.memmove(address[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)


def stand_in(monkeypatch: pytest.MonkeyPatch, engine: Engine, gpu: Gpu = ADA, broken: str = "") -> HostCuda:
    """Put the stand-ins where `trt.py` looks for TensorRT, CUDA and the GPU."""
    cuda = HostCuda()
    specs = (*engine.record.inputs, *engine.record.outputs)
    shapes = {s.name: s.shape for s in specs}

    def context() -> HostContext:
        cuda.contexts += 1
        return HostContext(cuda, shapes)

    loaded = SimpleNamespace(
        num_io_tensors=len(shapes),
        get_tensor_name=lambda i: list(shapes)[i],
        get_tensor_shape=lambda name: shapes[name] if broken != "shape" else (1,),
        create_execution_context=lambda: context() if broken != "context" else None,
        num_optimization_profiles=3,
    )
    deserialize = SimpleNamespace(deserialize_cuda_engine=lambda data: loaded if broken != "plan" else None)
    module = SimpleNamespace(Runtime=lambda logger: cuda.runtimes.append(deserialize) or deserialize)
    version = tuple(map(int, engine.record.versions["tensorrt-rtx"].split(".")))
    monkeypatch.setattr(trt, "PrimaryContext", lambda: cuda)
    monkeypatch.setattr(trt, "first_gpu", lambda: gpu)
    monkeypatch.setattr(trt, "load", lambda flavour: Trt(module, flavour, version))
    monkeypatch.setattr(trt, "make_logger", lambda trt: SimpleNamespace(last="bad magic"))
    return cuda


def test_slots_and_batches_reach_the_right_memory(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    cuda = stand_in(monkeypatch, engine)
    most = engine.record.build.target.batch[2]
    with open_backend(engine.path, slots=2) as backend:
        assert isinstance(backend, AsyncBackend)
        for batch in {1, most, 1 + most // 2}:
            sent = [pictures(batch, seed=s) for s in (0, 1)]
            for slot in (0, 1):
                backend.start(slot, sent[slot])
            want = [FakeBackend(CLASSES, PREPROCESS, head="both", objectness=True).infer(s) for s in sent]
            for s in sent:
                s[...] = 0  # start has copied them
            for slot in (1, 0):
                got = backend.wait(slot)
                assert set(got) == {"logits", "labels", "objectness"}
                for name, array in got.items():
                    assert array.dtype == want[slot][name].dtype
                    np.testing.assert_array_equal(array, want[slot][name])
            if most == 1:
                break
    backend.close()
    assert cuda.closed == 2, "close is safe to call twice and reaches CUDA each time"


def test_no_context_goes_while_a_slot_still_runs(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """The fourth slot has the first one's context."""
    cuda = stand_in(monkeypatch, engine)
    backend = open_backend(engine.path, slots=4)
    for slot in range(4):
        backend.start(slot, pictures(1))
    waiting: list[int] = []
    monkeypatch.setattr(trt._Context, "close", lambda context: waiting.append(sum(map(len, cuda.queue.values()))))
    backend.close()
    assert waiting == [0, 0, 0, 0]


def test_no_more_contexts_than_run_at_once(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """Seven slots share three; the slots of one context run one after the other, whoever is waited for first."""
    cuda = stand_in(monkeypatch, engine)
    with open_backend(engine.path, slots=7) as backend:
        assert isinstance(backend, AsyncBackend)
        sent = [pictures(1, seed=slot) for slot in range(7)]
        for slot in (0, 3, 1):
            backend.start(slot, sent[slot])
        for slot in (3, 1, 0):
            want = FakeBackend(CLASSES, PREPROCESS).infer(sent[slot])["logits"]
            np.testing.assert_array_equal(backend.wait(slot)["logits"], want)
        assert [backend.addresses(s)["image"] for s in (0, 3, 1)] == cuda.ran
    assert cuda.contexts == 3 and not cuda.profiles


def test_before_tensorrt_10_every_context_has_a_profile_of_its_own(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """Where the batch is free; a second context on the first one's profile is an error there."""
    cuda = stand_in(monkeypatch, engine)
    monkeypatch.setattr(Trt, "shares_profiles", False)
    open_backend(engine.path, slots=7).close()
    assert cuda.profiles == ([0, 1, 2] if engine.record.inputs[0].shape[0] < 0 else [])


@pytest.mark.parametrize(("version", "profiles"), [((8, 5, 3), 3), ((8, 6, 1), 3), ((10, 3, 0), 1), ((11, 4, 0), 1)])
def test_the_builder_makes_a_profile_for_each_of_them(version: tuple[int, ...], profiles: int) -> None:
    added: list[Any] = []
    network = SimpleNamespace(get_input=lambda i: SimpleNamespace(name="image", shape=(-1, 64, 96, 3)))
    builder = SimpleNamespace(create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shapes: None))
    config = SimpleNamespace(add_optimization_profile=lambda profile: added.append(profile) or len(added) - 1)
    job = SimpleNamespace(batch=(1, 2, 4), onnx="t.onnx")
    tensorrt_worker._profile(Trt(None, "tensorrt", version), builder, network, config, job)  # type: ignore[arg-type]
    assert len(added) == profiles


def test_compatible_plans_are_asked_of_the_builder_or_refused() -> None:
    flags: list[Any] = []
    config = SimpleNamespace(set_flag=flags.append)
    levels, flag = SimpleNamespace(AMPERE_PLUS="ampere"), SimpleNamespace(VERSION_COMPATIBLE="version")
    module = SimpleNamespace(HardwareCompatibilityLevel=levels, BuilderFlag=flag)
    job = SimpleNamespace(hardware_compatible="ampere_plus", version_compatible=True)
    tensorrt_worker._compatibility(Trt(module, "tensorrt", (10, 3, 0)), config, job)  # type: ignore[arg-type]
    assert (config.hardware_compatibility_level, flags) == ("ampere", ["version"])
    for flavour, version in (("tensorrt", (8, 5, 3)), ("tensorrt-rtx", (1, 7, 1))):
        with pytest.raises(ArtifactError, match="makes no plan with AMPERE_PLUS; leave that out of the target"):
            tensorrt_worker._compatibility(Trt(module, flavour, version), config, job)  # type: ignore[arg-type]


@pytest.mark.parametrize("core", [None, 1])
def test_the_runtime_is_told_the_dla_core(monkeypatch: pytest.MonkeyPatch, engine: Engine, core: int | None) -> None:
    """Else a plan for core 1 runs on core 0 (microsoft/onnxruntime#26680)."""
    cuda = stand_in(monkeypatch, engine)
    target = msgspec.structs.replace(engine.record.build.target, dla_core=core)
    build = msgspec.structs.replace(engine.record.build, target=target)
    open_backend(msgspec.structs.replace(engine, record=msgspec.structs.replace(engine.record, build=build))).close()
    assert getattr(cuda.runtimes[0], "DLA_core", None) == core


def test_enqueue_runs_on_memory_that_a_gpu_loop_filled(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    cuda = stand_in(monkeypatch, engine)
    backend = trt.TensorRTBackend(engine)
    assert isinstance(backend, DeviceEngine)
    image, stream = pictures(), cuda.stream()
    ctypes.memmove(backend.addresses(0)["image"], image.ctypes.data, image.nbytes)
    backend.enqueue(0, 1, stream)
    cuda.synchronize(stream)
    labels = np.frombuffer(ctypes.string_at(backend.addresses(0)["labels"], 64 * 96), np.uint8).reshape(64, 96)
    np.testing.assert_array_equal(labels, FakeBackend(CLASSES, PREPROCESS, head="labels").infer(image)["labels"][0])


def test_the_live_loop_runs_it_from_its_own_threads(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """Where PyCUDA is missing the loop's stages run on the CPU, and start and wait are called by two threads of it."""
    stand_in(monkeypatch, engine)
    with open_backend(engine.path, slots=2) as backend:
        assert isinstance(backend, AsyncBackend)
        stages = CpuStages(backend, blend=False)
        image, labels = np.full((64, 96, 3), 200, np.uint8), []

        def finish() -> None:
            stages.wait(0, {})
            labels.append(stages.result(0, Frame(image, 0, 0.0), {}).labels)

        for call in (lambda: stages.start(0, image, {}), finish):
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
    assert labels and np.unique(labels[0]).tolist() == [3]


def test_batches_beyond_the_engine(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    stand_in(monkeypatch, engine)
    most = engine.record.build.target.batch[2]
    with open_backend(engine.path) as backend, pytest.raises(ValueError, match=f"{most}, got {most + 1}$"):
        backend.infer(pictures(most + 1))


@pytest.mark.parametrize(
    ("broken", "kind", "words"),
    [
        ("plan", ArtifactError, "cannot load it: bad magic; build it again"),
        ("shape", ArtifactError, r"tensor image is \(1,\), its record says"),
        ("context", UnavailableError, "out of GPU memory"),
    ],
)
def test_what_tensorrt_refuses(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, broken: str, kind: type[Exception], words: str
) -> None:
    cuda = stand_in(monkeypatch, engine, broken=broken)
    with pytest.raises(kind, match=words):
        open_backend(engine.path)
    assert cuda.closed == 1, "its memory would stay taken until the process ends"


def test_hopper_is_told_before_tensorrt_is_asked(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    stand_in(monkeypatch, engine, gpu=msgspec.structs.replace(ADA, name="NVIDIA H200", compute_capability="9.0"))
    with pytest.raises(UnavailableError, match=r"this GPU \(NVIDIA H200\) has 9\.0"):
        open_backend(engine.path)


@pytest.mark.skipif(first_gpu() is not None, reason="this machine has a GPU")
def test_no_driver_is_one_plain_sentence_and_exit_4(engine: Engine) -> None:
    with pytest.raises(UnavailableError, match="a TensorRT engine runs on an NVIDIA GPU only") as caught:
        open_backend(engine.path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_on_a_gpu_it_answers_as_the_fake(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    target = msgspec.structs.replace(load_target("rtx"), name="here", backend="tensorrt")
    for precision in ("fp32", "fp16", "int8"):
        model = tiny_onnx(tmp_path / f"{precision}.onnx", precision=precision, head="both", objectness=True)
        path = build_engine(model.path, target, tmp_path / "t", precision=precision).path
        with open_backend(path, slots=2) as backend:
            for slot in (0, 1):
                backend.start(slot, pictures(seed=slot))
            for slot in (0, 1):
                want = FakeBackend(CLASSES, PREPROCESS).infer(pictures(seed=slot))["logits"].argmax(1)
                assert (backend.wait(slot)["logits"].argmax(1) == want).all()
