"""`TorchEngine`: the reference's answers in the memory of its slots, in the loop on stand-ins, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
from pathlib import Path

import netkit
import numpy as np
import pytest
import torch
from hostcuda import HostCuda, HostKernels, build_kernels

from tsss_edge.artifacts import Checkpoint
from tsss_edge.backends import AsyncBackend, open_backend
from tsss_edge.backends.cuda.device import CudaDevice
from tsss_edge.backends.torch_engine import TorchEngine
from tsss_edge.errors import UnavailableError
from tsss_edge.stream import opening
from tsss_edge.stream.cuda_slot import DeviceEngine
from tsss_edge.stream.cuda_stages import CudaStages
from tsss_edge.stream.frames import Frame
from tsss_edge.stream.opening import open_engine, require_gate

FRAME_HW = (40, 60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return netkit.checkpoint(tmp_path_factory.mktemp("engine") / "best.pt")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kernels(tmp_path_factory.mktemp("kernels"))


def test_its_slots_hold_the_answers_of_the_reference(checkpoint: Checkpoint) -> None:
    engine, reference = TorchEngine(checkpoint, slots=2, device="cpu"), open_backend(checkpoint, device="cpu")
    assert isinstance(engine, DeviceEngine) and isinstance(engine, AsyncBackend)
    assert engine.contexts == engine.slots == 2
    pictures = [netkit.picture(seed)[None] for seed in (1, 2)]
    for slot, picture in enumerate(pictures):
        engine.start(slot, picture)
    for slot, picture in enumerate(pictures):
        want, got = reference.infer(picture), engine.wait(slot)
        assert set(got) == set(want) == {"logits", "objectness"}
        for name, array in want.items():
            np.testing.assert_array_equal(got[name], array)
            raw = ctypes.string_at(engine.addresses(slot)[name], array.nbytes)
            np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(array.shape), array)
    with pytest.raises(ValueError, match="one picture at a time, got 2"):
        engine.start(0, np.concatenate(pictures))
    engine.close()


class QueuedEngine(TorchEngine):
    """On the CPU, but behind what waits in the stand-in's stream, as on a GPU."""

    cuda: HostCuda

    def enqueue(self, slot: int, batch: int, stream: int) -> None:
        self.cuda.streams[stream].put(lambda: super(QueuedEngine, self).enqueue(slot, batch, stream))


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
def test_the_cuda_loop_runs_a_real_network(
    checkpoint: Checkpoint, library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, integrated: bool
) -> None:
    """Captured and launched again for other pictures: labels are those of the kernels around the reference."""
    cuda = HostCuda(library, integrated=integrated).install(monkeypatch, tmp_path)
    engine, reference = QueuedEngine(checkpoint, slots=2, device="cpu"), open_backend(checkpoint, device="cpu")
    engine.cuda = cuda
    for slot in (0, 1):
        for name, address in engine.addresses(slot).items():
            cuda.device_memory[address] = engine._slots[slot].tensors[name].nbytes
    stages, kernels, spec = (
        CudaStages(engine, CudaDevice(), blend=False),
        HostKernels(library),
        checkpoint.meta.preprocess,
    )
    with stages.thread():
        for seed in range(4):
            image = netkit.picture(seed, (48, 64))[: FRAME_HW[0], : FRAME_HW[1]].copy()
            stages.start(seed % 2, image, {})
            stages.wait(seed % 2, {})
            result = stages.result(seed % 2, Frame(image, seed, 0.0), {})
            logits = reference.infer(kernels.preprocess(image, spec, bgr=True)[None])["logits"][0]
            want = kernels.upsample_argmax(np.ascontiguousarray(logits), FRAME_HW, spec.place(FRAME_HW))
            np.testing.assert_array_equal(result.labels, want)
            assert result.objectness is not None
    assert stages.name == "pytorch fp32 cpu, 2 slots, all stages on the GPU, CUDA graphs"
    stages.close()


def test_stream_takes_a_checkpoint_where_pytorch_has_a_gpu(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one it says which engine a CPU runs."""
    require_gate(checkpoint.path, force=False)
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="build-engine --target cpu"):
            open_engine(checkpoint.path, live=False, threads=1)
    asked: list[str] = []

    def on_the_cpu(checkpoint: Checkpoint, *, slots: int, device: str) -> TorchEngine:
        asked.append(device)
        return TorchEngine(checkpoint, slots=slots, device="cpu")

    monkeypatch.setattr("tsss_edge.backends.torch_engine.TorchEngine", on_the_cpu)
    with open_engine(checkpoint.path, live=True, threads=1) as engine:
        assert isinstance(engine, DeviceEngine) and engine.slots == 4
    assert asked == ["cuda"]


def test_an_engine_without_tensorrt_names_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, **options: object) -> None:
        raise UnavailableError("Python module tensorrt cannot be imported (x)")

    monkeypatch.setattr(opening, "open_backend", fails)
    with pytest.raises(UnavailableError, match="or stream its checkpoint, which PyTorch runs on the GPU"):
        open_engine(tmp_path / "x.engine", live=False, threads=1)


@pytest.mark.gpu
def test_on_a_gpu_the_loop_captures_it(checkpoint: Checkpoint) -> None:
    pytest.importorskip("pycuda.driver")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")
    engine, reference = TorchEngine(checkpoint, slots=3), open_backend(checkpoint, device="cuda")
    stages, spec = CudaStages(engine, CudaDevice(), blend=True), checkpoint.meta.preprocess
    assert spec.fit == "stretch"
    agreement = []
    with stages.thread():
        for seed in range(30):
            image = netkit.picture(seed, spec.size_hw)
            stages.start(seed % 3, image[..., ::-1].copy(), {})
            stages.wait(seed % 3, {})
            labels = stages.result(seed % 3, Frame(image, seed, 0.0), {}).labels
            logits = torch.from_numpy(reference.infer(image[None])["logits"])
            wide = torch.nn.functional.interpolate(logits, scale_factor=8, mode="bilinear").argmax(1)[0].numpy()
            agreement.append((labels == wide).mean())
    assert min(agreement) > 0.999
    assert stages.name.endswith("CUDA graphs")
    stages.close()
    engine.close()
